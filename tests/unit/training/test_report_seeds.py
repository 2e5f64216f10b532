"""The interval that holds users and seeds: by hand, wider where seeds differ, and not where they differ together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from training.bootstrap import Resampling
from training.paired import paired_test
from training.report_claims import claims
from training.report_seeds import difference_over_seeds, drawn_mean
from training.scores import Scored

QUICK = Resampling(n=400)
METRIC = "gauc_request"
N_REQUESTS, N_SHOWN = 300, 8


def seeds(strengths: Sequence[float], seed: int = 0) -> list[Scored]:
    """One ranker: its seeds see the same taste as strongly as given, each with noise of its own."""
    world = np.random.default_rng(1)
    taste = world.normal(size=N_REQUESTS * N_SHOWN)
    clicks = (world.random(len(taste)) < 1 / (1 + np.exp(1.5 - taste))).astype(np.float32)
    requests, chance = np.arange(N_REQUESTS), np.random.default_rng(seed)
    none = np.zeros((N_REQUESTS, 2), dtype=np.float32)
    one = Scored(
        logits=taste,
        clicks=clicks,
        user=np.repeat(requests // 2, N_SHOWN),
        request=np.repeat(requests, N_SHOWN),
        requests=requests,
        has_intent=np.zeros(N_REQUESTS, dtype=bool),
        intent_label=none,
        intent=None,
    )
    return [replace(one, logits=strength * taste + chance.normal(size=len(taste))) for strength in strengths]


def test_the_difference_is_that_of_the_paired_test() -> None:
    left, right = seeds([1.0, 1.2, 0.9]), seeds([0.5, 0.4], seed=7)
    found, plain = difference_over_seeds(left, right, METRIC), paired_test(left, right, METRIC)
    assert found.difference == pytest.approx(plain.difference)
    assert (found.n_rows, found.n_clusters) == (plain.n_rows, plain.n_clusters)
    assert found.low < found.difference < found.high


def test_seeds_that_differ_widen_it_and_seeds_that_do_not_leave_it() -> None:
    """Users alone are sure of a difference that the next training would not bear out."""
    left, right = seeds([0.2, 2.5, 0.3, 2.4]), seeds([1.0, 1.0, 1.0, 1.0], seed=7)
    users, both = paired_test(left, right, METRIC), difference_over_seeds(left, right, METRIC)
    assert users.high < 0 or users.low > 0
    assert both.low < 0 < both.high
    alike = seeds([1.0])[:1] * 4
    users, both = paired_test(alike, right[:1] * 4, METRIC), difference_over_seeds(alike, right[:1] * 4, METRIC)
    assert (both.low, both.high) == pytest.approx((users.low, users.high), abs=2e-3)


def test_weights_with_and_without_their_trigger_are_drawn_together() -> None:
    strengths = [0.3, 1.0, 2.0, 3.0]
    left, right = seeds(strengths), seeds([s * 0.8 for s in strengths])
    together = difference_over_seeds(left, right, METRIC, same_weights=True, resampling=QUICK)
    apart = difference_over_seeds(left, right, METRIC, resampling=QUICK)
    assert together.low > 0
    assert apart.low < 0, "the twin: as if they were different weights, the seeds' spread would drown it"


def test_a_mean_of_drawn_seeds_varies_as_a_mean_of_that_many_seeds() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0, 8.0])
    drawn = drawn_mean(np.repeat(values[:, None], 200_000, axis=1), np.random.default_rng(3))
    assert drawn.mean() == pytest.approx(4.0, abs=0.02)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.02)
    assert abs(values.var() / 5 / drawn.var() - 1) > 0.15, "the twin: without the stretch it were a fifth too little"


def test_one_seed_has_no_such_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds"):
        difference_over_seeds(seeds([1.0]), seeds([1.0, 1.0]), METRIC)
    with pytest.raises(ValueError, match="one of"):
        difference_over_seeds(seeds([1.0, 1.0]), seeds([1.0, 1.0]), "auc")


def test_claims_go_by_it_and_say_both() -> None:
    users = {"difference": 0.02, "low": 0.01, "high": 0.03, "p": 0.002}
    daian = {"title": "DAIAN", "is_rival": False, "n_seeds": 2, "failure": None, "numbers": {}}
    rival = {**daian, "title": "X", "is_rival": True, "daian_minus_this": users}

    def claim(test: Mapping[str, object]) -> dict[str, object]:
        rows = {"daian": daian, "x": {**rival, "daian_minus_this": test}}
        return next(c for c in claims({"rows": rows, "judged_title": ""}) if "ahead of X" in c["text"])

    assert claim(users)["held"] is True
    wide = claim({**users, "over_seeds": {"low": -0.01, "high": 0.05}})
    assert wide["held"] is None
    assert "+0.0100 to +0.0300" in str(wide["evidence"])
    assert "over seeds too -0.0100 to +0.0500" in str(wide["evidence"])
