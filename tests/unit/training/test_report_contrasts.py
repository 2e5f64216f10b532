"""Differences inside the models are taken within a seed, and what a seed lacks is no difference."""

import math

import pytest

from training.report_contrasts import contrasts


def seed(
    cold: float | None, warm: float, explicit: tuple[float, float], implicit: tuple[float, float]
) -> dict[str, dict]:
    return {
        "semantic_share": {"cold": cold, "warm": warm},
        "gate_explicit": dict(zip(("specific", "broad"), explicit, strict=True)),
        "gate_implicit": dict(zip(("specific", "broad"), implicit, strict=True)),
    }


RUNS = [seed(0.8, 0.7, (1.2, 1.0), (0.9, 1.0)), seed(0.5, 0.3, (0.6, 0.5), (0.4, 0.5))]


def test_differences_by_hand() -> None:
    found = contrasts(RUNS)
    assert (found["norm_ratio"]["low"], found["norm_ratio"]["high"]) == pytest.approx((0.1, 0.2))
    assert found["gate_explicit"]["mean"] == pytest.approx(0.15)
    assert found["gate_implicit"]["mean"] == pytest.approx(-0.1)
    assert (found["gates"]["low"], found["gates"]["high"]) == pytest.approx((0.2, 0.3))


def test_seeds_of_other_levels_do_not_hide_a_difference_that_each_has() -> None:
    """The twin: taken between seeds, the first one's warm share lies above the second one's cold share."""
    assert contrasts(RUNS)["norm_ratio"]["low"] > 0
    assert RUNS[1]["semantic_share"]["cold"] < RUNS[0]["semantic_share"]["warm"]


def test_what_a_model_or_a_seed_lacks_is_left_out_and_an_empty_group_is_nan() -> None:
    assert contrasts([{}, {}]) == {}
    assert contrasts([]) == {}
    assert "gates" not in contrasts([{"gate_explicit": RUNS[0]["gate_explicit"]}] * 2)
    assert contrasts([RUNS[0], {}]) == {}
    assert math.isnan(contrasts([seed(None, 0.7, (1, 1), (1, 1))])["norm_ratio"]["mean"])
