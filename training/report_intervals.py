"""95 % intervals of a row's numbers, and of RelaImpr, with both sources of chance in them: users and seeds.

Called by `training.report_numbers` when a comparison's report is written, from the kept test scores, and by
`training.evaluate` for RelaImpr of one run. Resamples are those of `training.report_seeds`; one seed has the chance of
users alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from training.bootstrap import USUAL, Interval, Resampling, Statistic, percentile, ratio, reflected
from training.calibration import probabilities
from training.measures import ece_statistic
from training.metrics import rela_impr
from training.paired import STATISTICS, Unit, clusters_of
from training.report_seeds import drawn_mean, resampled_by_seed
from training.scores import Scored, check_same_split

Number = dict[str, float]


def auc_statistic(scored: Scored, unit: Unit) -> Statistic:
    """The pooled AUC to first order: AUC + the mean influence of the drawn candidates.

    A candidate's influence is how far its own share of right pairs lies from the AUC, over the share of its kind; all
    of them are 0 together. Exact on the split itself; a resample costs no pass over the candidates.
    """
    clicked = scored.clicks > 0
    n_clicked, n = int(clicked.sum()), len(clicked)
    right = np.full(n, np.nan)
    if 0 < n_clicked < n:
        right[clicked] = _share_below(scored.logits[~clicked], scored.logits[clicked])
        right[~clicked] = 1.0 - _share_below(scored.logits[clicked], scored.logits[~clicked])
    value = right[clicked].mean() if n_clicked else np.nan
    share = np.where(clicked, n_clicked, n - n_clicked) / n
    return ratio(value + (right - value) / share, np.ones(n), clusters_of(scored, unit))


def _share_below(others: np.ndarray, scores: np.ndarray) -> Float64[np.ndarray, " N"]:
    """Of each score the share of the others below it, ties one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return below / (2.0 * len(ordered))


def copc_statistic(scored: Scored, unit: Unit) -> Statistic:
    """Clicks over predicted clicks."""
    return ratio(scored.clicks, probabilities(scored.logits), clusters_of(scored, unit))


_OF: Mapping[str, Callable[[Scored, Unit], Statistic]] = {
    **STATISTICS,
    "auc": auc_statistic,
    "ece": ece_statistic,
    "copc": copc_statistic,
}


def intervals_of(
    seeds: Sequence[Scored], names: Sequence[str], unit: Unit = "user", resampling: Resampling = USUAL
) -> dict[str, Number]:
    """Mean over the seeds of one ranker, and its interval, of every number. Raises ValueError for other requests."""
    for other in seeds[1:]:
        check_same_split(seeds[0], other)
    found = {}
    for name in names:
        statistics = [_OF[name](scored, unit) for scored in seeds]
        drawn = drawn_mean(resampled_by_seed(statistics, resampling), np.random.default_rng(resampling.seed + 1))
        made = reflected if statistics[0].distance else percentile
        found[name] = _number(made(float(np.mean([one.value for one in statistics])), drawn, resampling))
    return found


def rela_impr_interval(
    seeds: Sequence[Scored],
    base: Sequence[Scored],
    name: str = "gauc_request",
    unit: Unit = "user",
    resampling: Resampling = USUAL,
) -> Number:
    """RelaImpr (DAIAN eq. 24) of a number over the base's, in percent; seeds of either side are drawn apart.

    It says nothing over a base at chance: no value where the base is not above it, and no interval where it is not in
    so many resamples that they would make up an end. Raises ValueError for scores of other requests.
    """
    for other in (*seeds[1:], *base):
        check_same_split(seeds[0], other)
    one, two = ([_OF[name](scored, unit) for scored in side] for side in (seeds, base))
    each = resampled_by_seed((*one, *two), resampling)
    random = np.random.default_rng(resampling.seed + 1)
    left, right = drawn_mean(each[: len(one)], random), drawn_mean(each[len(one) :], random)
    value, below = (float(np.mean([found.value for found in side])) for side in (one, two))
    if not below > 0.5:
        return _number(Interval(float("nan"), float("nan"), float("nan")))
    above = right > 0.5
    if (~above).mean() > (1 - resampling.level) / 2:
        return _number(Interval(rela_impr(value, below), float("nan"), float("nan")))
    drawn = ((left[above] - 0.5) / (right[above] - 0.5) - 1.0) * 100.0
    return _number(percentile(rela_impr(value, below), drawn, resampling))


def _number(found: Interval) -> Number:
    return dict(found._asdict())
