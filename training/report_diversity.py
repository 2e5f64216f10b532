"""DAIAN's Fig. 6 with intervals: what a row gains over DIN in GAUC per user, by the intent diversity of users.

Called by `training.report_numbers`; works on the kept test scores, so runs of older programs have it too. Every
resample draws users and seeds (`training.report_seeds`). Users of whom the training days do not tell are "unknown", and
in no slope.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from service.contract.rules import SimilarityScale
from training.bootstrap import USUAL, Resampling, Statistic, divided, ratio
from training.data.dataset import open_dataset
from training.measures import HIGHEST_DIVERSITY
from training.metrics import group_aucs
from training.report_seeds import difference_of_seeds
from training.scores import Scored, check_same_split
from training.split_facts import Items, TrainingDays, read_training_days

OVER_BASE = "over_base_by_diversity"  # where a row keeps what is made here
GROUPS = (*(str(n) for n in range(HIGHEST_DIVERSITY)), f"{HIGHEST_DIVERSITY}+")
_UNKNOWN = -1  # as the training days have it
_X = np.arange(len(GROUPS), dtype=np.float64)


@dataclass(frozen=True)
class UserAucs:
    """Of every user that has one: AUC, impressions, group (a place in GROUPS, -1: unknown) and code."""

    values: Float64[np.ndarray, " U"]
    impressions: Float64[np.ndarray, " U"]
    group: Int64[np.ndarray, " U"]
    users: Int64[np.ndarray, " U"]


def read_diversity(data_folder: Path) -> TrainingDays | None:
    """The training days of a prepared folder; None where no item has a leaf category, so no user has a diversity."""
    dataset = open_dataset(data_folder)
    low, high = dataset.similarity_range or (0.0, 1.0)
    items = Items.open(data_folder, SimilarityScale(low, high, dataset.n_levels))
    return read_training_days(data_folder, items) if items.leaf.any() else None


def gains_by_diversity(
    left: Sequence[Scored], base: Sequence[Scored], training: TrainingDays, resampling: Resampling = USUAL
) -> dict[str, Any]:
    """What the seeds of `left` gain over those of `base`, as the fields of `Difference`.

    `groups`: in GAUC per user, of each group that has one. `slope`: of the gain, by each further category, by least
    squares over users weighted by impressions. Raises ValueError for scores of other requests.
    """
    for other in (*left[1:], *base):
        check_same_split(left[0], other)
    one, two = ([user_aucs(scored, training) for scored in side] for side in (left, base))

    def gain(of: Callable[[UserAucs], Statistic]) -> dict[str, float]:
        return difference_of_seeds(
            [of(found) for found in one], [of(found) for found in two], resampling=resampling
        )._asdict()

    named = {**dict(enumerate(GROUPS)), _UNKNOWN: "unknown"}
    groups = {
        name: gain(partial(gauc_of_group, group=group))
        for group, name in named.items()
        if (one[0].group == group).any()
    }
    return {"groups": groups, "slope": gain(slope)}


def user_aucs(scored: Scored, training: TrainingDays) -> UserAucs:
    """The AUC of every user with clicked and other candidates, beside the user's group."""
    values, sizes, users = group_aucs(scored.logits, scored.clicks, scored.user)
    place = training.place(users)
    known = np.minimum(training.diversity[place], HIGHEST_DIVERSITY) if len(training.users) else place
    group = np.where(place < 0, _UNKNOWN, known).astype(np.int64)
    return UserAucs(values.astype(np.float64), sizes.astype(np.float64), group, users)


def gauc_of_group(found: UserAucs, group: int) -> Statistic:
    """GAUC per user of one group, over all users, of whom the others weigh nothing: one draw serves all groups."""
    weights = np.where(found.group == group, found.impressions, 0.0)
    return ratio(found.values * weights, weights, found.users)


def slope(found: UserAucs) -> Statistic:
    """By how much AUC rises with each group, least squares over users weighted by impressions; NaN within one group.

    It is linear in the AUCs: the difference of two rankers' slopes is the slope of their differences.
    """
    weights = (found.group[:, None] == np.arange(len(GROUPS))) * found.impressions[:, None]
    return Statistic(np.concatenate([weights * found.values[:, None], weights], axis=1), found.users, _slope_of_sums)


def _slope_of_sums(sums: np.ndarray) -> np.ndarray:
    weighted, weights = np.split(sums, 2, axis=-1)
    middle = divided((weights * _X).sum(axis=-1), weights.sum(axis=-1))[..., None]
    return divided(((_X - middle) * weighted).sum(axis=-1), ((_X - middle) ** 2 * weights).sum(axis=-1))
