"""Golden requests: the odd cases are in, no line is a person's, a model without numbers is not recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models_export.golden import N_GOLDEN, pick, record
from models_export.parity import score_in_torch
from service.contract.errors import RequestError
from service.contract.requests import RequestBatch
from tests.parity.test_golden_encoder import NOW, ROWS, click, small_encoder
from training.models import build_model
from training.recipes import din_demo


def requests(n: int = 90) -> RequestBatch:
    """Requests in which users, behaviours and pages can be told apart."""
    items = ["shirt", "trousers", "lamp"]
    rows: list[dict[str, Any]] = [
        {"request_id": f"r{i}", "requested_at": NOW + i, "user": {"user": f"u{i}"}, "context": {"device": "phone"},
         "trigger": items[i % 3], "candidates": items[: 1 + i % 3],
         "behaviours": [{**click("lamp", 60_000 * (i + 1)), "at": NOW + i - 60_000 * (i + 1)}] * (i % 7)}
        for i in range(n)
    ]  # fmt: skip
    return RequestBatch.from_rows(rows)


def test_there_are_enough_and_the_odd_ones_are_among_them() -> None:
    picked = dict(pick(requests()))
    assert len(pick(requests())) == N_GOLDEN
    assert len(picked["longest history"]["behaviours"]) == 6
    assert picked["empty history"]["behaviours"] == []
    assert picked["anonymous user"]["user"] == {"user": None}
    assert len(picked["most candidates"]["candidates"]) == 3
    assert len(picked["fewest candidates"]["candidates"]) == 1
    encoder = small_encoder()
    for case in ("unknown trigger", "nothing known"):
        assert encoder.catalogue.rows([picked[case]["trigger"]])[0] == 0
    assert (encoder.catalogue.rows(picked["unknown candidates"]["candidates"]) == 0).all()


def test_no_line_is_a_person_s() -> None:
    """User i, the behaviours of user j and the page of request k are never of one request."""
    for case, row in pick(requests()):
        if case != "ordinary" or not row["behaviours"]:
            continue
        user = int(row["user"]["user"][1:])
        page = row["requested_at"] - NOW
        behaviours = (row["requested_at"] - row["behaviours"][0]["at"]) // 60_000 - 1
        assert len({user, page, behaviours}) == 3


@pytest.mark.parametrize("n_users", [1, 2, 3, 7])
def test_pages_in_a_row_by_one_user_are_not_put_together_again(n_users: int) -> None:
    """Logs stand in the order of time: the next page is most often by the same user."""
    whole = requests()
    owner = np.array([f"u{i * n_users // whole.n_requests}" for i in range(whole.n_requests)], object)
    picked = pick(replace(whole, user={"user": owner}))
    for case, row in picked:
        page = owner[row["requested_at"] - NOW]
        people = [page] if row["user"]["user"] not in owner else [page, row["user"]["user"]]
        if row["behaviours"]:
            age = (row["requested_at"] - row["behaviours"][0]["at"]) // 60_000 - 1
            people.append(owner[age])
        assert len(set(people)) == len(people), case
    if n_users > 1:
        assert any(row["behaviours"] for _, row in picked)


def test_lines_hold_what_torch_gives(tmp_path: Path) -> None:
    encoder, path = small_encoder(), tmp_path / "golden.jsonl"
    torch.manual_seed(0)
    model = build_model(din_demo().model, encoder.sizes).eval()
    n_lines = record(model, encoder, pick(RequestBatch.from_rows(ROWS[:3])), path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == n_lines == N_GOLDEN
    for line in lines[:12]:
        scores = score_in_torch(model, encoder.encode(RequestBatch.from_rows([line["request"]])))
        np.testing.assert_array_equal(np.array(line["logits"], np.float32), scores.logits)
        assert line["intent"] is None


def test_a_model_without_numbers_is_not_recorded(tmp_path: Path) -> None:
    encoder = small_encoder()
    model = build_model(din_demo().model, encoder.sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(RequestError, match="not finite"):
        record(model, encoder, pick(requests()), tmp_path / "golden.jsonl")


def test_without_requests_there_is_nothing_to_pick() -> None:
    with pytest.raises(RequestError, match="there is none"):
        pick(RequestBatch.from_rows([]))
