"""Pooling by place, and the places themselves, against plain numbers."""

import math

import pytest
import torch

from training.layers import position_pooling
from training.layers.position_pooling import PositionPooling, places


def test_places_count_from_the_newest() -> None:
    mask = torch.tensor([[True, True, True, False], [False] * 4, [True] * 4])
    assert places(mask, 9).tolist() == [[3, 2, 1, 0], [0, 0, 0, 0], [4, 3, 2, 1]]
    assert places(mask, 2).tolist() == [[2, 2, 1, 0], [0, 0, 0, 0], [2, 2, 2, 1]]


def check_the_equation() -> None:
    """DIHN eq. 4-6 for one sub-sequence of two behaviours among four."""
    torch.manual_seed(0)
    pooling = PositionPooling(2, 3, 5)
    positions, keys = torch.randn(1, 4, 2), torch.randn(1, 4, 3)
    mask = torch.tensor([[True, False, True, False]])
    scores = {}
    for t in (0, 2):
        inner = pooling.position.weight @ positions[0, t] + pooling.key.weight @ keys[0, t] + pooling.key.bias
        scores[t] = math.exp(
            sum(z * math.tanh(x) for z, x in zip(pooling.out.weight[0].tolist(), inner.tolist(), strict=True))
        )
    expected = sum(score / sum(scores.values()) * keys[0, t] for t, score in scores.items())
    assert torch.allclose(pooling(positions, keys, mask)[0], expected, atol=1e-6)


@torch.no_grad()
def test_the_equation() -> None:
    check_the_equation()


@torch.no_grad()
def test_pooling_that_hears_the_rest_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_pooling, "masked_softmax", lambda scores, _mask: torch.softmax(scores, -1))
    with pytest.raises(AssertionError):
        check_the_equation()


def test_an_empty_sub_sequence_is_exactly_zero() -> None:
    pooled = PositionPooling(2, 3, 5)(torch.randn(1, 4, 2), torch.randn(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(pooled, torch.zeros(1, 3))
