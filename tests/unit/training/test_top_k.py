"""NDCG and the content of the first k, by hand, against scikit-learn, and against a plain loop."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from training.top_k import first_k, mean_cosine, n_distinct, ndcg

CHANCE = np.random.default_rng(5)


def test_ndcg_by_hand() -> None:
    scores, clicks = np.array([0.9, 0.5, 0.1]), np.array([0, 1, 1])
    page = np.zeros(3, dtype=np.int64)
    ideal = 1 + 1 / math.log2(3)
    assert ndcg(scores, clicks, page, 3).values[0] == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
    assert ndcg(scores, clicks, page, 2).values[0] == pytest.approx((1 / math.log2(3)) / ideal)
    assert ndcg(scores, clicks, page, 1).values[0] == 0.0
    assert ndcg(-scores, clicks, page, 1).values[0] == 1.0


def test_a_tie_is_worth_the_mean_of_its_orders() -> None:
    scores, clicks = np.array([0.5, 0.5, 0.1]), np.array([1, 0, 0])
    found = ndcg(scores, clicks, np.zeros(3, dtype=np.int64), 10).values[0]
    assert found == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert ndcg(scores, clicks, np.zeros(3, dtype=np.int64), 1).values[0] == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_is_scikit_learns_ties_and_all(k: int) -> None:
    scores, groups = CHANCE.integers(0, 5, 800) / 10, CHANCE.integers(0, 80, 800)
    clicks = (CHANCE.random(800) < 0.15).astype(np.float32)
    found = ndcg(scores, clicks, groups, k)
    with_click = [group for group in np.unique(groups) if clicks[groups == group].any()]
    assert found.groups.tolist() == with_click
    assert len(with_click) < 80, "some page has no click"
    for value, group in zip(found.values, with_click, strict=True):
        page = groups == group
        if page.sum() > 1:
            assert value == pytest.approx(ndcg_score([clicks[page]], [scores[page]], k=k), abs=1e-12)


def test_first_k_are_the_highest_and_pages_without_a_choice_are_left_out() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.3, 0.3])
    groups = np.array([7, 7, 7, 2, 9, 9, 9])
    assert first_k(scores, groups, 2).reshape(-1, 2).tolist() == [[1, 2], [4, 5]]
    assert len(first_k(scores, groups, 3)) == 0
    assert len(first_k(np.empty(0), np.empty(0, dtype=np.int64), 3)) == 0


def test_distinct_values_among_those_that_count() -> None:
    values = np.array([[1, 1, 2], [0, 0, 0], [5, 4, 5]])
    assert n_distinct(values, values > 0).tolist() == [2, 0, 2]
    assert n_distinct(values, np.ones_like(values, dtype=bool)).tolist() == [2, 1, 2]


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = CHANCE.normal(size=(4, 5, 3))
    vectors[1, 2] = 0
    vectors[2, 1:] = 0
    vectors[3] = vectors[3, 0]
    found = mean_cosine(vectors)
    for page in (0, 1):
        units = [v / np.linalg.norm(v) for v in vectors[page] if v.any()]
        pairs = [a @ b for i, a in enumerate(units) for b in units[:i]]
        assert found[page] == pytest.approx(np.mean(pairs))
    assert math.isnan(found[2]), "one vector has no pair"
    assert found[3] == pytest.approx(1.0)
