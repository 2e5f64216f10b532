"""Holm's adjustment by hand, and which stars stand after it."""

import math

import pytest

from training.report_tests import holm, is_starred


def test_holm_by_hand_and_what_was_not_measured_is_no_test() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_one_of_many_that_looks_different_by_chance_gets_no_star() -> None:
    """Saboteur beside it: without the adjustment it would have one."""
    p = [0.02, *[0.5] * 9]
    assert not is_starred({"p_holm": holm(p)[0]})
    assert is_starred({"p_holm": p[0]})
    assert is_starred({"p_holm": holm([0.001, *[0.5] * 9])[0]})
