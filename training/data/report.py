"""What a preparation found: counted while the requests stream past, kept in dataset.json, shown by `data stats`.

Called by `dataset.PreparedWriter` (one RequestReport per split) and by `fit_encoder` (SimilarityCounts). It counts; it
judges nothing (that is `check_requests`) and fits nothing (that is `fit_encoder`).
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64

from service.contract.catalogue import Catalogue
from service.contract.requests import RequestBatch
from service.contract.schema import FeatureSchema

N_CELLS = 4000  # cells of the similarity histogram over [-1, 1]: quantiles are exact to 0.0005
HISTORY_STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 1000)  # lower ends of the history-length classes


class SimilarityCounts:
    """A fine histogram of similarities to the trigger, with clicks: bounded memory for any number of candidates."""

    def __init__(self) -> None:
        self.shown = np.zeros(N_CELLS, dtype=np.int64)
        self.clicked = np.zeros(N_CELLS, dtype=np.int64)
        self.n_missing = 0

    def add(self, similarity: Float32[np.ndarray, " N"], clicks: Int8[np.ndarray, " N"]) -> None:
        """Counts candidates; those without a vector (similarity below -1) are counted apart."""
        known = similarity >= -1
        cell = np.clip(((similarity[known] + 1) * (N_CELLS / 2)).astype(np.int64), 0, N_CELLS - 1)
        self.shown += np.bincount(cell, minlength=N_CELLS)
        self.clicked += np.bincount(cell[clicks[known] == 1], minlength=N_CELLS)
        self.n_missing += int(len(similarity) - known.sum())

    @property
    def n_known(self) -> int:
        return int(self.shown.sum())

    def quantile(self, share: float) -> float:
        """The similarity below which `share` of the candidates lie; 0 when there are none."""
        if not self.n_known:
            return 0.0
        cell = int(np.searchsorted(np.cumsum(self.shown), share * self.n_known))
        return (min(cell, N_CELLS - 1) + 0.5) * 2 / N_CELLS - 1

    def levels(self, low: float, high: float, n_levels: int) -> list[dict[str, float]]:
        """Share and click rate of each equal-width level over [low, high]; what lies outside joins the end levels."""
        centre = (np.arange(N_CELLS) + 0.5) * 2 / N_CELLS - 1
        level = np.clip(np.floor((centre - low) / max(high - low, 1e-6) * n_levels), 0, n_levels - 1).astype(np.int64)
        shown = np.bincount(level, self.shown, n_levels)
        clicked = np.bincount(level, self.clicked, n_levels)
        width = (high - low) / n_levels
        return [
            {
                "from": round(low + j * width, 4),
                "share": _ratio(int(shown[j]), self.n_known),
                "click_rate": _ratio(int(clicked[j]), int(shown[j])),
            }
            for j in range(n_levels)
        ]

    def coarse(self, n_bars: int = 20) -> list[dict[str, float]]:
        """The histogram in `n_bars` bars over [-1, 1], empty ones left out."""
        shown = self.shown.reshape(n_bars, -1).sum(axis=1)
        clicked = self.clicked.reshape(n_bars, -1).sum(axis=1)
        return [
            {
                "from": round(2 * j / n_bars - 1, 4),
                "candidates": int(shown[j]),
                "click_rate": _ratio(int(clicked[j]), int(shown[j])),
            }
            for j in range(n_bars)
            if shown[j]
        ]


class RequestReport:
    """Counts of one split."""

    def __init__(self, schema: FeatureSchema, catalogue: Catalogue, n_levels: int) -> None:
        self.n_requests = 0
        self.similarity = SimilarityCounts()
        self._schema = schema
        self._catalogue = catalogue
        self._n_levels = n_levels
        self._n_candidates = self._n_clicks = self._n_requests_clicked = self._n_behaviours = 0
        self._unknown = {"trigger": 0, "candidate": 0, "behaviour": 0}
        self._missing = {f"{f.side}.{f.name}": 0 for f in (*schema.user, *schema.context)}
        self._history = np.zeros(len(HISTORY_STEPS), dtype=np.int64)
        self._first_at, self._last_at = np.iinfo(np.int64).max, np.iinfo(np.int64).min

    def add(self, batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> None:
        """Counts a batch of requests."""
        self.n_requests += batch.n_requests
        self._n_candidates += batch.n_candidates
        self._n_clicks += int(clicks.sum())
        self._n_requests_clicked += int(clicked_requests(batch, clicks).sum())
        self._first_at = min(self._first_at, int(batch.requested_at.min()))
        self._last_at = max(self._last_at, int(batch.requested_at.max()))
        self._add_items(batch, clicks)
        self._add_fields(batch)

    @property
    def window(self) -> tuple[int, int]:
        """First and last `requested_at`, epoch ms."""
        return self._first_at, self._last_at

    def to_dict(self) -> dict[str, Any]:
        """The report as it is saved."""
        low, high = self.similarity.quantile(0.01), self.similarity.quantile(0.99)
        unknown_of = {"trigger": self.n_requests, "candidate": self._n_candidates, "behaviour": self._n_behaviours}
        return {
            "requests": self.n_requests,
            "candidates": self._n_candidates,
            "clicks": self._n_clicks,
            "click_rate": _ratio(self._n_clicks, self._n_candidates),
            "requests_with_click": _ratio(self._n_requests_clicked, self.n_requests),
            "not_in_catalogue": {name: _ratio(count, unknown_of[name]) for name, count in self._unknown.items()},
            "missing": {name: _ratio(count, self.n_requests) for name, count in self._missing.items()},
            "candidates_without_similarity": _ratio(self.similarity.n_missing, self._n_candidates),
            "similarity_quantiles": {"1%": low, "50%": self.similarity.quantile(0.5), "99%": high},
            "similarity_histogram": self.similarity.coarse(),
            "levels_over_1_to_99_percent": self.similarity.levels(low, high, self._n_levels),
            "behaviours_per_request": _ratio(self._n_behaviours, self.n_requests),
            "history_lengths": {
                f"{step}+": _ratio(int(count), self.n_requests)
                for step, count in zip(HISTORY_STEPS, self._history.tolist(), strict=True)
            },
        }

    def _add_items(self, batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> None:
        triggers = self._catalogue.rows(batch.trigger.tolist())
        candidates = self._catalogue.rows(batch.candidate.tolist())
        self._unknown["trigger"] += int((triggers == 0).sum())
        self._unknown["candidate"] += int((candidates == 0).sum())
        self._unknown["behaviour"] += int((self._catalogue.rows(batch.behaviour_item.tolist()) == 0).sum())
        self.similarity.add(self._catalogue.similarity(triggers[batch.candidate_request], candidates), clicks)

    def _add_fields(self, batch: RequestBatch) -> None:
        lengths = np.diff(batch.behaviour_offsets)
        self._n_behaviours += int(lengths.sum())
        self._history += np.bincount(
            np.searchsorted(HISTORY_STEPS, lengths, side="right") - 1, minlength=len(HISTORY_STEPS)
        )
        for side, fields, values in (
            ("user", self._schema.user, batch.user),
            ("context", self._schema.context, batch.context),
        ):
            for field in fields:
                column = values.get(field.name)
                empty = batch.n_requests if column is None else sum(value is None for value in column)
                self._missing[f"{side}.{field.name}"] += int(empty)


def clicked_requests(batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> Bool[np.ndarray, " R"]:
    """Which requests have at least one click."""
    total: Int64[np.ndarray, " N1"] = np.concatenate([[0], np.cumsum(clicks, dtype=np.int64)])
    return np.asarray(np.diff(total[batch.candidate_offsets]) > 0)


def _ratio(part: float | np.integer, whole: float | np.integer) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0
