"""Labels and group codes of encoded requests. Offline only: nothing here is ever an input of a model.

Called by `batches`; the group codes also by `training.baselines`. The intent label is DAIAN's eq. (1): the share of a
request's clicks in each similarity level to the trigger. It uses the encoder's own similarities and its own scale, the
same numbers that the model sees.
"""

from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Int8, Int64

from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale


class Labels(NamedTuple):
    """`clicks` per candidate; `intent`, `has_intent` and the two group codes per request.

    `intent[r]` is all zeros where `has_intent[r]` is false: a request without a click (or whose clicked items have no
    vector) has no observed intent, and no constant may stand in for it (that would tell the model that nobody clicked).
    Group codes are stable 63-bit hashes: equal for the same user or request in every file and run. An anonymous request
    is a group of its own.
    """

    clicks: Float32[np.ndarray, " N"]
    intent: Float32[np.ndarray, "R S"]
    has_intent: Bool[np.ndarray, " R"]
    user_group: Int64[np.ndarray, " R"]
    request_group: Int64[np.ndarray, " R"]


def make_labels(
    batch: RequestBatch,
    clicks: Int8[np.ndarray, " N"],
    candidate_similarity: Float32[np.ndarray, " N"],
    scale: SimilarityScale,
) -> Labels:
    """The labels of a batch, given its candidates' similarities to the trigger as they were encoded."""
    intent, has_intent = intent_labels(batch, clicks, candidate_similarity, scale)
    user_group, request_group = group_codes(batch)
    return Labels(
        clicks=clicks.astype(np.float32),
        intent=intent,
        has_intent=has_intent,
        user_group=user_group,
        request_group=request_group,
    )


def group_codes(batch: RequestBatch) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """The codes of each request's user and of the request itself, as in Labels."""
    request_group = [_code(f"request:{request}") for request in batch.request_id]
    user_group = [
        _code(f"user:{user}") if user is not None else request
        for user, request in zip(batch.user["user"], request_group, strict=True)
    ]
    return np.array(user_group, dtype=np.int64), np.array(request_group, dtype=np.int64)


def intent_labels(
    batch: RequestBatch,
    clicks: Int8[np.ndarray, " N"],
    candidate_similarity: Float32[np.ndarray, " N"],
    scale: SimilarityScale,
) -> tuple[Float32[np.ndarray, "R S"], Bool[np.ndarray, " R"]]:
    """eq. (1): p_j = c_j / Σ_k c_k, c_j = clicks of the request whose similarity to its trigger lies in level j."""
    level = scale.level(candidate_similarity)
    counted = (clicks == 1) & (level > 0)  # level 0: no vector to compare
    cell = batch.candidate_request[counted] * scale.n_levels + level[counted] - 1
    counts = np.bincount(cell, minlength=batch.n_requests * scale.n_levels).reshape(batch.n_requests, scale.n_levels)
    total = counts.sum(axis=1, keepdims=True)
    return (counts / np.maximum(total, 1)).astype(np.float32), total[:, 0] > 0


def _code(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) >> 1  # a non-negative int64
