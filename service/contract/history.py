"""Which of a user's behaviours a request may see, in one place for training and serving.

Called by Encoder.encode alone. Whoever brings behaviours (a parquet row, Redis, a caller's override) may bring too
many; this module alone cuts: strictly before the request, within the window, of the right types, the newest, in time
order, and without the click that opened the page.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from service.contract.rules import HistoryRules

N_AGE_BINS = 19
_AGE_EDGES_MINUTES = 2 ** np.arange(1, N_AGE_BINS - 1, dtype=np.int64)


class Kept(NamedTuple):
    """Behaviours that survived a cut: their index in the batch, their request, their place in its history."""

    behaviour: Int64[np.ndarray, " B"]
    request: Int64[np.ndarray, " B"]
    position: Int64[np.ndarray, " B"]


def sort_by_time(
    request: Int64[np.ndarray, " B"], at: Int64[np.ndarray, " B"], row: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, " B"]:
    """Order by request, then time; equal times by catalogue row, so that the order of arrival never matters."""
    return np.lexsort((row, at, request)).astype(np.int64)


def whole_seconds(at: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
    """Times as the store keeps them: to the second. Ages and order go by these, so that files with milliseconds give
    the same history as the store.
    """
    return at // 1_000 * 1_000


def is_visible(
    rules: HistoryRules,
    before: Bool[np.ndarray, " B"],
    age_ms: Int64[np.ndarray, " B"],
    is_trigger: Bool[np.ndarray, " B"],
    window_s: int,
) -> Bool[np.ndarray, " B"]:
    """Strictly before the request (to the millisecond), within the window, and not the click that opened the page."""
    inside = before & (age_ms <= window_s * 1_000)
    return inside & ~(is_trigger & (age_ms <= rules.opening_window_s * 1_000))


def newest(index: Int64[np.ndarray, " B"], request: Int64[np.ndarray, " B"], n_requests: int, at_most: int) -> Kept:
    """The `at_most` last behaviours of each request; `index` is sorted by request and time."""
    counts = np.bincount(request, minlength=n_requests)
    ends = np.cumsum(counts)
    from_end = ends[request] - 1 - np.arange(len(index))
    kept = from_end < at_most
    position = np.minimum(counts, at_most)[request] - 1 - from_end
    return Kept(index[kept], request[kept], position[kept].astype(np.int64))


def first_of_newest(age_ms: Int64[np.ndarray, " B"], window_s: int, at_most: int) -> int:
    """Where the `at_most` newest within the window begin, among one request's behaviours in order of time."""
    return max(int(np.count_nonzero(age_ms > window_s * 1_000)), len(age_ms) - at_most)


def age_bin(age_ms: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
    """1 + floor(log2(1 + minutes)), at most N_AGE_BINS - 1; 0 is kept for "no behaviour"."""
    minutes = np.maximum(age_ms, 0) // 60_000
    bins: Int64[np.ndarray, " B"] = 1 + _AGE_EDGES_MINUTES.searchsorted(1 + minutes, side="right")
    return bins.astype(np.int64, copy=False)
