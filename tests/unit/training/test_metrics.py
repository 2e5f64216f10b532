"""Metrics against hand-computed cases, scikit-learn, and a plain double loop."""

import math
from itertools import product

import numpy as np
import pytest
from sklearn import metrics as reference

from training import metrics

CHANCE = np.random.default_rng(3)


def random_scores(n: int, n_values: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, clicks, and groups of every kind (mixed, clicks only, none)."""
    scores = CHANCE.integers(0, n_values, n) / 10
    groups = CHANCE.integers(0, n // 6, n)
    return scores, (CHANCE.random(n) < 0.3).astype(np.float32), groups


def pairs_auc(scores: np.ndarray, clicks: np.ndarray) -> float:
    """Eq. 22 as it stands, ties one half."""
    pairs = list(product(scores[clicks > 0], scores[clicks == 0]))
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


def test_auc_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    clicks = np.array([0, 0, 1, 1])
    assert metrics.auc(scores, clicks) == 0.75
    assert metrics.auc(scores, 1 - clicks) == 0.25
    assert metrics.auc(np.zeros(4), clicks) == 0.5


def test_auc_is_scikit_learns() -> None:
    scores, clicks, _ = random_scores(2_000)
    assert metrics.auc(scores, clicks) == pytest.approx(reference.roc_auc_score(clicks, scores), abs=1e-12)


def test_auc_of_one_class_or_nothing_is_not_a_number() -> None:
    assert math.isnan(metrics.auc(np.array([0.1, 0.2]), np.array([1, 1])))
    assert math.isnan(metrics.auc(np.empty(0), np.empty(0)))


@pytest.mark.parametrize("weighted", [True, False])
def test_gauc_is_the_mean_over_groups_that_have_both_kinds(weighted: bool) -> None:
    scores, clicks, groups = random_scores(600)
    values, sizes = [], []
    for group in np.unique(groups):
        rows = groups == group
        if 0 < clicks[rows].sum() < rows.sum():
            values.append(pairs_auc(scores[rows], clicks[rows]))
            sizes.append(rows.sum())
    assert 0 < len(values) < len(np.unique(groups))
    expected = np.average(values, weights=sizes if weighted else None)
    assert metrics.gauc(scores, clicks, groups, weighted) == pytest.approx(expected, abs=1e-12)


def test_gauc_does_not_depend_on_the_order_of_rows_or_the_codes_of_groups() -> None:
    scores, clicks, groups = random_scores(300)
    order = CHANCE.permutation(300)
    expected = metrics.gauc(scores, clicks, groups)
    assert metrics.gauc(scores[order], clicks[order], groups[order]) == pytest.approx(expected, abs=1e-12)
    assert metrics.gauc(scores, clicks, groups * 2**40 + 5) == pytest.approx(expected, abs=1e-12)


def test_the_weights_of_gauc_are_impressions() -> None:
    scores = np.array([0.9, 0.1, 0.1, 0.9, 0.0, 0.0])
    clicks = np.array([1, 0, 1, 0, 0, 0])
    groups = np.array([1, 1, 2, 2, 2, 2])
    # Group 1: AUC 1 over 2 impressions. Group 2: one click above two of three, AUC 2/3, over 4 impressions.
    assert metrics.gauc(scores, clicks, groups) == pytest.approx((2 * 1 + 4 * 2 / 3) / 6)
    assert metrics.gauc(scores, clicks, groups, weighted=False) == pytest.approx((1 + 2 / 3) / 2)


def test_ranking_numbers_by_hand() -> None:
    scores, clicks = np.array([0.9, 0.1, 0.1, 0.9, 0.0, 0.0]), np.array([1, 0, 1, 0, 0, 0])
    found = metrics.ranking_numbers(scores, clicks, np.zeros(6, np.int64), np.array([1, 1, 2, 2, 2, 2]))
    whole = (1 + 0.5 + 1 + 1 + 0 + 0.5 + 1 + 1) / 8  # each click against 0.1, 0.9, 0, 0
    by_request = {"gauc_request": (2 * 1 + 4 * 2 / 3) / 6, "auc_per_request": (1 + 2 / 3) / 2}
    assert found == pytest.approx({"auc": whole, "gauc_user": whole, **by_request})


def test_rela_impr_is_the_papers() -> None:
    assert round(metrics.rela_impr(0.6382, 0.6432), 2) == -3.49
    assert metrics.rela_impr(0.75, 0.625) == pytest.approx(100.0)


def test_log_loss_is_scikit_learns_and_survives_extreme_logits() -> None:
    logits = CHANCE.normal(0, 3, 500)
    clicks = (CHANCE.random(500) < 0.4).astype(np.float32)
    expected = reference.log_loss(clicks, 1 / (1 + np.exp(-logits)))
    assert metrics.log_loss(logits, clicks) == pytest.approx(expected, rel=1e-9)
    assert metrics.log_loss(np.array([1000.0, -1000.0]), np.array([1.0, 0.0])) == 0.0
    assert metrics.log_loss(np.array([1000.0]), np.array([0.0])) == 1000.0


def test_js_divergence_at_its_ends_and_by_hand() -> None:
    left, right = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert metrics.js_divergence(left, left) == 0.0
    assert metrics.js_divergence(left, right) == pytest.approx(math.log(2))
    middle = np.array([0.5, 0.5])
    by_hand = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert metrics.js_divergence(left, middle) == pytest.approx(by_hand)


def test_js_of_means_hides_what_js_per_request_shows() -> None:
    predicted, label = np.full((2, 2), 0.5), np.eye(2)
    assert metrics.js_of_means(predicted, label) == 0.0
    assert metrics.js_per_request(predicted, label) > 0.2
