"""Bootstrap intervals and the paired test between two models. Called by `training.measures` and whoever compares runs.

What is drawn with replacement are clusters: users (an anonymous request is one of its own), or requests. All rows of a
cluster come and go together, so intervals hold although one user's clicks are alike. The same seed draws the same
clusters for every model: differences are paired.

Nearly every metric is a function of sums over rows (a mean, a weighted mean, a ratio, a divergence of means), so a
resample is a matrix product of counts and sums of clusters. Only the pooled AUC is not; it is counted again with
weights over candidates that were sorted once. More than `MAX_CLUSTERS` clusters are first thrown together into as many
bags, which are independent of each other as clusters are; that bounds time and memory and leaves intervals what they
were.

Never here: what a metric is (`training.metrics`, `training.top_k`, `training.calibration`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Num

from training.metrics import Clicks, Groups, Scores, auc

MAX_CLUSTERS = 20_000
_DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Resampling:
    """How often, from which seed, and what share of the resamples an interval holds.

    `n_auc`: resamples of a pooled AUC, which cost a pass over all candidates each.
    """

    n: int = 1000
    n_auc: int = 200
    seed: int = 0
    level: float = 0.95


USUAL = Resampling()


class Interval(NamedTuple):
    """A number on the split as it is, and the interval from its resamples. NaN where it is not defined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Left minus right on the same rows, its interval, and the two-sided p of "no difference"."""

    difference: float
    low: float
    high: float
    p: float
    n_rows: int
    n_clusters: int


@dataclass(frozen=True)
class Statistic:
    """A function of the sums over rows. `of_sums` maps [B, C] to [B]; `clusters` says what is drawn together.

    distance: at least 0 and pushed up by chance, as an absolute error or a divergence of means is; its interval is
    `reflected`.
    """

    columns: Float[np.ndarray, "rows C"]
    clusters: Int64[np.ndarray, " rows"]
    of_sums: Callable[[np.ndarray], np.ndarray]
    distance: bool = False

    @property
    def value(self) -> float:
        """On the rows as they are."""
        return float(self.of_sums(self.columns.sum(axis=0, keepdims=True))[0])


def ratio(
    numerator: Num[np.ndarray, " rows"], denominator: Num[np.ndarray, " rows"], clusters: Int64[np.ndarray, " rows"]
) -> Statistic:
    """Σ numerator / Σ denominator: any mean or weighted mean. NaN over nothing."""
    columns = np.stack([numerator, denominator], axis=1).astype(np.float64)
    return Statistic(columns, clusters, _ratio_of_sums)


def mean(values: Num[np.ndarray, " rows"], clusters: Int64[np.ndarray, " rows"]) -> Statistic:
    """The plain mean of the values that are numbers."""
    there = ~np.isnan(values)
    return ratio(values[there], np.ones(int(there.sum())), clusters[there])


def averaged(statistics: Sequence[Statistic]) -> Statistic:
    """One statistic for several runs (seeds) on the same rows: its columns are their means.

    For ratios of one denominator (GAUC and its kind) its value is the mean of their values. Raises ValueError when
    the rows are not the same.
    """
    first = statistics[0]
    for other in statistics[1:]:
        _check_same_rows(first, other)
    columns = np.mean([statistic.columns for statistic in statistics], axis=0)
    return Statistic(columns, first.clusters, first.of_sums)


def _check_same_rows(left: Statistic, right: Statistic) -> None:
    if not np.array_equal(left.clusters, right.clusters):
        raise ValueError(
            f"the two rankers were not scored on the same requests ({len(left.clusters)} and {len(right.clusters)} "
            "rows); score both on the same split of the same data"
        )


def _ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    return divided(sums[..., 0], sums[..., 1])


def divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0."""
    found = np.full(np.shape(denominator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=found, where=denominator != 0))


def intervals(statistics: Mapping[str, Statistic], resampling: Resampling = USUAL) -> dict[str, Interval]:
    """The interval of every statistic, all from the same draws.

    Clusters are those of all statistics together: a resample of a part of the rows has as many of them as chance gives.
    """
    if not statistics:
        return {}
    codes = np.unique(np.concatenate([statistic.clusters for statistic in statistics.values()]))
    n_bags = min(len(codes), MAX_CLUSTERS)
    sums = np.concatenate([bag_sums(found, codes, n_bags) for found in statistics.values()], axis=1)
    resampled = resampled_sums(sums, resampling)
    found, start = {}, 0
    for name, statistic in statistics.items():
        end = start + statistic.columns.shape[1]
        made = reflected if statistic.distance else percentile
        found[name] = made(statistic.value, statistic.of_sums(resampled[:, start:end]), resampling)
        start = end
    return found


def percentile(value: float, resampled: Float[np.ndarray, " B"], resampling: Resampling) -> Interval:
    """The interval between the percentiles of the resamples; those that are not defined are left out."""
    there = resampled[~np.isnan(resampled)]
    if not len(there):
        return Interval(value, float("nan"), float("nan"))
    outside = (1 - resampling.level) / 2
    low, high = np.quantile(there, [outside, 1 - outside])
    return Interval(value, float(low), float(high))


