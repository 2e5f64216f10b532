"""Intervals of a table's numbers: they hold users and seeds, and RelaImpr has none over a base at chance."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from training.bootstrap import Resampling, auc_interval
from training.calibration import copc, ece, probabilities
from training.metrics import auc, rela_impr
from training.paired import STATISTICS
from training.report_intervals import auc_statistic, intervals_of, rela_impr_interval
from training.scores import Scored, all_numbers

QUICK = Resampling(n=400, n_auc=400)
N_USERS, N_SHOWN = 150, 16
NAMES = ("auc", "gauc_request", "log_loss", "ece", "copc")


def seeds(strengths: Sequence[float], noise: int = 0) -> list[Scored]:
    """One ranker: its seeds see the same taste as strongly as given, each with noise of its own."""
    world, chance = np.random.default_rng(1), np.random.default_rng(noise)
    user = np.repeat(np.arange(N_USERS), N_SHOWN)
    taste = world.normal(size=len(user)) + np.repeat(world.normal(size=N_USERS), N_SHOWN)
    clicks = (world.random(len(user)) < 1 / (1 + np.exp(1.5 - taste))).astype(np.float32)
    one = Scored(
        logits=taste,
        clicks=clicks,
        user=user,
        request=user,
        requests=np.arange(N_USERS),
        has_intent=np.zeros(N_USERS, dtype=bool),
        intent_label=np.zeros((N_USERS, 2), dtype=np.float32),
        intent=None,
    )
    return [replace(one, logits=strength * taste + chance.normal(size=len(taste)) - 1.5) for strength in strengths]


def test_every_number_is_the_mean_over_seeds_and_lies_in_its_interval() -> None:
    ranker = seeds([1.0, 1.3, 0.8])
    found = intervals_of(ranker, NAMES, resampling=QUICK)
    for name in ("auc", "gauc_request", "log_loss"):
        assert found[name]["value"] == pytest.approx(np.mean([all_numbers(scored)[name] for scored in ranker]))
    for name, of in (("ece", ece), ("copc", copc)):
        values = [of(probabilities(scored.logits), scored.clicks) for scored in ranker]
        assert found[name]["value"] == pytest.approx(np.mean(values))
    assert all(number["low"] <= number["value"] <= number["high"] for number in found.values())
    assert all(number["high"] > number["low"] for number in found.values())


def test_seeds_that_differ_widen_them_and_one_seed_has_the_chance_of_users() -> None:
    """The twin of an interval over users alone, which another training would leave."""
    differ = intervals_of(seeds([0.2, 2.5, 0.3, 2.4]), ["gauc_request"], resampling=QUICK)["gauc_request"]
    alike = intervals_of(seeds([1.0]) * 4, ["gauc_request"], resampling=QUICK)["gauc_request"]
    alone = intervals_of(seeds([1.0]), ["gauc_request"], resampling=QUICK)["gauc_request"]
    assert differ["high"] - differ["low"] > 2 * (alone["high"] - alone["low"])
    assert (alike["low"], alike["high"]) == pytest.approx((alone["low"], alone["high"]), abs=1e-9)


def test_the_pooled_auc_to_first_order_has_the_interval_of_counting_again() -> None:
    (scored,) = seeds([0.4])
    tied = replace(scored, logits=np.round(scored.logits))
    for one in (scored, tied):
        statistic = auc_statistic(one, "user")
        assert statistic.value == pytest.approx(auc(one.logits, one.clicks))
        found = intervals_of([one], ["auc"], resampling=QUICK)["auc"]
        counted = auc_interval(one.logits, one.clicks, one.user, QUICK)
        width = counted.high - counted.low
        assert (found["low"], found["high"]) == pytest.approx((counted.low, counted.high), abs=0.1 * width)
    assert np.isnan(auc_statistic(replace(scored, clicks=np.zeros_like(scored.clicks)), "user").value)


def test_rela_impr_is_over_the_base_in_every_resample() -> None:
    ranker, base = seeds([1.0, 1.2]), seeds([0.5, 0.4], noise=7)
    found = rela_impr_interval(ranker, base, resampling=QUICK)
    means = [np.mean([STATISTICS["gauc_request"](one, "user").value for one in side]) for side in (ranker, base)]
    assert found["value"] == pytest.approx(rela_impr(float(means[0]), float(means[1])))
    assert 0 < found["low"] < found["value"] < found["high"]
    same = rela_impr_interval(ranker[:1], ranker[:1], resampling=QUICK)
    assert [same[key] for key in ("value", "low", "high")] == pytest.approx([0, 0, 0])


def test_over_a_base_at_chance_there_is_no_interval_and_below_it_no_number() -> None:
    ranker = seeds([1.0])
    hardly = rela_impr_interval(ranker, seeds([0.004], noise=3), resampling=QUICK)
    worse = rela_impr_interval(ranker, seeds([-1.0]), resampling=QUICK)
    assert np.isnan([hardly["low"], hardly["high"], *worse.values()]).all()
    above = rela_impr_interval(ranker, seeds([0.5]), resampling=QUICK)
    assert not np.isnan(list(above.values())).any(), "the twin: it is the base that decides"


def test_scores_of_other_requests_are_refused() -> None:
    (scored,) = seeds([1.0])
    other = replace(scored, clicks=1 - scored.clicks)
    with pytest.raises(ValueError, match="same requests"):
        intervals_of([scored, other], NAMES)
    with pytest.raises(ValueError, match="same requests"):
        rela_impr_interval([scored], [other])
