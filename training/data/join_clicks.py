"""The service's request log and the click log -> a request file: today's answers are tomorrow's training input.

Called by `daian data join`. The request log holds rows of the contract whose candidates are what was shown, in order
(`DAIAN_REQUEST_LOG` of the service); the click log holds events as they were sent to `POST /events`, one JSON object a
line: `type`, `user`, `item`, `time` (RFC 3339 or epoch ms), and `request_id` if the client knows it. Two passes over
the requests; the clicks and the request ids are kept in memory.
"""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.errors import RequestError
from service.contract.requests import RequestBatch
from service.contract.schema import FeatureSchema
from training.data.errors import DataError
from training.data.request_files import ROW_GROUP_REQUESTS, write_requests

WINDOW_S = 3_600


@dataclass
class _Clicks:
    """The clicks, by request where that is known, else by user and item; `credited` is filled by the first pass."""

    by_request: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    by_user: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    credited: dict[tuple[str, str, int], tuple[int, str]] = field(
        default_factory=dict
    )  # click -> newest request that showed it
    last_at: int = 0
    n_clicks: int = 0


def join_clicks(
    request_log: Path, click_log: Path, out: Path, schema: FeatureSchema, window_s: int = WINDOW_S
) -> dict[str, int]:
    """Writes the logged requests with their clicks to the request file `out`; returns what was counted.

    A click with a `request_id` belongs to that request; one without to the newest request of its user that showed the
    item at most `window_s` before. Requests so new that clicks may still come (less than `window_s` before the end of
    the logs) are left out: they are not yet without a click. Raises DataError naming file and line for what cannot be
    read, and for a request that was logged twice.
    """
    clicks = _read_clicks(click_log)
    last_request_at = 0
    for row in _requests(request_log):
        last_request_at = max(last_request_at, row["requested_at"])
        _credit(row, clicks, window_s * 1000)
    credited = {(request_id, item) for (_, item, _), (_, request_id) in clicks.credited.items()}
    mature_until = max(last_request_at, clicks.last_at) - window_s * 1000
    counts: Counter[str] = Counter(clicks=clicks.n_clicks)
    with write_requests(out, schema) as writer:
        for batch in _batches(request_log, mature_until, counts):
            pairs = zip(batch.request_id[batch.candidate_request], batch.candidate, strict=True)
            clicked = [
                item in clicks.by_request.get(request, ()) or (request, item) in credited for request, item in pairs
            ]
            writer.write(batch, np.array(clicked, dtype=np.int8))
            counts.update(requests=batch.n_requests, candidates=batch.n_candidates, joined_clicks=sum(clicked))
    return dict(counts)


def _read_clicks(path: Path) -> _Clicks:
    clicks = _Clicks()
    for number, event in _lines(path):
        if event.get("type", "click") != "click":
            continue
        at = _event_time(path, number, event)
        clicks.last_at = max(clicks.last_at, at)
        clicks.n_clicks += 1
        item, request, user = event.get("item"), event.get("request_id"), event.get("user")
        if not isinstance(item, str) or not (isinstance(request, str) or isinstance(user, str)):
            raise DataError(
                f"{path}, line {number}: a click needs item, and request_id or user; found {sorted(event)}."
            )
        if isinstance(request, str):
            clicks.by_request[request].add(item)
        else:
            clicks.by_user[str(user), item].append(at)
    for times in clicks.by_user.values():
        times.sort()
    return clicks


def _credit(row: dict[str, Any], clicks: _Clicks, window_ms: int) -> None:
    """Notes this request at every click that it may have caused, if no newer one is there."""
    user, at, request_id = row.get("user", {}).get("user"), row["requested_at"], row["request_id"]
    for item in row.get("candidates", ()) if user is not None else ():
        times = clicks.by_user.get((user, item), [])
        for click_at in times[bisect_left(times, at) :]:
            if click_at > at + window_ms:
                break
            key = (user, item, click_at)
            clicks.credited[key] = max(clicks.credited.get(key, (0, "")), (at, request_id))


def _requests(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the request log. Raises DataError naming the line for what is no request, or was logged before."""
    seen: set[str] = set()
    for number, row in _lines(path):
        try:
            user = RequestBatch.from_rows([row]).user["user"][0]
        except RequestError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if not (user is None or isinstance(user, str)):
            raise DataError(f"{path}, line {number}: user.user must be a text or null, found {user!r:.80}.")
        if row["request_id"] in seen:
            raise DataError(
                f"{path}, line {number}: request {row['request_id']!r:.80} was logged before; ids must be unique."
            )
        seen.add(row["request_id"])
        yield row


def _batches(path: Path, mature_until: int, counts: Counter[str]) -> Iterator[RequestBatch]:
    """The requests that are old enough and showed something; the first pass has checked them."""
    rows: list[dict[str, Any]] = []
    for _, row in _lines(path):
        if row["requested_at"] > mature_until:
            counts["too_new"] += 1
            continue
        if not row.get("candidates"):
            counts["without_candidates"] += 1
            continue
        rows.append(row)
        if len(rows) == ROW_GROUP_REQUESTS:
            yield RequestBatch.from_rows(rows)
            rows = []
    if rows:
        yield RequestBatch.from_rows(rows)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise DataError(
                        f"{path}, line {number}: a {type(value).__name__}, expected one JSON object a line."
                    )
                yield number, value
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}).") from error


def _event_time(path: Path, number: int, event: dict[str, Any]) -> int:
    value = event.get("time")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise DataError(f"{path}, line {number}: time {value!r:.80} is neither epoch ms nor RFC 3339 with its zone.")
    return int(at.timestamp() * 1000)