def reflected(value: float, resampled: Float[np.ndarray, " B"], resampling: Resampling) -> Interval:
    """The basic interval (Davison & Hinkley 1997, 5.2.1): the percentiles mirrored at the value, cut at 0.

    For distances: chance pushes a resample up as it pushed the value up, so percentiles lie above the value, some
    wholly. Mirrored they lie below by as much; the value itself is always held.
    """
    _, low, high = percentile(value, resampled, resampling)
    if np.isnan(low):
        return Interval(value, low, high)
    return Interval(value, min(value, max(0.0, 2 * value - high)), max(value, 2 * value - low))


def resampled_sums(sums: Float[np.ndarray, "G C"], resampling: Resampling) -> Float[np.ndarray, "B C"]:
    """The sums over `resampling.n` draws of G clusters with replacement, given each cluster's own sums."""
    parts = [counts @ sums for counts in draws(len(sums), resampling.n, resampling.seed)]
    return np.concatenate(parts) if parts else np.empty((0, sums.shape[1]))


def draws(n_clusters: int, n: int, seed: int) -> Iterator[Float[np.ndarray, "b G"]]:
    """How often each cluster is drawn, a few resamples at a time: whole counts as float64 for matrix products."""
    random = np.random.default_rng(seed)
    left = n if n_clusters else 0
    while left:
        b = min(left, max(1, _DRAWN_AT_ONCE // n_clusters))
        drawn = random.integers(0, n_clusters, (b, n_clusters)) + np.arange(b)[:, None] * n_clusters
        yield np.bincount(drawn.ravel(), minlength=b * n_clusters).reshape(b, n_clusters).astype(np.float64)
        left -= b


def bag_sums(statistic: Statistic, codes: Int64[np.ndarray, " G"], n_bags: int) -> Float[np.ndarray, "bags C"]:
    """The statistic's sums over each bag of clusters."""
    bag = np.searchsorted(codes, statistic.clusters) % max(n_bags, 1)
    columns = [np.bincount(bag, column, n_bags) for column in statistic.columns.T]
    return np.stack(columns, axis=1).astype(np.float64) if n_bags else np.empty((0, len(columns)))


def auc_interval(scores: Scores, clicks: Clicks, clusters: Groups, resampling: Resampling = USUAL) -> Interval:
    """The pooled AUC, with `resampling.n_auc` resamples of clusters."""
    return percentile(auc(scores, clicks), resampled_aucs(scores, clicks, clusters, resampling), resampling)


def resampled_aucs(scores: Scores, clicks: Clicks, clusters: Groups, resampling: Resampling) -> Float[np.ndarray, " B"]:
    """AUC of every resample: Σ w_p (W_below(p) + W_tied(p)/2) / (W_clicked · W_others), sorted once, ties one half."""
    codes, cluster = np.unique(clusters, return_inverse=True)
    n_bags = min(len(codes), MAX_CLUSTERS)
    cluster = cluster % max(n_bags, 1)
    clicked = np.asarray(clicks) > 0
    order = np.argsort(scores[~clicked], kind="stable")
    others, other_cluster = scores[~clicked][order], cluster[~clicked][order]
    below = np.searchsorted(others, scores[clicked], side="left")
    not_above = np.searchsorted(others, scores[clicked], side="right")
    right, pairs = [], []
    for counts in draws(n_bags, resampling.n_auc, resampling.seed):
        for weights in counts:
            of_clicks = weights[cluster[clicked]]
            total = np.concatenate([[0.0], np.cumsum(weights[other_cluster])])
            right.append(of_clicks @ (total[below] + total[not_above]) / 2)
            pairs.append(of_clicks.sum() * total[-1])
    return divided(np.array(right, dtype=np.float64), np.array(pairs, dtype=np.float64))


def paired_difference(left: Statistic, right: Statistic, resampling: Resampling = USUAL) -> Difference:
    """Whether two models differ on the same rows: both are computed on every resample, and subtracted.

    p = 2 · min(share of resampled differences ≤ 0, share ≥ 0), each share with one added above and below (Davison &
    Hinkley 1997, 4.2.3), at most 1: with 1000 resamples it is never below 0.002. Raises ValueError when the rows are
    not the same.
    """
    _check_same_rows(left, right)
    width = left.columns.shape[1]
    both = Statistic(
        np.concatenate([left.columns, right.columns], axis=1),
        left.clusters,
        lambda sums: left.of_sums(sums[..., :width]) - right.of_sums(sums[..., width:]),
    )
    codes = np.unique(both.clusters)
    sums = bag_sums(both, codes, min(len(codes), MAX_CLUSTERS))
    resampled = both.of_sums(resampled_sums(sums, resampling))
    return difference_of(both.value, resampled, resampling, len(left.clusters), len(codes))


def difference_of(
    value: float, resampled: Float[np.ndarray, " B"], resampling: Resampling, n_rows: int, n_clusters: int
) -> Difference:
    """A difference from its resamples; NaN in all places when there are none."""
    found = percentile(value, resampled, resampling)
    there = resampled[~np.isnan(resampled)]
    if not len(there):
        return Difference(*found, float("nan"), n_rows, n_clusters)
    not_above, not_below = int((there <= 0).sum()), int((there >= 0).sum())
    p = min(1.0, 2 * (1 + min(not_above, not_below)) / (1 + len(there)))
    return Difference(*found, p, n_rows, n_clusters)
