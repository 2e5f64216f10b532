"""The paired difference of two rankers with both sources of chance in it: the users of the split, and the seeds.

Called by `training.report_tests` for the claims. The interval of `training.paired` is that of users alone: it says
whether these trained weights differ, not whether the models do.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from training.bootstrap import MAX_CLUSTERS, USUAL, Difference, Resampling, bag_sums, difference_of, resampled_sums
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
    statistics = [STATISTICS[metric](scored, unit) for scored in (*left, *right)]
    clusters, width = statistics[0].clusters, statistics[0].columns.shape[1]
    codes = np.unique(clusters)
    sums = [bag_sums(statistic, codes, min(len(codes), MAX_CLUSTERS)) for statistic in statistics]
    resampled = resampled_sums(np.concatenate(sums, axis=1), resampling)
    starts = range(0, resampled.shape[1], width)
    of_sums = statistics[0].of_sums
    each = np.stack([of_sums(resampled[:, start : start + width]) for start in starts])
    one, two = each[: len(left)], each[len(left) :]
    random = np.random.default_rng(resampling.seed + 1)
    drawn = drawn_mean(one - two, random) if same_weights else drawn_mean(one, random) - drawn_mean(two, random)
    values = [statistic.value for statistic in statistics]
    difference = float(np.mean(values[: len(left)]) - np.mean(values[len(left) :]))
    return difference_of(difference, drawn, resampling, len(clusters), len(codes))


def drawn_mean(values: Float64[np.ndarray, "S B"], random: np.random.Generator) -> Float64[np.ndarray, " B"]:
    """In each resample the mean of S seeds that are drawn with replacement.

    A mean of S drawn values varies by (S - 1)/S too little, for deviations are from their own mean; with few seeds that
    is much, so deviations are stretched by sqrt(S / (S - 1)) (Davison & Hinkley 1997, 2.3).
    """
    n_seeds, n = values.shape
    picked = np.take_along_axis(values, random.integers(0, n_seeds, (n_seeds, n)), axis=0).mean(axis=0)
    middle = values.mean(axis=0)
    found: Float64[np.ndarray, " B"] = middle + (picked - middle) * np.sqrt(n_seeds / (n_seeds - 1))
    return found
