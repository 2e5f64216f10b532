"""Golden requests: raw requests with the scores that PyTorch gave, replayed by the service before it takes traffic.

`models_export.export` calls `pick` on requests of the data set and `record` with the trained model; the service encodes
and scores each line again and refuses the bundle when a logit is off by more than the tolerance. A line of
`golden.jsonl` is `{"case", "request", "logits", "intent"}`; `request` is a row of the contract's `RequestBatch`.

No line is a person's: user, behaviours and page of a line come from three different requests.
"""

import json
from collections.abc import Mapping, Sequence
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
    longest = int(np.argmax(np.diff(requests.behaviour_offsets)))
    n_candidates = np.diff(requests.candidate_offsets)
    rows = [_mixed(requests, int(r)) for r in spread]
    behaviours = _moved(requests, longest, rows[0]["requested_at"])
    odd: list[tuple[str, Row]] = [
        ("longest history", {**rows[0], "behaviours": behaviours}),
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


def _mixed(requests: RequestBatch, r: int) -> Row:
    """The page of request `r` with the behaviours of the next request and the user of the one after."""
    n = requests.n_requests
    page, user = requests.take(np.array([r, (r + 2) % n])).to_rows()
    return {**page, "user": user["user"], "behaviours": _moved(requests, (r + 1) % n, int(requests.requested_at[r]))}


def _moved(requests: RequestBatch, r: int, requested_at: Any) -> list[dict[str, Any]]:
    """The behaviours of request `r` as far before `requested_at` as they were before their own request."""
    row: Any = requests.take(np.array([r])).to_rows()[0]
    return [{**b, "at": int(requested_at) - (row["requested_at"] - b["at"])} for b in row["behaviours"]]
