"""What counting alone ranks by: the lines that a model must beat. Called by `training.evaluate`.

Counts come from the training days only. A candidate's rates are smoothed towards what is known without it: the item's
click rate towards the overall one, the pair's (trigger, candidate) towards the item's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int8, Int64

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from training.data.dataset import Split
from training.data.labels import make_labels
from training.data.request_files import read_requests
from training.scores import Scored, ranking_numbers

ITEM_SMOOTHING = 20.0  # impressions that the rate above counts as
PAIR_SMOOTHING = 5.0


@dataclass(frozen=True)
class Counts:
    """Clicks and impressions of the training days: by catalogue row, and by pair (sorted codes)."""

    item_clicks: Int64[np.ndarray, " M1"]
    item_shown: Int64[np.ndarray, " M1"]
    pairs: Int64[np.ndarray, " P"]
    pair_clicks: Int64[np.ndarray, " P"]
    pair_shown: Int64[np.ndarray, " P"]

    def item_rate(self, rows: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """Smoothed click rate of the items."""
        overall = self.item_clicks.sum() / max(self.item_shown.sum(), 1)
        smoothed = (self.item_clicks + ITEM_SMOOTHING * overall) / (self.item_shown + ITEM_SMOOTHING)
        rate: Float64[np.ndarray, " N"] = smoothed[rows]
        return rate

    def pair_rate(self, triggers: Int64[np.ndarray, " N"], rows: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """Smoothed click rate of the candidate below this trigger."""
        code = triggers * len(self.item_clicks) + rows
        place = np.minimum(np.searchsorted(self.pairs, code), len(self.pairs) - 1)
        known = self.pairs[place] == code
        clicks, shown = self.pair_clicks[place] * known, self.pair_shown[place] * known
        rate: Float64[np.ndarray, " N"] = (clicks + PAIR_SMOOTHING * self.item_rate(rows)) / (shown + PAIR_SMOOTHING)
        return rate


def count(train_folder: Path, catalogue: Catalogue) -> Counts:
    """Counts the training requests."""
    n_rows = catalogue.n_items + 1
    clicks, shown = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
    codes: list[Int64[np.ndarray, " P"]] = []
    clicked: list[Int8[np.ndarray, " P"]] = []
    for batch, batch_clicks in read_requests(train_folder):
        triggers, rows = _rows(batch, catalogue)
        shown += np.bincount(rows, minlength=n_rows)
        clicks += np.bincount(rows[batch_clicks > 0], minlength=n_rows)
        codes.append(triggers * n_rows + rows)
        clicked.append(batch_clicks)
    pairs, inverse = np.unique(np.concatenate(codes), return_inverse=True)
    pair_clicks = np.bincount(inverse[np.concatenate(clicked) > 0], minlength=len(pairs))
    return Counts(clicks, shown, pairs, pair_clicks, np.bincount(inverse, minlength=len(pairs)))


def baseline_numbers(data_folder: Path, split: Split, encoder: Encoder) -> dict[str, dict[str, float]]:
    """Ranking numbers of each baseline on a split: click rate, pair rate, similarity to the trigger."""
    catalogue = encoder.catalogue
    counts = count(data_folder / "train", catalogue)
    parts: list[tuple[Scored, dict[str, np.ndarray]]] = []
    for batch, clicks in read_requests(data_folder / split):
        triggers, rows = _rows(batch, catalogue)
        similarity = catalogue.similarity(triggers, rows)
        scores = {
            "click_rate": counts.item_rate(rows),
            "pair_rate": counts.pair_rate(triggers, rows),
            "similarity": similarity.astype(np.float64),
        }
        parts.append((_groups(batch, clicks, similarity, encoder), scores))
    scored = [part for part, _ in parts]
    whole = Scored(
        logits=np.concatenate([part.logits for part in scored]),
        clicks=np.concatenate([part.clicks for part in scored]),
        user=np.concatenate([part.user for part in scored]),
        request=np.concatenate([part.request for part in scored]),
        has_intent=np.concatenate([part.has_intent for part in scored]),
        intent_label=np.concatenate([part.intent_label for part in scored]),
        intent=None,
    )
    names = parts[0][1]
    return {name: ranking_numbers(np.concatenate([values[name] for _, values in parts]), whole) for name in names}


def _groups(batch: RequestBatch, clicks: Int8[np.ndarray, " N"], similarity: np.ndarray, encoder: Encoder) -> Scored:
    labels = make_labels(batch, clicks, similarity, encoder.scale)
    request = batch.candidate_request
    return Scored(
        logits=similarity,
        clicks=labels.clicks,
        user=labels.user_group[request],
        request=labels.request_group[request],
        has_intent=labels.has_intent,
        intent_label=labels.intent,
        intent=None,
    )


def _rows(batch: RequestBatch, catalogue: Catalogue) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    triggers = catalogue.rows(batch.trigger.tolist())[batch.candidate_request]
    return triggers, catalogue.rows(batch.candidate.tolist())
