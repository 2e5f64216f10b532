"""Retriever: candidates near a trigger when the caller sends none.

Made by the runtime from the bundle's FAISS index and catalogue; called by the ranker in a worker thread, after the
request graph, because the predicted intent decides how many candidates each similarity level may send. FAISS and one
popular list propose, exact similarities of the catalogue decide the level; nothing here scores or orders for the page.
"""

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
        rank = np.argsort(self._popular)
        self._popular_by_row = self._popular[rank], rank

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
        banned = np.sort(np.concatenate([excluded, [trigger]]))
        near = self._neighbours(np.array([trigger]), 2 * n_wanted)
        around = self._neighbours(newest[-NEWEST:], n_wanted // NEWEST)
        near_first = near[_allowed(near, banned)]  # of one search: no row twice
        proposed = np.concatenate([near_first, self._popular_without(np.concatenate([near_first, banned]))])
        n_divided = n_wanted - int(n_wanted * (SHARE_OF_NEWEST + SHARE_OF_POPULAR))
        chosen = proposed if intent is None else proposed[self._by_level(trigger, proposed, intent, n_divided)]
        n_popular = int(n_wanted * SHARE_OF_POPULAR)
        popular = self._popular[: n_popular + len(banned)]
        mixed = [
            chosen[:n_divided],
            _distinct(around[_allowed(around, banned)])[: int(n_wanted * SHARE_OF_NEWEST)],
            popular[_allowed(popular, banned)][:n_popular],
            chosen[:n_wanted],  # alone as many as are wanted
        ]
        return Recalled(_distinct(np.concatenate(mixed))[:n_wanted], near=len(near) > 0)

    def _popular_without(self, rows: Int64[np.ndarray, " X"]) -> Int64[np.ndarray, " P"]:
        """The popular rows but these, most popular first. Searched in the popular rows by row, not all sorted anew."""
        by_row, rank = self._popular_by_row
        at = by_row.searchsorted(rows)
        kept = np.ones(len(by_row), np.bool_)
        if len(by_row):
            kept[rank.take(at, mode="clip")[by_row.take(at, mode="clip") == rows]] = False
        return self._popular[kept]

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
    by_level = levels.argsort(kind="stable")
    counts = np.bincount(levels, minlength=n_levels)
    places = np.empty(len(levels), np.int64)
    places[by_level] = np.arange(len(levels)) - (counts.cumsum() - counts).repeat(counts)
    return places


def _distinct(rows: Int64[np.ndarray, " X"]) -> Int64[np.ndarray, " P"]:
    """The rows at their first mention."""
    return np.array(list(dict.fromkeys(rows.tolist())), np.int64)


def _allowed(rows: Int64[np.ndarray, " P"], banned: Int64[np.ndarray, " E"]) -> Bool[np.ndarray, " P"]:
    """False for the banned ones (at least one, ascending) and FAISS's -1."""
    is_banned = banned.take(banned.searchsorted(rows), mode="clip") == rows
    allowed: Bool[np.ndarray, " P"] = (rows > 0) & ~is_banned
    return allowed


def _most_popular(catalogue: Catalogue) -> Int64[np.ndarray, " P"]:
    """Partial sort: a catalogue of millions is looked at once, at start."""
    popularity = np.asarray(catalogue.popularity[1:])
    n_kept = min(POPULAR, len(popularity))
    if n_kept == 0:
        return np.zeros(0, np.int64)
    best = np.argpartition(-popularity, n_kept - 1)[:n_kept]
    return best[np.lexsort((best, -popularity[best]))].astype(np.int64) + 1
