"""Predicted, observed and true intents by hand: the same requests on all sides, and each request's own truth."""

from dataclasses import replace

import numpy as np
import pytest

from training.metrics import js_of_means
from training.report_intents import predicted_observed_true
from training.scores import Scored
from training.truth import Truth

NONE = np.zeros(0)
CODES = np.array([40, 10, 30, 20])  # the truth's order; scores come by ascending code
SHARE = np.array([[0.4, 0.6], [0.1, 0.9], [0.3, 0.7], [0.0, 0.0]])  # of the last one nothing can be compared
SPECIFIC = np.array([True, True, False, True])

TRUTH = Truth(
    request=CODES,
    user=CODES,
    n_candidates=np.zeros(4, np.int64),
    clicks=NONE,
    scores={},
    intent=SHARE,
    click_share=SHARE,
    specific=SPECIFIC,
    broad=np.zeros(4, dtype=bool),
    clicks_specific=~SPECIFIC,
    clicks_broad=np.zeros(4, dtype=bool),
)
SCORED = Scored(
    logits=NONE,
    clicks=NONE,
    user=np.zeros(0, np.int64),
    request=np.zeros(0, np.int64),
    requests=np.array([10, 20, 30, 40]),
    has_intent=np.array([True, True, True, True]),
    intent_label=np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32),
    intent=np.array([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], dtype=np.float32),
)


def test_every_request_meets_its_own_truth() -> None:
    found = predicted_observed_true(SCORED, TRUTH)
    specific = found["specific"]
    assert specific["n_requests"] == 2, "10 and 40: 20 has no true share"
    assert specific["predicted"] == pytest.approx([0.4, 0.6])
    assert specific["observed"] == pytest.approx([0.5, 0.5])
    assert specific["true"] == pytest.approx([0.25, 0.75])
    near = js_of_means(np.array([[0.4, 0.6]]), np.array([[0.25, 0.75]]))
    assert specific["js_to_true"] == pytest.approx(near)
    assert specific["js_of_means"] == pytest.approx(js_of_means(np.array([[0.4, 0.6]]), np.array([[0.5, 0.5]])))
    assert found["specific_by_clicks"]["true"] == pytest.approx([0.3, 0.7])
    assert set(found) == {"all", "specific", "specific_by_clicks"}


def test_a_truth_in_another_order_than_its_codes_would_be_seen() -> None:
    """The twin: shares taken by place instead of by code are others."""
    by_place = replace(TRUTH, request=SCORED.requests)
    assert predicted_observed_true(SCORED, by_place)["all"] != predicted_observed_true(SCORED, TRUTH)["all"]


def test_requests_without_a_click_are_on_no_side() -> None:
    scored = replace(SCORED, has_intent=np.array([True, True, True, False]))
    found = predicted_observed_true(scored, TRUTH)["specific"]
    assert (found["n_requests"], found["true"]) == (1, pytest.approx([0.1, 0.9]))
