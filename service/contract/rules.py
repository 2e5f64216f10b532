"""The numbers of the contract: HistoryRules and SimilarityScale.

Chosen by a data set or fitted by training.data.fit_encoder, carried by the encoder, part of its fingerprint. Applied
by history.py and by whoever needs a level: this module only holds them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64

from service.contract.errors import SchemaError

MISSING = -2.0  # the similarity of what cannot be compared
SPARE = 8  # behaviours kept beyond what the rules want
LEAST_RECALL = 0.95  # of the exact nearest items, that the recall index of a bundle must find


@dataclass(frozen=True)
class HistoryRules:
    """The rules, in seconds and counts. They are part of the fingerprint.

    `opening_window_s`: clicks on the trigger within this time before the request are dropped. Online the click that
    opened the page may or may not have reached the store when the page is ranked; dropped on both sides it cannot
    make them differ (models trap T9). Older clicks on the same item stay.
    `related_*`: the window and number of behaviours that FAISS searches for those similar to the trigger. The store
    must keep as many (`DAIAN_BEHAVIOURS_KEEP`), or serving would find fewer than training did; a start checks it.
    """

    window_s: int = 14 * 86_400
    max_length: int = 50
    opening_window_s: int = 1_800
    related_window_s: int = 14 * 86_400
    related_searched: int = 50
    related_max: int = 50
    related_threshold: float = 0.667
    types: tuple[str, ...] = ("click", "favourite", "cart", "purchase")

    @property
    def kept(self) -> int:
        """How many of the newest behaviours a store or a file must keep: dropping clicks that opened the page then
        still leaves as many as the rules want.
        """
        return max(self.max_length, self.related_searched) + SPARE


@dataclass(frozen=True)
class SimilarityScale:
    """Levels of similarity: `n_levels` equal bins over [low, high]; what lies outside falls into the end bins.

    DAIAN section 4.1 bins equally and leaves the range open; encoders fill only a part of [-1, 1], so it is data.
    """

    low: float = 0.0
    high: float = 1.0
    n_levels: int = 6

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.n_levels >= 2):
            raise SchemaError(
                f"similarity range [{self.low}, {self.high}] in {self.n_levels} levels: need low < high, >= 2"
            )

    @property
    def edges(self) -> Float32[np.ndarray, " S1"]:
        """The S + 1 edges, ascending. Models compare with the inner ones: the same float32 numbers everywhere."""
        return self._edges.copy()

    @cached_property
    def _edges(self) -> Float32[np.ndarray, " S1"]:
        return np.linspace(self.low, self.high, self.n_levels + 1).astype(np.float32)

    def level(self, similarity: Float32[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        """1..S, a value on an edge belongs to the level above; 0 where there is no vector to compare."""
        levels = 1 + self._edges[1:-1].searchsorted(similarity, side="right")
        return np.where(similarity == np.float32(MISSING), np.int64(0), levels)
