"""Ranking metrics, vectorised over numpy arrays. Called by `training.scores`, `training.baselines` and
`training.measures`; knows no model. docs/metrics.md says what each one is.

Ties count one half. Groups with clicks only or no clicks have no AUC and are left out of the mean.
Never here: probabilities (`training.calibration`), the first k of a page (`training.top_k`), intervals
(`training.bootstrap`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Num

Scores = Float[np.ndarray, " N"]
Clicks = Num[np.ndarray, " N"]
Groups = Int64[np.ndarray, " N"]


class GroupAucs(NamedTuple):
    """AUC, impressions and code of every group that has both kinds, by ascending code."""

    values: Float[np.ndarray, " G"]
    sizes: Int64[np.ndarray, " G"]
    groups: Int64[np.ndarray, " G"]


def auc(scores: Scores, clicks: Clicks) -> float:
    """Share of (clicked, not clicked) pairs in the right order; NaN when one of the two is missing."""
    values = group_aucs(scores, clicks, np.zeros(len(scores), dtype=np.int64)).values
    return float(values[0]) if len(values) else float("nan")


def gauc(scores: Scores, clicks: Clicks, groups: Groups, weighted: bool = True) -> float:
    """Mean AUC of the groups (users or requests), by default weighted by their impressions (DAIAN eq. 23).

    NaN when no group has both kinds.
    """
    values, sizes, _ = group_aucs(scores, clicks, groups)
    if not len(values):
        return float("nan")
    return float(np.average(values, weights=sizes if weighted else None))


def ranking_numbers(scores: Scores, clicks: Clicks, user: Groups, request: Groups) -> dict[str, float]:
    """AUC and its means by user and request for any scores of a split, a model's or a counting line's.

    gauc_* are weighted by impressions; auc_per_request is the plain mean.
    """
    return {
        "auc": auc(scores, clicks),
        "gauc_user": gauc(scores, clicks, user),
        "gauc_request": gauc(scores, clicks, request),
        "auc_per_request": gauc(scores, clicks, request, weighted=False),
    }


def group_aucs(scores: Scores, clicks: Clicks, groups: Groups) -> GroupAucs:
    """AUC and impressions of every group that has both kinds, in the order of the group codes."""
    if not len(scores):
        return GroupAucs(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    order = np.lexsort((scores, groups))
    group, score, clicked = groups[order], scores[order], np.asarray(clicks)[order] > 0
    starts = starts_of_runs(group[1:] != group[:-1])
    sizes = np.diff(np.append(starts, len(group)))
    ranks = _average_ranks(group, score) - np.repeat(starts, sizes)
    n_clicked = np.add.reduceat(clicked.astype(np.int64), starts)
    rank_sums = np.add.reduceat(np.where(clicked, ranks, 0.0), starts)
    n_pairs = n_clicked * (sizes - n_clicked)
    both = n_pairs > 0
    values = (rank_sums[both] - n_clicked[both] * (n_clicked[both] + 1) / 2) / n_pairs[both]
    return GroupAucs(values, sizes[both], group[starts][both])


def _average_ranks(group: Groups, score: Scores) -> Float[np.ndarray, " N"]:
    """1-based ranks over the whole sorted array, equal scores of a group sharing their mean rank."""
    starts = starts_of_runs((group[1:] != group[:-1]) | (score[1:] != score[:-1]))
    sizes = np.diff(np.append(starts, len(group)))
    return np.repeat(starts + (sizes + 1) / 2, sizes)


def starts_of_runs(changes: Bool[np.ndarray, " N1"]) -> Int64[np.ndarray, " G"]:
    """Where the runs of a sorted array begin, given where a value differs from the one before it."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def rela_impr(value: float, base: float) -> float:
    """Relative improvement over `base` of what lies above chance, in percent (DAIAN eq. 24). For AUC and GAUC alike."""
    return ((value - 0.5) / (base - 0.5) - 1.0) * 100.0


def log_loss(logits: Scores, clicks: Clicks) -> float:
    """Mean binary cross-entropy, in nats."""
    return float(np.mean(log_losses(logits, clicks)))


def log_losses(logits: Scores, clicks: Clicks) -> Float[np.ndarray, " N"]:
    """The binary cross-entropy of every candidate, in nats."""
    losses: Float[np.ndarray, " N"] = np.logaddexp(0.0, logits.astype(np.float64)) - np.asarray(clicks) * logits
    return losses


def js_divergence(left: Float[np.ndarray, "*B S"], right: Float[np.ndarray, "*B S"]) -> Float[np.ndarray, "*B"]:
    """Jensen-Shannon divergence along the last axis, in nats: 0 for equal distributions, log 2 for disjoint ones."""
    middle = (left + right) / 2
    divergence: Float[np.ndarray, "*B"] = np.asarray((_kl(left, middle) + _kl(right, middle)) / 2)
    return divergence


def js_of_means(predicted: Float[np.ndarray, "R S"], label: Float[np.ndarray, "R S"]) -> float:
    """JS of the two population means: what the paper's figure shows."""
    return float(js_divergence(predicted.mean(0), label.mean(0)))


def js_per_request(predicted: Float[np.ndarray, "R S"], label: Float[np.ndarray, "R S"]) -> float:
    """Mean JS of each request. Much larger than `js_of_means`: a single request's label is near one-hot."""
    return float(js_divergence(predicted, label).mean())


def _kl(p: Float[np.ndarray, "*B S"], q: Float[np.ndarray, "*B S"]) -> Float[np.ndarray, "*B"]:
    ratio = np.divide(p, q, out=np.ones_like(p, dtype=np.float64), where=p > 0)
    divergence: Float[np.ndarray, "*B"] = np.asarray(np.sum(p * np.log(ratio), axis=-1))
    return divergence
