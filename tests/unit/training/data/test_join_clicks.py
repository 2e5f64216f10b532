"""The service's log and the click log: each click is credited to the request that caused it, once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.shop import SCHEMA, START_MS
from training.data.errors import DataError
from training.data.join_clicks import join_clicks
from training.data.request_files import read_row_group

MINUTE_MS = 60_000


def request(number: int, minute: float, *candidates: str, user: str | None = "u") -> dict[str, Any]:
    at = START_MS + int(minute * MINUTE_MS)
    row = {"request_id": f"r{number}", "requested_at": at, "user": {"user": user}, "context": {}, "trigger": "t"}
    return row | {"behaviours": [{"item": "old", "at": at - 5, "type": "click"}], "candidates": list(candidates)}


def click(item: str, minute: float, user: str = "u", **more: Any) -> dict[str, Any]:
    return {"type": "click", "user": user, "item": item, "time": START_MS + int(minute * MINUTE_MS), **more}


LATER = click("nothing", 10_000)  # the logs end long after the requests


def join(
    folder: Path, requests: list[dict[str, Any]], events: list[dict[str, Any]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    (folder / "requests.ndjson").write_text("".join(json.dumps(row) + "\n" for row in requests))
    (folder / "clicks.ndjson").write_text("".join(json.dumps(row) + "\n" for row in events))
    counts = join_clicks(folder / "requests.ndjson", folder / "clicks.ndjson", folder / "out.parquet", SCHEMA)
    batch, clicks = read_row_group(folder / "out.parquet", 0)
    bounds = zip(batch.request_id, batch.candidate_offsets[:-1], batch.candidate_offsets[1:], strict=True)
    return {request: clicks[a:b].tolist() for request, a, b in bounds}, counts


def test_a_click_with_its_request_id_belongs_to_that_request(tmp_path: Path) -> None:
    requests = [request(1, 0, "a", "b"), request(2, 1, "a", "b")]
    found, counts = join(tmp_path, requests, [click("a", 2, request_id="r1"), LATER])
    assert found == {"r1": [1, 0], "r2": [0, 0]}
    assert counts == {"clicks": 2, "requests": 2, "candidates": 4, "joined_clicks": 1}


def test_a_click_without_one_belongs_to_the_newest_request_that_showed_the_item(tmp_path: Path) -> None:
    requests = [request(1, 0, "a", "b"), request(2, 10, "a", "c"), request(3, 20, "c", "d"), request(4, 40, "a")]
    found, _ = join(tmp_path, requests, [click("a", 25), LATER])
    assert found == {"r1": [0, 0], "r2": [1, 0], "r3": [0, 0], "r4": [0]}


def test_the_order_of_the_log_does_not_matter(tmp_path: Path) -> None:
    requests = [request(1, 0, "a", "b"), request(2, 10, "a", "c"), request(3, 20, "c", "d")]
    events = [click("a", 25), click("c", 26), LATER]
    assert join(tmp_path, requests[::-1], events[::-1])[0] == join(tmp_path, requests, events)[0]


def test_a_click_too_late_too_early_or_by_another_user_is_none(tmp_path: Path) -> None:
    requests = [request(1, 0, "a", "b", "c"), request(2, 0, "a", user=None)]
    found, _ = join(tmp_path, requests, [click("a", 61), click("b", -1), click("c", 1, user="v"), LATER])
    assert found == {"r1": [0, 0, 0], "r2": [0]}


def test_other_events_are_no_clicks(tmp_path: Path) -> None:
    found, counts = join(tmp_path, [request(1, 0, "a")], [click("a", 1) | {"type": "cart"}, LATER])
    assert found == {"r1": [0]}
    assert counts["clicks"] == 1


def test_requests_whose_clicks_may_still_come_are_left_out(tmp_path: Path) -> None:
    requests = [request(1, 0, "a"), request(2, 59, "a"), request(3, 61, "a")]
    found, counts = join(tmp_path, requests, [click("a", 119)])
    assert found.keys() == {"r1", "r2"}
    assert counts["too_new"] == 1


def test_times_as_the_service_takes_them(tmp_path: Path) -> None:
    first = request(1, 0, "a") | {"requested_at": 1_700_000_000_000}
    found, _ = join(tmp_path, [first], [click("a", 0) | {"time": "2023-11-14T22:13:21Z"}, LATER])
    assert found == {"r1": [1]}


def test_histories_and_fields_are_kept_as_logged(tmp_path: Path) -> None:
    row = request(1, 0, "a") | {"user": {"user": "u", "age": 33.0}, "context": {"device": "phone"}}
    join(tmp_path, [row], [LATER])
    batch, _ = read_row_group(tmp_path / "out.parquet", 0)
    assert batch.to_rows() == [row]


@pytest.mark.parametrize(
    ("requests", "events", "message"),
    [
        ([request(1, 0, "a"), request(1, 1, "a")], [LATER], r"requests.ndjson, line 2: request 'r1' was logged before"),
        ([request(1, 0, "a") | {"trigger": 7}], [LATER], r"requests.ndjson, line 1: .*trigger"),
        ([request(1, 0, "a"), request(2, 0, "a") | {"user": None}], [LATER], r"requests.ndjson, line 2: .*user"),
        ([request(1, 0, "a"), request(2, 0) | {"candidates": None}], [LATER], r"line 2: .*candidates"),
        ([request(1, 0, "a"), request(2, 0, "a") | {"request_id": []}], [LATER], r"line 2: .*request_id"),
        ([request(1, 0, "a"), request(2, 0, "a") | {"requested_at": "noon"}], [LATER], r"line 2: .*requested_at"),
        ([request(1, 0, "a")], [LATER, {"type": "click", "time": 5}], r"clicks.ndjson, line 2: a click needs item"),
        ([request(1, 0, "a")], [LATER | {"time": "noon"}], r"clicks.ndjson, line 1: time 'noon'"),
        ([request(1, 0, "a")], [LATER | {"time": "2023-11-14T22:13:21"}], r"line 1: time .* with its zone"),
        ([request(1, 0, "a"), [1]], [LATER], r"requests.ndjson, line 2: a list"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, requests: list[Any], events: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        join(tmp_path, requests, events)
    assert not (tmp_path / "out.parquet").exists()


def test_a_user_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"user\.user must be a text"):
        join(tmp_path, [request(1, 0, "a") | {"user": {"user": ["u"]}}], [LATER])


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "clicks.ndjson").write_text(json.dumps(LATER) + "\n")
    (tmp_path / "requests.ndjson").write_text(json.dumps(request(1, 0, "a")) + '\n{"request_id": "r2", ')
    with pytest.raises(DataError, match=r"requests\.ndjson, line 2: not JSON"):
        join_clicks(tmp_path / "requests.ndjson", tmp_path / "clicks.ndjson", tmp_path / "out.parquet", SCHEMA)
