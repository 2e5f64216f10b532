"""Retriever: candidates near a trigger when the caller sends none.

Made by the runtime from the bundle's FAISS index and catalogue; called by the ranker in a worker thread, after the
request graph, because the predicted intent decides how many candidates each similarity level may send. FAISS and one
popular list propose, exact similarities of the catalogue decide the level; nothing here scores or orders for the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.process_tuning import stand_behind_the_loop

POOL = 400
POPULAR = 2000  # popular items looked at for the levels that a nearest-neighbour search does not reach
NEWEST = 5  # newest behaviours whose neighbours join
SHARE_OF_NEWEST = 0.125  # of the pool, for neighbours of the newest behaviours
SHARE_OF_POPULAR = 0.125  # of the pool, for popular items of any level


@dataclass(frozen=True)
class Recalled:
    """Catalogue rows without repetition; `near` is False when no neighbour search was possible."""

    rows: Int64[np.ndarray, " P"]
    near: bool


def use_one_thread() -> None:
    """Makes FAISS work in the calling thread alone. OpenMP holds this per thread: every worker thread must say it."""
    faiss.omp_set_num_threads(1)


def prepare_worker() -> None:
    """What a thread that ranks, or opens bundles beside those that do, says first."""
    use_one_thread()
    stand_behind_the_loop()


class Retriever:
    """Recall over one catalogue. Read-only after construction: safe to share between worker threads."""

    def __init__(self, encoder: Encoder, index: faiss.Index | None) -> None:
        self._catalogue: Catalogue = encoder.catalogue
        self._scale = encoder.scale
        self._index = index
        self._popular = _most_popular(self._catalogue)

    @property
    def popular(self) -> Int64[np.ndarray, " P"]:
        """The most popular rows, most popular first, equal ones by row."""
        return self._popular

    def warm_up(self) -> None:
        """One recall, so that the first caller does not pay for cold memory and lazy imports."""
        nothing = np.zeros(0, np.int64)
        self.recall(min(1, self._catalogue.n_items), nothing, None, nothing)

    def recall(
        self,
        trigger: int,
        newest: Int64[np.ndarray, " B"],
        intent: Float32[np.ndarray, " S"] | None,
        excluded: Int64[np.ndarray, " E"],
        n_wanted: int = POOL,
    ) -> Recalled:
        """At most `n_wanted` rows for a trigger's row, the rows of the newest behaviours and an intent over levels.

        With an intent each similarity level gets its share of what newest and popular leave, nearest first, and popular
        items of the level where neighbours do not reach; without one the nearest come first. What a level cannot fill
        goes to the next best.
        """
        banned = np.union1d(excluded, [0, trigger])
        near = self._neighbours(np.array([trigger]), 2 * n_wanted)
        around = self._neighbours(newest[-NEWEST:], n_wanted // NEWEST)
        proposed = _distinct([near, self._popular], banned)
        n_divided = n_wanted - int(n_wanted * (SHARE_OF_NEWEST + SHARE_OF_POPULAR))
        chosen = proposed if intent is None else proposed[self._by_level(trigger, proposed, intent, n_divided)]
        mixed = [
            chosen[:n_divided],
            _distinct([around], banned)[: int(n_wanted * SHARE_OF_NEWEST)],
            _distinct([self._popular], banned)[: int(n_wanted * SHARE_OF_POPULAR)],
            chosen,
        ]
        return Recalled(_distinct(mixed, banned)[:n_wanted], near=len(near) > 0)

    def _neighbours(self, rows: Int64[np.ndarray, " B"], n_each: int) -> Int64[np.ndarray, " P"]:
        """Rows near the given ones, nearest first per row; empty when no given row has a vector."""
        rows = rows[self._catalogue.norms[rows] > 0]
        if self._index is None or self._index.ntotal == 0 or len(rows) == 0 or n_each < 1:
            return np.zeros(0, np.int64)
        queries = self._catalogue.codes[rows].astype(np.float32)
        found: Int64[np.ndarray, "B k"] = self._index.search(queries, min(n_each, self._index.ntotal))[1]
        return found.T.reshape(
            -1
        )  # the first of each query, then the second of each: no behaviour crowds out the others

    def _by_level(
        self, trigger: int, rows: Int64[np.ndarray, " P"], intent: Float32[np.ndarray, " S"], n_wanted: int
    ) -> Int64[np.ndarray, " P"]:
        """Positions in `rows`, those within their level's quota first; both parts keep the order of `rows`."""
        levels = self._scale.level(self._catalogue.similarity(np.array([trigger]), rows))
        quota = np.zeros(len(intent) + 1, np.int64)
        quota[1:] = np.ceil(_proportions(intent) * n_wanted)
        within = _place_in_level(levels, len(quota)) < quota[levels]
        return np.argsort(~within, kind="stable")


def _proportions(intent: Float32[np.ndarray, " S"]) -> Float32[np.ndarray, " S"]:
    """The intent as shares that sum to 1; an intent that is no distribution asks for all levels alike."""
    weights = np.where(np.isfinite(intent), np.maximum(intent, 0), 0).astype(np.float32)
    total = float(weights.sum())
    return weights / total if total > 0 else np.full(len(intent), 1 / len(intent), np.float32)


def _place_in_level(levels: Int64[np.ndarray, " P"], n_levels: int) -> Int64[np.ndarray, " P"]:
    """How many rows of the same level stand before each row."""
    places = np.zeros(len(levels), np.int64)
    for level in range(n_levels):
        inside = levels == level
        places[inside] = np.arange(int(inside.sum()))
    return places


def _distinct(parts: Sequence[Int64[np.ndarray, "..."]], banned: Int64[np.ndarray, " E"]) -> Int64[np.ndarray, " P"]:
    """The rows of all parts at their first mention, without the banned ones and without FAISS's -1."""
    rows = np.concatenate(list(parts))
    rows = rows[_allowed(rows, banned)]
    _, first = np.unique(rows, return_index=True)
    distinct: Int64[np.ndarray, " P"] = rows[np.sort(first)]
    return distinct


def _allowed(rows: Int64[np.ndarray, " P"], banned: Int64[np.ndarray, " E"]) -> Bool[np.ndarray, " P"]:
    allowed: Bool[np.ndarray, " P"] = (rows > 0) & ~np.isin(rows, banned)
    return allowed


def _most_popular(catalogue: Catalogue) -> Int64[np.ndarray, " P"]:
    """Partial sort: a catalogue of millions is looked at once, at start."""
    popularity = np.asarray(catalogue.popularity[1:])
    n_kept = min(POPULAR, len(popularity))
    if n_kept == 0:
        return np.zeros(0, np.int64)
    best = np.argpartition(-popularity, n_kept - 1)[:n_kept]
    return best[np.lexsort((best, -popularity[best]))].astype(np.int64) + 1
