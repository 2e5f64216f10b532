"""The leakage alarm: does one thing alone tell the clicks? Nothing honest does so with an AUC above 0.95.

Called by `check_requests`. Everything is counted per encoded id, so memory is the size of the vocabularies: click rates
per id are learnt from the training days and judged on the validation days. Fields of a candidate (its item's fields,
its place on the page, its similarity to the trigger, whether it stands in the history) are judged against its click;
fields of a request against whether it has one.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from service.contract.encoder import Encoder, ModelInputs
from service.contract.requests import RequestBatch
from training.data.report import clicked_requests

N_PLACES = 200  # places on a page that are told apart
N_BINS = 64  # of similarity
_SMOOTHING = 1.0  # clicks added at the average rate: an id seen once says little


class LabelCounts:
    """Per field and encoded id: how often it stood there, and how often with the label."""

    def __init__(self, encoder: Encoder) -> None:
        self.shown: dict[str, Int64[np.ndarray, " V"]] = {}
        self.labelled: dict[str, Int64[np.ndarray, " V"]] = {}
        self._encoder = encoder

    def add(self, batch: RequestBatch, clicks: Int8[np.ndarray, " N"], inputs: ModelInputs) -> None:
        """Counts a batch and its encoded form."""
        schema, sizes = self._encoder.schema, self._encoder.sizes
        has_click, is_clicked = clicked_requests(batch, clicks), clicks == 1
        for place, field in enumerate(schema.user):
            self._count(f"user.{field.name}", inputs.user_fields[:, place], sizes.user[place], has_click)
        for place, field in enumerate(schema.context):
            self._count(f"context.{field.name}", inputs.context_fields[:, place], sizes.context[place], has_click)
        for place, field in enumerate(schema.item):
            self._count(f"trigger.{field.name}", inputs.trigger_fields[:, place], sizes.item[place], has_click)
            self._count(f"candidate.{field.name}", inputs.candidate_fields[:, place], sizes.item[place], is_clicked)
        on_page = np.arange(batch.n_candidates) - batch.candidate_offsets[batch.candidate_request]
        self._count("position on the page", np.minimum(on_page, N_PLACES - 1), N_PLACES, is_clicked)
        similarity = np.clip((inputs.candidate_similarity + 1) * (N_BINS / 2), -1, N_BINS - 1).astype(np.int64) + 1
        self._count("similarity to the trigger", similarity, N_BINS + 1, is_clicked)
        self._count("candidate in the history", in_history(batch).astype(np.int64), 2, is_clicked)

    def _count(self, name: str, ids: np.ndarray, n_ids: int, label: Bool[np.ndarray, " X"]) -> None:
        if name not in self.shown:
            self.shown[name], self.labelled[name] = np.zeros(n_ids, np.int64), np.zeros(n_ids, np.int64)
        self.shown[name] += np.bincount(ids, minlength=n_ids)
        self.labelled[name] += np.bincount(ids[label], minlength=n_ids)


def single_field_aucs(train: LabelCounts, judged: LabelCounts) -> dict[str, float]:
    """AUC of each field alone on `judged`, scored by its ids' click rates in `train`; 0.5 where a class is missing."""
    return {
        name: binned_auc(_rates(train.shown[name], train.labelled[name]), judged.shown[name], judged.labelled[name])
        for name in judged.shown
        if name in train.shown
    }


def binned_auc(
    score: Float64[np.ndarray, " V"], shown: Int64[np.ndarray, " V"], labelled: Int64[np.ndarray, " V"]
) -> float:
    """AUC of `score` over bins that hold `shown` rows, `labelled` of them positive; equal scores count half."""
    _, group = np.unique(score, return_inverse=True)
    positives = np.bincount(group, labelled).astype(np.float64)
    negatives = np.bincount(group, shown - labelled).astype(np.float64)
    pairs = positives.sum() * negatives.sum()
    if pairs == 0:
        return 0.5
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def in_history(batch: RequestBatch) -> Bool[np.ndarray, " N"]:
    """Whether a candidate stands among its request's behaviours."""
    _, codes = np.unique(np.concatenate([batch.behaviour_item, batch.candidate]).astype(str), return_inverse=True)
    n_codes = int(codes.max(initial=0)) + 1
    n_behaviours = len(batch.behaviour_item)
    past = batch.behaviour_request * n_codes + codes[:n_behaviours]
    return np.isin(batch.candidate_request * n_codes + codes[n_behaviours:], past)


def stability(train: Int64[np.ndarray, " V"], later: Int64[np.ndarray, " V"]) -> float:
    """PSI: population stability index of two distributions over ids; above 0.25 is called a large shift.

    Empty ids count as half an occurrence, so that a new value is a finite surprise.
    """
    p, q = (np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum() for counts in (train, later))
    return float(((p - q) * np.log(p / q)).sum())


def _rates(shown: Int64[np.ndarray, " V"], labelled: Int64[np.ndarray, " V"]) -> Float64[np.ndarray, " V"]:
    average = labelled.sum() / max(shown.sum(), 1)
    return np.asarray((labelled + _SMOOTHING * average) / (shown + _SMOOTHING), np.float64)
