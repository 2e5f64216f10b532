"""Golden requests: raw requests with the scores that PyTorch gave, replayed by the service before it takes traffic.

`models_export.export` calls `pick` on requests of the data set and `record` with the trained model; the service encodes
and scores each line again and refuses the bundle when a logit is off by more than the tolerance. A line of
`golden.jsonl` is `{"case", "request", "logits", "intent"}`; `request` is a row of the contract's `RequestBatch`.

No line is a person's: user, behaviours and page of a line come from three requests by three different people.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from models_export.parity import score_in_torch
from service.contract.encoder import Encoder
from service.contract.errors import RequestError
from service.contract.requests import RequestBatch

GOLDEN_FILE = "golden.jsonl"
N_GOLDEN = 64
_STRANGER = "\u2205 nobody"

Row = Mapping[str, Any]


def pick(requests: RequestBatch, n: int = N_GOLDEN) -> list[tuple[str, Row]]:
    """`n` requests with the name of their case: the odd ones first, then ordinary ones spread over `requests`.

    The odd ones: the longest history, the longest and the shortest candidate list, an empty history, an anonymous and
    an unknown user, an unknown trigger, unknown candidates, nothing known at all. Raises `RequestError` for no request.
    """
    if requests.n_requests == 0:
        raise RequestError(
            "golden requests are picked from requests of the data set, and there is none: prepare it again"
        )
    spread = np.linspace(0, requests.n_requests - 1, n).astype(np.int64)
    n_candidates = np.diff(requests.candidate_offsets)
    rows = [_mixed(requests, int(r)) for r in spread]
    odd: list[tuple[str, Row]] = [
        ("longest history", _with_longest_history(requests)),
        ("most candidates", _mixed(requests, int(np.argmax(n_candidates)))),
        ("fewest candidates", _mixed(requests, int(np.argmin(n_candidates)))),
        ("empty history", {**rows[1 % n], "behaviours": []}),
        ("anonymous user", {**rows[2 % n], "user": {"user": None}, "behaviours": []}),
        ("unknown user", {**rows[3 % n], "user": {"user": _STRANGER}}),
        ("unknown trigger", {**rows[4 % n], "trigger": _STRANGER}),
        ("unknown candidates", {**rows[5 % n], "candidates": [f"{_STRANGER} {i}" for i in range(7)]}),
        ("nothing known", {**rows[6 % n], "user": {"user": _STRANGER}, "context": {}, "behaviours": [],
                           "trigger": _STRANGER, "candidates": [_STRANGER]}),
    ]  # fmt: skip
    picked = [*odd, *(("ordinary", row) for row in rows)][: max(n, len(odd))]
    return [(case, {**row, "request_id": f"golden-{i:03d}"}) for i, (case, row) in enumerate(picked)]


def record(model: nn.Module, encoder: Encoder, picked: Sequence[tuple[str, Row]], path: Path) -> int:
    """Score each request in PyTorch, alone, and write `path`. Returns the number of lines.

    Raises `RequestError` if PyTorch gives a number that is not finite: such a model must not be recorded as right.
    """
    with path.open("w", encoding="utf-8") as file:
        for case, row in picked:
            scores = score_in_torch(model, encoder.encode(RequestBatch.from_rows([row])))
            if not np.isfinite(scores.logits).all():
                raise RequestError(f"{case}: the trained model gives a logit that is not finite: train again")
            intent = None if scores.intent is None else scores.intent.tolist()
            line = {"case": case, "request": row, "logits": scores.logits.tolist(), "intent": intent}
            file.write(json.dumps(line, allow_nan=False) + "\n")
    return len(picked)


def _mixed(requests: RequestBatch, page: int, history: int | None = None) -> Row:
    """The page of one request, the behaviours of another, the user of a third, by three different people.

    In a log the next request is most often by the same user. Where there are not three people, behaviours or user are
    left out.
    """
    person = _people(requests)
    if history is None:
        history = _next(person, page, {person[page]})
    known = {person[page]} if history is None else {person[page], person[history]}
    user = _next(person, page, known)
    row = requests.take(np.array([page])).to_rows()[0]
    row["behaviours"] = [] if history is None else _moved(requests, history, row["requested_at"])
    row["user"] = {"user": None} if user is None else requests.take(np.array([user])).to_rows()[0]["user"]
    return row


def _with_longest_history(requests: RequestBatch) -> Row:
    longest = int(np.argmax(np.diff(requests.behaviour_offsets)))
    person = _people(requests)
    page = _next(person, longest, {person[longest]})
    return _mixed(requests, longest) if page is None else _mixed(requests, page, longest)


def _people(requests: RequestBatch) -> list[Hashable]:
    """Who made each request; an anonymous one is by somebody of its own."""
    return [r if user is None else str(user) for r, user in enumerate(requests.user["user"])]


def _next(person: Sequence[Hashable], r: int, known: set[Hashable]) -> int | None:
    """The first request after `r`, from the start again at the end, that is by nobody of `known`."""
    n = len(person)
    return next((i % n for i in range(r + 1, r + n) if person[i % n] not in known), None)


def _moved(requests: RequestBatch, r: int, requested_at: Any) -> list[dict[str, Any]]:
    """The behaviours of request `r` as far before `requested_at` as they were before their own request."""
    row: Any = requests.take(np.array([r])).to_rows()[0]
    return [{**b, "at": int(requested_at) - (row["requested_at"] - b["at"])} for b in row["behaviours"]]
