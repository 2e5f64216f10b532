"""The paired difference of two rankers with both sources of chance in it: the users of the split, and the seeds.

Called by `training.report_tests` and `training.report_diversity` for the claims. The interval of `training.paired` is
that of users alone: it says whether these trained weights differ, not whether the models do.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from training.bootstrap import (
    MAX_CLUSTERS,
    USUAL,
    Difference,
    Resampling,
    Statistic,
    bag_sums,
    difference_of,
    resampled_sums,
)
from training.paired import STATISTICS, Unit
from training.scores import Scored, check_same_split

FEWEST_SEEDS = 2


def difference_over_seeds(
    left: Sequence[Scored],
    right: Sequence[Scored],
    metric: str,
    same_weights: bool = False,
    unit: Unit = "user",
    resampling: Resampling = USUAL,
) -> Difference:
    """Left minus right; every resample draws users once for all, and with replacement seeds of either side.

    `same_weights`: the k-th of the left and of the right are one trained model (with and without its trigger), so
    their seeds are drawn together. Raises ValueError for fewer than two seeds, for a metric that is not in STATISTICS,
    and for scores of other candidates.
    """
    if min(len(left), len(right)) < FEWEST_SEEDS or metric not in STATISTICS:
        raise ValueError(f"at least {FEWEST_SEEDS} seeds of either side and one of {', '.join(STATISTICS)} are needed")
    for other in (*left[1:], *right):
        check_same_split(left[0], other)
    of = STATISTICS[metric]
    one, two = ([of(scored, unit) for scored in side] for side in (left, right))
    return difference_of_seeds(one, two, same_weights, resampling)


def difference_of_seeds(
    left: Sequence[Statistic], right: Sequence[Statistic], same_weights: bool = False, resampling: Resampling = USUAL
) -> Difference:
    """The same for any statistic, one a seed, all over the same rows.

    A side of one seed has the chance of users alone.
    """
    each = resampled_by_seed((*left, *right), resampling)
    one, two = each[: len(left)], each[len(left) :]
    random = np.random.default_rng(resampling.seed + 1)
    drawn = drawn_mean(one - two, random) if same_weights else drawn_mean(one, random) - drawn_mean(two, random)
    difference = float(np.mean([found.value for found in left]) - np.mean([found.value for found in right]))
    clusters = left[0].clusters
    return difference_of(difference, drawn, resampling, len(clusters), len(np.unique(clusters)))


def resampled_by_seed(statistics: Sequence[Statistic], resampling: Resampling = USUAL) -> Float64[np.ndarray, "S B"]:
    """Each of them on B resamples of users, which are the same for all. Raises ValueError for other rows."""
    first = statistics[0]
    if any(not np.array_equal(first.clusters, other.clusters) for other in statistics[1:]):
        raise ValueError("the seeds were not scored on the same requests; score all on the same split of the same data")
    codes, width = np.unique(first.clusters), first.columns.shape[1]
    sums = [bag_sums(statistic, codes, min(len(codes), MAX_CLUSTERS)) for statistic in statistics]
    resampled = resampled_sums(np.concatenate(sums, axis=1), resampling)
    starts = range(0, resampled.shape[1], width)
    return np.stack([first.of_sums(resampled[:, start : start + width]) for start in starts])


def drawn_mean(values: Float64[np.ndarray, "S B"], random: np.random.Generator) -> Float64[np.ndarray, " B"]:
    """In each resample the mean of S seeds that are drawn with replacement.

    A mean of S drawn values varies by (S - 1)/S too little, for deviations are from their own mean; with few seeds that
    is much, so deviations are stretched by sqrt(S / (S - 1)) (Davison & Hinkley 1997, 2.3). One seed stays as it is.
    """
    n_seeds, n = values.shape
    if n_seeds == 1:
        return np.asarray(values[0])
    picked = np.take_along_axis(values, random.integers(0, n_seeds, (n_seeds, n)), axis=0).mean(axis=0)
    middle = values.mean(axis=0)
    found: Float64[np.ndarray, " B"] = middle + (picked - middle) * np.sqrt(n_seeds / (n_seeds - 1))
    return found
