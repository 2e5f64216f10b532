"""Calibration by hand, against scikit-learn, and on predictions that are right and wrong by construction."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from training.calibration import copc, ece, equal_mass_bins, probabilities, reliability

CHANCE = np.random.default_rng(6)


def test_probabilities_are_the_sigmoid_at_any_logit() -> None:
    assert probabilities(np.array([0.0, 1000.0, -1000.0])).tolist() == [0.5, 1.0, 0.0]
    assert probabilities(np.array([1.5]))[0] == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_bins_hold_equal_numbers() -> None:
    bins = equal_mass_bins(CHANCE.random(1000) ** 4, 10)
    assert np.bincount(bins).tolist() == [100] * 10


def test_equal_predictions_share_a_bin() -> None:
    predicted = np.repeat([0.1, 0.2], [90, 10])
    assert len(set(equal_mass_bins(predicted, 10)[:90].tolist())) == 1
    assert reliability(predicted, np.zeros(100), 10).n.tolist() == [90, 10]


def test_reliability_is_scikit_learns() -> None:
    predicted = CHANCE.random(3000) ** 2
    clicks = (CHANCE.random(3000) < predicted).astype(np.float32)
    rates, means = calibration_curve(clicks, predicted, n_bins=15, strategy="quantile")
    found = reliability(predicted, clicks, 15)
    assert found.click_rate == pytest.approx(rates)
    assert found.predicted == pytest.approx(means)
    assert found.n.sum() == 3000


def test_ece_by_hand() -> None:
    predicted, clicks = np.array([0.1, 0.1, 0.8, 0.8]), np.array([0, 1, 1, 1])
    assert ece(predicted, clicks, 2) == pytest.approx((0.4 + 0.2) / 2)
    assert math.isnan(ece(np.empty(0), np.empty(0)))


def test_ece_tells_right_from_wrong() -> None:
    chance = CHANCE.random(40_000) ** 2
    clicks = (CHANCE.random(40_000) < chance).astype(np.float32)
    assert ece(chance, clicks) < 0.02
    assert ece(np.sqrt(chance), clicks) > 0.1


def test_copc_by_hand() -> None:
    assert copc(np.array([0.5, 0.25, 0.25]), np.array([1, 1, 0])) == 2.0
    assert math.isnan(copc(np.zeros(2), np.array([1, 0])))
