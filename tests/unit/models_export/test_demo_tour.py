"""Who is shown, and that the page is explained from what the service answered and from nothing else."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from models_export.demo_service import ServiceError
from models_export.demo_tour import Page, Visit, _lines, _most_telling, _moved_to
from service.contract.requests import RequestBatch
from tests.parity.test_golden_encoder import MINUTE, NOW, ROWS, click, small_encoder

ENCODER = small_encoder()
BEFORE = [
    ("trousers", 1, 0.2, 4, "explicit_intent"),
    ("naïve-Ω", 2, 0.1, 3, "similar"),
    ("lamp", 3, 0.05, 1, "popular"),
]
AFTER = [
    ("trousers", 1, 0.21, 4, "explicit_intent"),
    ("lamp", 2, 0.12, 1, "popular"),
    ("naïve-Ω", 3, 0.1, 3, "similar"),
]


def answer(items: list[tuple[str, int, float, int, str]], used: int, predicted: list[float]) -> dict[str, Any]:
    rows = [{"id": i, "rank": r, "ctr": c, "level": level, "reason": why} for i, r, c, level, why in items]
    intent = {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "predicted": predicted, "applied": predicted}
    return {"items": rows, "intent": intent, "degraded": [], "timing_ms": {"total": 2.0},
            "behaviours": {"used": used, "similar": 2, "newest_age_s": 1.0}}  # fmt: skip


class Shop:
    """A service that answers from a script and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append((request.url.path, body))
        if request.url.path == "/events":
            return httpx.Response(200, json={"accepted": 1, "duplicates": 0, "rejected": [], "took_ms": 1.0})
        clicked = any(path == "/events" for path, _ in self.asked)
        page = answer(AFTER, 4, [0.4, 0.1, 0.2, 0.3]) if clicked else answer(BEFORE, 3, [0.1, 0.1, 0.2, 0.6])
        return httpx.Response(200, json=page)


def visit() -> Visit:
    row = {"request_id": "r", "requested_at": NOW, "user": {"user": "ann", "orders": 3}, "context": {"device": "phone"},
           "trigger": "shirt", "candidates": ["lamp", "trousers", "naïve-Ω"],
           "behaviours": [click("shirt", MINUTE), click("trousers", 90 * MINUTE)]}  # fmt: skip
    return Visit(row, ("lamp",))


def shown(shop: Any) -> str:
    lines: list[str] = []
    with httpx.Client(transport=httpx.MockTransport(shop), base_url="http://shop") as client:
        Page(client, visit(), ENCODER, lines.append).show()
    return "\n".join(lines)


def test_it_asks_clicks_asks_again_and_asks_for_recall() -> None:
    shop = Shop()
    shown(shop)
    assert [path for path, _ in shop.asked] == ["/rank", "/events", "/rank", "/rank"]
    first, click_sent, second, recall = [body for _, body in shop.asked]
    assert (first["user"], first["trigger"], first["context"]) == ("ann", "shirt", {"device": "phone"})
    assert first == second
    assert first["candidates"] == ["lamp", "trousers", "naïve-Ω"]
    assert "candidates" not in recall
    event = click_sent["events"][0]
    assert (event["user"], event["item"], event["type"]) == ("ann", "lamp", "click")


def test_the_page_is_explained() -> None:
    text = shown(Shop())
    assert "visitor    ann (orders 3)" in text
    assert "shirt (tops, 19.9)" in text
    assert "1 min ago   1.00  click     shirt (tops, 19.9)   <- opened this page: not counted" in text
    assert "2 h ago   0.96  click     trousers (bottoms, 49)" in text
    assert "0.75 to 1.00   60% ████████████████████████" in text
    assert "3 candidates ranked in 2.0 ms with 3 behaviours, 2 of them like the trigger" in text
    assert "1. 20.00%  level 4  trousers (bottoms, 49)" in text
    assert "popular" not in text
    assert "no history: what others click   <- clicked in the log" in text


def test_what_changed_is_told() -> None:
    text = shown(Shop())
    assert "ranked again: 3 -> 4 behaviours (similarity of the click 0.00)" in text
    assert "intent moved most at level 0.00 to 0.25: +30.0 points" in text
    assert "2 of 3 items changed places" in text
    assert "3 -> 2   lamp" in text


def test_a_service_that_fails_is_quoted() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"code": "no_model"})

    with pytest.raises(ServiceError, match=r"/rank answered 503.*no_model"):
        shown(broken)


def test_the_visitor_has_a_click_and_a_history() -> None:
    rows = [*ROWS, {**visit().row, "request_id": "the one", "trigger": "trousers"}]
    batch = RequestBatch.from_rows(rows)
    clicks = np.ones(batch.n_candidates, np.int8)
    clicks[: len(ROWS[0]["candidates"])] = 0  # the fullest history, but nothing clicked
    assert rows[_most_telling(batch, clicks, ENCODER)]["request_id"] in ("the one", ROWS[1]["request_id"])
    assert _most_telling(batch, np.zeros_like(clicks) + (batch.candidate_request == 4), ENCODER) == 4


def test_times_move_together_and_users_become_lines() -> None:
    moved = _moved_to(visit().row, NOW + 5_000)
    assert moved["requested_at"] - moved["behaviours"][0]["at"] == MINUTE
    line = json.loads(next(_lines([moved])))
    assert line == {"user": "ann", "behaviours": moved["behaviours"], "attributes": {"orders": 3}}
