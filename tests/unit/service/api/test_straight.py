"""A ranking that goes past the routing is answered as one that goes through it."""

from typing import Any

import httpx
import pytest
from fastapi.routing import APIRouter
from starlette.types import Receive, Scope, Send

from service.app import StraightToRanking
from service.contract.bundle import Bundle
from service.settings import Settings
from tests.asgi_client import opened

FIXED = {"request_id": "r-1", "trigger": "i0"}
ASKED: dict[str, dict[str, Any]] = {
    "whole": {"json": {**FIXED, "candidates": ["i1", "i2"]}},
    "recalled": {"json": FIXED},
    "by curl": {"content": b'{"trigger": "i0", "request_id": "r-1"}', "headers": {"content-type": "application/json"}},
    "no trigger": {"json": {"request_id": "r-1"}},
    "no json": {"content": b"{", "headers": {"content-type": "application/json"}},
    "another type": {"content": b"x", "headers": {"content-type": "text/csv"}},
    "compressed": {"json": FIXED, "headers": {"content-encoding": "gzip"}},
    "too large": {"content": b" " * (2 << 20), "headers": {"content-type": "application/json"}},
    "another method": {"method": "GET"},
    "a query": {"json": FIXED, "params": {"top_k": "3"}},
    "a slash": {"json": FIXED, "path": "/v1/rank/"},
    "the head": {"method": "HEAD"},
    "what is allowed": {"method": "OPTIONS"},
}


def answers(bundle: Bundle, asked: dict[str, Any]) -> list[tuple[int, list[str], Any]]:
    """Status, headers by name, and body but its times, by both paths of a ranking."""
    found = []
    with opened(Settings(bundle_root=bundle.path, deadline_ms=20_000)) as client:
        for path in ("/v1/rank", "/rank"):
            options = {"method": "POST", "path": path, **asked}
            answer: httpx.Response = client(options.pop("method"), options.pop("path"), **options)
            body = answer.json() if answer.content else None
            if isinstance(body, dict):
                for name in ("timing_ms", "request_id"):
                    body.pop(name, None)
            found.append((answer.status_code, sorted(answer.headers), body))
    return found


async def by_route(self: StraightToRanking, scope: Scope, receive: Receive, send: Send) -> None:
    await self._app(scope, receive, send)


@pytest.mark.parametrize("name", ASKED)
def test_both_ways_give_one_answer(bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = answers(bundle, ASKED[name])
    monkeypatch.setattr(StraightToRanking, "__call__", by_route)
    assert answers(bundle, ASKED[name]) == straight


def test_a_ranking_asks_no_route(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> None:
        raise AssertionError("went through the routing")

    monkeypatch.setattr(APIRouter, "app", lost)
    assert answers(bundle, ASKED["whole"])[0][0] == 200
    monkeypatch.setattr(StraightToRanking, "__call__", by_route)
    with pytest.raises(AssertionError, match="went through"):
        answers(bundle, ASKED["whole"])
