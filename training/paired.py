"""Named metrics as bootstrap statistics, and the paired test between rankers scored on the same split.

Called by `training.measures` (intervals) and by whoever compares runs. A ranker is a list of `Scored`, one a seed; one
seed is a list of one. Scores must be in order (`Scored.in_order`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64

from training.bootstrap import (
    USUAL,
    Difference,
    Resampling,
    Statistic,
    averaged,
    difference_of,
    mean,
    paired_difference,
    ratio,
    resampled_aucs,
)
from training.metrics import auc, group_aucs, log_losses
from training.scores import Scored, check_same_split
from training.top_k import ndcg

Unit = Literal["user", "request"]
SIGNIFICANT = 0.05
AUC = "auc"  # the one metric that is no function of sums


def clusters_of(scored: Scored, unit: Unit) -> Int64[np.ndarray, " N"]:
    """What is drawn together: the codes of the candidates' users, or of their requests."""
    return scored.user if unit == "user" else scored.request


def gauc_statistic(scored: Scored, by: Unit, unit: Unit, weighted: bool = True) -> Statistic:
    """GAUC per user or request, weighted by impressions or not. One row for each group that has an AUC."""
    group = clusters_of(scored, by)
    values, sizes, groups = group_aucs(scored.logits, scored.clicks, group)
    weights = sizes.astype(np.float64) if weighted else np.ones(len(sizes))
    return ratio(values * weights, weights, _clusters_of_groups(scored, group, groups, unit))


def ndcg_statistic(scored: Scored, k: int, unit: Unit) -> Statistic:
    """NDCG@k, the mean over requests with a click."""
    values, groups = ndcg(scored.logits, scored.clicks, scored.request, k)
    return mean(values, _clusters_of_groups(scored, scored.request, groups, unit))


def log_loss_statistic(scored: Scored, unit: Unit) -> Statistic:
    """The mean binary cross-entropy of the candidates."""
    return mean(log_losses(scored.logits, scored.clicks), clusters_of(scored, unit))


STATISTICS: Mapping[str, Callable[[Scored, Unit], Statistic]] = {
    "gauc_user": lambda scored, unit: gauc_statistic(scored, "user", unit),
    "gauc_request": lambda scored, unit: gauc_statistic(scored, "request", unit),
    "auc_per_request": lambda scored, unit: gauc_statistic(scored, "request", unit, weighted=False),
    "ndcg_at_5": lambda scored, unit: ndcg_statistic(scored, 5, unit),
    "ndcg_at_10": lambda scored, unit: ndcg_statistic(scored, 10, unit),
    "log_loss": log_loss_statistic,
}


def paired_test(
    left: Sequence[Scored],
    right: Sequence[Scored],
    metric: str = "gauc_request",
    unit: Unit = "user",
    resampling: Resampling = USUAL,
) -> Difference:
    """Left minus right, each the mean of its seeds, on the same resamples of users (or requests) of one split.

    `metric`: a key of STATISTICS, or "auc" (fewer resamples). Raises ValueError for another metric, and for scores of
    other candidates. The interval is that of the split's users; how much the seeds of a ranker differ is not in it.
    """
    for other in (*left[1:], *right):
        check_same_split(left[0], other)
    if metric == AUC:
        return _paired_aucs(left, right, unit, resampling)
    if metric not in STATISTICS:
        raise ValueError(f"no paired test for {metric!r}; there is one for {', '.join((AUC, *STATISTICS))}")
    of = STATISTICS[metric]
    one, two = (averaged([of(scored, unit) for scored in ranker]) for ranker in (left, right))
    return paired_difference(one, two, resampling)


def verdict(found: Difference, left: str, right: str, what: str = "GAUC per request") -> str:
    """A plain sentence on whether the left one is better, for a metric of which more is better."""
    if np.isnan(found.p):
        return f"{what} could not be measured, so {left} and {right} cannot be compared."
    numbers = (
        f"{found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, p = {found.p:.3f}, "
        f"from {found.n_clusters:,} independent groups"
    )
    if found.p >= SIGNIFICANT:
        return f"{left} is not distinguishable from {right} in {what} ({numbers})."
    return f"{left} is {'better' if found.difference > 0 else 'worse'} than {right} in {what} ({numbers})."


def _paired_aucs(left: Sequence[Scored], right: Sequence[Scored], unit: Unit, resampling: Resampling) -> Difference:
    clusters = clusters_of(left[0], unit)
    values, resampled = [], []
    for ranker in (left, right):
        values.append(np.mean([auc(scored.logits, scored.clicks) for scored in ranker]))
        each = [resampled_aucs(scored.logits, scored.clicks, clusters, resampling) for scored in ranker]
        resampled.append(np.mean(each, axis=0))
    difference = float(values[0] - values[1])
    n_clusters = len(np.unique(clusters))
    return difference_of(difference, resampled[0] - resampled[1], resampling, len(clusters), n_clusters)


def _clusters_of_groups(
    scored: Scored, group: Int64[np.ndarray, " N"], groups: Int64[np.ndarray, " G"], unit: Unit
) -> Int64[np.ndarray, " G"]:
    """The cluster of each group, that of its first candidate: a user is one cluster, a request is one user's.

    A user's own group drawn by requests would be torn apart, so it is then a cluster of its own.
    """
    clusters = clusters_of(scored, unit)
    if clusters is group or (unit == "request" and group is scored.user):
        return groups
    codes, first = np.unique(group, return_index=True)
    found: Int64[np.ndarray, " G"] = clusters[first[np.searchsorted(codes, groups)]]
    return found
