"""Events of a file, call by call: counts, and every reason with its lines."""

import json
from typing import Any

import pytest

from service.event_sending import N_LINES_SHOWN, send_events, shown


class Service:
    """Takes users that begin with `u`; refuses a whole call from the given one on."""

    def __init__(self, calls_taken: int = 100) -> None:
        self.calls: list[list[str]] = []
        self._calls_taken = calls_taken

    def __call__(self, body: bytes) -> tuple[int, dict[str, Any]]:
        if len(self.calls) == self._calls_taken:
            return 503, {"code": "store_unavailable"}
        users = body.decode().splitlines()
        self.calls.append(users)
        rejected = [
            {"index": place, "code": "malformed", "detail": user} if user.startswith("bad")
            else {"index": place, "code": "too_old", "detail": f"time is {user.removeprefix('old')} days ago"}
            for place, user in enumerate(users)
            if not user.startswith("u")
        ]  # fmt: skip
        return 200, {"accepted": len(users) - len(rejected), "duplicates": 0, "erased": 0, "rejected": rejected}


def sent(text: str, service: Service, batch: int = 1000) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(shown(send_events(text.encode().splitlines(True), service, batch))))
    return found


def test_each_reason_has_its_count_and_its_lines_in_the_file() -> None:
    text = "u1\n\nold15\r\nu2\nbad shape\n  \nold99\nbad time\nbad shape"
    found = sent(text, Service(), batch=2)
    assert found == {
        "accepted": 2, "duplicates": 0, "erased": 0, "rejected": 5,
        "reasons": [
            {"code": "too_old", "detail": "time is 15 days ago", "count": 2, "lines": [3, 7]},
            {"code": "malformed", "detail": "bad shape", "count": 2, "lines": [5, 9]},
            {"code": "malformed", "detail": "bad time", "count": 1, "lines": [8]},
        ],
    }  # fmt: skip


def test_only_the_first_lines_of_a_reason_are_shown() -> None:
    [reason] = sent("old15\n" * 20, Service())["reasons"]
    assert (reason["count"], reason["lines"]) == (20, list(range(1, N_LINES_SHOWN + 1)))


def test_calls_are_of_so_many_events_and_end_where_one_is_refused() -> None:
    service = Service(calls_taken=2)
    found = sent("u1\n\nu2\nu3\nu4\nu5\nu6\n", service, batch=2)
    assert service.calls == [["u1", "u2"], ["u3", "u4"]]
    assert found["accepted"] == 4
    assert (found["refusal"], found["refused_from_line"]) == ({"code": "store_unavailable"}, 6)


def test_a_batch_of_none_is_refused_and_of_too_many_cut() -> None:
    service = Service()
    with pytest.raises(ValueError, match="1 to 1000"):
        sent("u1", service, batch=0)
    sent("u1\n" * 1500, service, batch=5000)
    assert [len(call) for call in service.calls] == [1000, 500]
