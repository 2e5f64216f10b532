"""Intent labels: eq. (1) against a count by hand, and none where nothing was clicked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale
from tests.unit.training.data.shop import random_requests
from training.data.labels import intent_labels, make_labels

SCALE = SimilarityScale(0.0, 1.0, 6)


def pages(*lengths: int, user: str | None = "u") -> RequestBatch:
    return RequestBatch.from_rows(
        {"request_id": f"r{n}", "requested_at": 0, "user": {"user": user}, "trigger": "t", "candidates": ["c"] * length}
        for n, length in enumerate(lengths)
    )


def test_shares_of_clicks_by_level() -> None:
    similarity = np.array([0.05, 0.95, 0.95, 0.4, 0.4, 1.0], np.float32)
    clicks = np.array([1, 1, 1, 0, 0, 1], np.int8)
    intent, has_intent = intent_labels(pages(5, 1), clicks, similarity, SCALE)
    assert intent[0].tolist() == pytest.approx([1 / 3, 0, 0, 0, 0, 2 / 3])
    assert intent[1].tolist() == [0, 0, 0, 0, 0, 1]
    assert has_intent.all()


def test_no_click_and_no_comparable_click_have_no_intent_and_no_constant() -> None:
    similarity = np.array([0.5, 0.5, -2.0, 0.5], np.float32)
    clicks = np.array([0, 0, 1, 0], np.int8)
    intent, has_intent = intent_labels(pages(2, 2, 0), clicks, similarity, SCALE)
    assert not has_intent.any()
    assert (intent == 0).all()


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_labels_are_what_a_loop_counts(seed: int, click_rate: float) -> None:
    random = np.random.default_rng(seed)
    batch = pages(*random.integers(0, 6, 5).tolist())
    similarity = np.where(random.random(batch.n_candidates) < 0.1, -2, random.uniform(-0.2, 1, batch.n_candidates))
    clicks = (random.random(batch.n_candidates) < click_rate).astype(np.int8)
    labels = make_labels(batch, clicks, similarity.astype(np.float32), SCALE)
    for r in range(batch.n_requests):
        mine = slice(batch.candidate_offsets[r], batch.candidate_offsets[r + 1])
        levels = [
            int(np.clip(np.floor(s * 6), 0, 5))
            for s, c in zip(similarity[mine], clicks[mine], strict=True)
            if c and s > -1
        ]
        assert labels.has_intent[r] == bool(levels)
        for level in range(6):
            assert labels.intent[r, level] == pytest.approx(levels.count(level) / max(1, len(levels)))
    assert np.array_equal(labels.clicks, clicks.astype(np.float32))


def test_groups_are_stable_and_anonymous_requests_stand_alone() -> None:
    batch, clicks = random_requests(30)
    similarity = np.zeros(batch.n_candidates, np.float32)
    labels = make_labels(batch, clicks, similarity, SCALE)
    assert len(set(labels.request_group.tolist())) == 30
    users = batch.user["user"]
    named = {user: labels.user_group[users == user] for user in set(users.tolist()) - {None}}
    assert all(len(set(group.tolist())) == 1 for group in named.values())
    anonymous = labels.user_group[[user is None for user in users]]
    assert len(set(anonymous.tolist())) == len(anonymous) > 1
    assert len(set(labels.user_group.tolist())) == len(named) + len(anonymous)
    again = make_labels(
        batch.take(np.arange(5)), clicks[: batch.candidate_offsets[5]], similarity[: batch.candidate_offsets[5]], SCALE
    )
    assert np.array_equal(again.user_group, labels.user_group[:5])
