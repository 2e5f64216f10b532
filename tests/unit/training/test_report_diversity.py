"""Fig. 6: gains and their slope by hand, and a gain that only seeds or a few users have is not called one."""

from dataclasses import replace

import numpy as np
import pytest

from training.bootstrap import Resampling
from training.metrics import gauc
from training.report_diversity import GROUPS, UserAucs, gains_by_diversity, gauc_of_group, slope, user_aucs
from training.scores import Scored
from training.split_facts import TrainingDays

QUICK = Resampling(n=300)
N_USERS, N_SHOWN = 240, 12


def days(diversity: np.ndarray) -> TrainingDays:
    none = np.zeros(1, dtype=np.int64)
    users = np.arange(len(diversity))
    return TrainingDays(none, none, users, diversity.astype(np.int64), np.zeros((len(users), 1), np.int64))


DIVERSITY = np.arange(N_USERS) % 5 - 1  # -1: nothing is told of them
DAYS = days(np.where(DIVERSITY == 3, 9, DIVERSITY))  # nine categories are of the group 7+


def ranker(strength: np.ndarray, noise: int) -> Scored:
    """One page a user; the ranker sees the user's taste with the user's strength."""
    world = np.random.default_rng(1)
    user = np.repeat(np.arange(N_USERS), N_SHOWN)
    taste = world.normal(size=len(user))
    clicks = (world.random(len(user)) < 1 / (1 + np.exp(1 - 2 * taste))).astype(np.float32)
    requests = np.arange(N_USERS)
    return Scored(
        logits=strength[user] * taste + np.random.default_rng(noise).normal(size=len(user)),
        clicks=clicks,
        user=user,
        request=user,
        requests=requests,
        has_intent=np.zeros(N_USERS, dtype=bool),
        intent_label=np.zeros((N_USERS, 2), dtype=np.float32),
        intent=None,
    )


FLAT = np.full(N_USERS, 0.3)
GROWING = np.where(DIVERSITY == 3, 3.0, 0.3)


def test_a_slope_is_that_of_weighted_least_squares() -> None:
    values, weights = np.array([0.5, 0.6, 0.9, 0.1]), np.array([2.0, 1.0, 3.0, 50.0])
    found = UserAucs(values, weights, np.array([0, 1, 7, -1]), np.arange(4))
    fitted = np.polyfit([0, 1, 7], values[:3], 1, w=np.sqrt(weights[:3]))[0]
    assert slope(found).value == pytest.approx(fitted)
    assert np.isnan(slope(replace(found, group=np.array([2, 2, -1, -1]))).value)


def test_groups_are_of_users_and_weighted_by_impressions() -> None:
    scored = ranker(FLAT, 3)
    found = user_aucs(scored, DAYS)
    rows = np.isin(scored.user, np.flatnonzero(DIVERSITY == 1))
    assert gauc_of_group(found, 1).value == pytest.approx(
        gauc(scored.logits[rows], scored.clicks[rows], scored.user[rows])
    )
    assert set(found.group.tolist()) == {-1, 0, 1, 2, 7}
    unknown = user_aucs(scored, days(np.zeros(0)))
    assert set(unknown.group.tolist()) == {-1}


def test_a_gain_that_grows_has_a_slope_above_zero_and_one_that_does_not_has_none() -> None:
    base = [ranker(FLAT, noise) for noise in (11, 12, 13)]
    grows = gains_by_diversity([ranker(GROWING, noise) for noise in (21, 22, 23)], base, DAYS, QUICK)
    assert list(grows["groups"]) == ["0", "1", "2", "7+", "unknown"]
    assert set(grows["groups"]) - {"unknown"} < set(GROUPS)
    assert grows["slope"]["low"] > 0
    assert grows["groups"]["7+"]["low"] > 0.1
    assert grows["groups"]["0"]["low"] < 0 < grows["groups"]["0"]["high"]
    alike = gains_by_diversity([ranker(FLAT, noise) for noise in (21, 22, 23)], base, DAYS, QUICK)
    assert alike["slope"]["low"] < 0 < alike["slope"]["high"]


def test_seeds_that_differ_leave_a_slope_open_that_users_alone_are_sure_of() -> None:
    """The twin: the same weights taken once are sure, for the chance of another training is not in them."""
    base = [ranker(FLAT, noise) for noise in (11, 12, 13)]
    falling = np.where(DIVERSITY == 3, -1.5, 0.3)
    left = [ranker(strength, noise) for strength, noise in ((GROWING, 21), (GROWING, 22), (falling, 23))]
    both = gains_by_diversity(left, base, DAYS, QUICK)["slope"]
    assert both["low"] < 0 < both["high"]
    alone = gains_by_diversity(left[:1], base[:1], DAYS, QUICK)["slope"]
    assert alone["low"] > 0


def test_one_group_has_no_slope_and_other_requests_are_refused() -> None:
    base = [ranker(FLAT, 11)]
    found = gains_by_diversity(base, base, days(np.zeros(N_USERS)), QUICK)
    assert list(found["groups"]) == ["0"]
    assert np.isnan(found["slope"]["low"])
    with pytest.raises(ValueError, match="same requests"):
        gains_by_diversity(base, [replace(base[0], clicks=1 - base[0].clicks)], DAYS, QUICK)
