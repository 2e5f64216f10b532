"""The conditional logit: a case by hand, weights found again, and the cases where Newton alone would run away."""

import math

import numpy as np
import pytest

from training.choice import fit_choice


def test_one_number_two_candidates_by_hand() -> None:
    """Pages of (1, 0): three of four clicks on the 1, so e^w / (e^w + 1) = 3/4 and w = log 3."""
    n = 4_000
    features = np.tile([1.0, 0.0], n)[:, None]
    clicks = np.tile([1, 0, 1, 0, 1, 0, 0, 1], n // 4).astype(np.int8)
    weights = fit_choice(features, clicks, np.repeat(np.arange(n), 2))
    assert weights == pytest.approx([math.log(3)], abs=1e-4)


def test_it_finds_the_weights_that_made_the_clicks() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((4_000, 5, 2))
    odds = features @ np.array([1.5, -0.5])
    chosen = (odds + random.gumbel(size=odds.shape)).argmax(axis=1)
    clicks = (np.arange(5) == chosen[:, None]).astype(np.int8).ravel()
    clicks[:50] = 0  # pages without a click
    codes = np.repeat(random.permutation(4_000) * 2**40, 5)  # any codes do, as long as a page's lie side by side
    weights = fit_choice(features.reshape(-1, 2), clicks, codes)
    assert np.allclose(weights, [1.5, -0.5], atol=0.1)


def test_what_is_equal_within_every_page_has_no_weight() -> None:
    random = np.random.default_rng(1)
    page = np.repeat(np.arange(500), 4)
    features = np.stack([random.standard_normal(2_000), page / 100.0], axis=1)
    clicks = (np.arange(2_000) % 4 == random.integers(0, 4, 500)[page]).astype(np.int8)
    weights = fit_choice(features, clicks, page)
    assert weights[1] == pytest.approx(0, abs=1e-6)


def test_a_number_that_always_tells_stays_finite() -> None:
    features = np.tile([1.0, 0.0], 300)[:, None]
    clicks = np.tile([1, 0], 300).astype(np.int8)
    weights = fit_choice(features, clicks, np.repeat(np.arange(300), 2))
    # Where the ridge holds the gradient: 300 (1 - p) = 0.001 w.
    assert 300 / (1 + math.exp(weights[0])) == pytest.approx(1e-3 * weights[0], rel=1e-3)


def test_without_a_click_it_says_so() -> None:
    with pytest.raises(ValueError, match="no request has a click"):
        fit_choice(np.ones((2, 1)), np.zeros(2, np.int8), np.array([0, 0]))
