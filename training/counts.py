"""Clicks and impressions of the training days, by item and by pair (trigger, candidate). Used by `training.baselines`.

One pass over the request files. In memory: two numbers an item and three a pair that occurs, never the impressions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from service.contract.catalogue import Catalogue
from training.data.request_files import read_requests

ITEM_PRIOR = 20.0  # impressions that the overall click rate counts for in an item's rate
PAIR_PRIOR = 10.0  # impressions that the item's rate counts for in a pair's rate
_LOWEST_RATE = 1e-6  # days without a click still have no click rate of zero: its logarithm would be infinite

Impressions = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int8[np.ndarray, " N"]]


class PairCounts(NamedTuple):
    """Pairs as ascending codes (trigger row · number of rows + candidate row), with their counts."""

    codes: Int64[np.ndarray, " P"]
    shown: Int64[np.ndarray, " P"]
    clicked: Int64[np.ndarray, " P"]


@dataclass(frozen=True)
class Counts:
    """What was shown and clicked, by catalogue row (row 0: items that the catalogue does not know) and by pair."""

    shown: Int64[np.ndarray, " M1"]
    clicked: Int64[np.ndarray, " M1"]
    pairs: PairCounts

    def click_rate(self, candidates: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The items' click rates, shrunk towards the overall one; never 0 or 1."""
        overall = self.clicked.sum() / max(int(self.shown.sum()), 1)
        prior = ITEM_PRIOR * float(np.clip(overall, _LOWEST_RATE, 1 - _LOWEST_RATE))
        rate: Float64[np.ndarray, " N"] = (self.clicked[candidates] + prior) / (self.shown[candidates] + ITEM_PRIOR)
        return rate

    def pair_rate(
        self, triggers: Int64[np.ndarray, " N"], candidates: Int64[np.ndarray, " N"]
    ) -> Float64[np.ndarray, " N"]:
        """The click rates of these candidates below these triggers, shrunk towards the candidates' click rates."""
        if not len(self.pairs.codes):
            return self.click_rate(candidates)
        wanted = triggers * len(self.shown) + candidates
        place = np.minimum(np.searchsorted(self.pairs.codes, wanted), len(self.pairs.codes) - 1)
        known = self.pairs.codes[place] == wanted
        shown, clicked = self.pairs.shown[place] * known, self.pairs.clicked[place] * known
        rate: Float64[np.ndarray, " N"] = (clicked + PAIR_PRIOR * self.click_rate(candidates)) / (shown + PAIR_PRIOR)
        return rate


def count_requests(folder: Path, catalogue: Catalogue) -> Counts:
    """Counts a folder of request files. Raises DataError when there are none."""
    return count(_impressions(folder, catalogue), catalogue.n_items + 1)


def count(chunks: Iterable[Impressions], n_rows: int) -> Counts:
    """Counts impressions (trigger row, candidate row, click) that come in chunks.

    Chunks wait, each already reduced to its distinct pairs, until together they are as many as the pairs counted so
    far; so every pair is merged a logarithmic number of times, and at most twice the distinct pairs are held.
    """
    shown, clicked = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    merged, waiting, n_waiting = PairCounts(nothing, nothing, nothing), [], 0
    for triggers, candidates, clicks in chunks:
        shown += np.bincount(candidates, minlength=n_rows)
        clicked += np.bincount(candidates[clicks > 0], minlength=n_rows)
        waiting.append(_pairs_of(triggers * n_rows + candidates, clicks))
        n_waiting += len(waiting[-1].codes)
        if n_waiting >= len(merged.codes):
            merged, waiting, n_waiting = merge_pairs([merged, *waiting]), [], 0
    return Counts(shown, clicked, merge_pairs([merged, *waiting]))


def merge_pairs(parts: list[PairCounts]) -> PairCounts:
    """The sums of several counts."""
    codes, inverse = np.unique(np.concatenate([part.codes for part in parts]), return_inverse=True)
    shown, clicked = np.zeros_like(codes), np.zeros_like(codes)
    np.add.at(shown, inverse, np.concatenate([part.shown for part in parts]))
    np.add.at(clicked, inverse, np.concatenate([part.clicked for part in parts]))
    return PairCounts(codes, shown, clicked)


def _pairs_of(codes: Int64[np.ndarray, " N"], clicks: Int8[np.ndarray, " N"]) -> PairCounts:
    distinct, inverse, shown = np.unique(codes, return_inverse=True, return_counts=True)
    return PairCounts(distinct, shown, np.bincount(inverse[clicks > 0], minlength=len(distinct)))


def _impressions(folder: Path, catalogue: Catalogue) -> Iterator[Impressions]:
    for batch, clicks in read_requests(folder):
        triggers = catalogue.rows(batch.trigger.tolist())[batch.candidate_request]
        yield triggers, catalogue.rows(batch.candidate.tolist()), clicks
