"""Attentive fusion against its equation, written out slowly."""

import math

import pytest
import torch
from torch import Tensor

from training.layers.fusion import AttentiveFusion


def fused() -> tuple[AttentiveFusion, Tensor]:
    torch.manual_seed(0)
    fusion = AttentiveFusion(3, 4)
    with torch.no_grad():
        fusion.bias.copy_(torch.tensor([0.3, -0.8, 0.1]))
    return fusion, torch.randn(2, 3, 4)


def by_hand(fusion: AttentiveFusion, parts: Tensor) -> list[float]:
    """DIHN eq. 7-8 for one row, in plain numbers."""
    rows, weight, bias = parts.tolist(), fusion.weight.tolist(), fusion.bias.tolist()
    scores = [
        math.exp(math.tanh(sum(r * w for r, w in zip(row, of_row, strict=True)) + b))
        for row, of_row, b in zip(rows, weight, bias, strict=True)
    ]
    return [sum(score / sum(scores) * row[j] for score, row in zip(scores, rows, strict=True)) for j in range(4)]


def check_the_equation() -> None:
    fusion, parts = fused()
    for row, found in zip(parts, fusion(parts), strict=True):
        assert found.tolist() == pytest.approx(by_hand(fusion, row), abs=1e-5)


def test_the_equation() -> None:
    check_the_equation()


def test_a_fusion_without_tanh_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "tanh", lambda x: x)
    with pytest.raises(AssertionError):
        check_the_equation()


def test_a_plain_mean_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentiveFusion, "weights", lambda _self, parts: torch.full(parts.shape[:-1], 1 / 3))
    with pytest.raises(AssertionError):
        check_the_equation()


def test_weights_sum_to_one_and_stay_within_e_squared() -> None:
    fusion, parts = fused()
    weights = fusion.weights(parts * 1000)
    assert torch.allclose(weights.sum(-1), torch.ones(2))
    assert (weights.amax(-1) / weights.amin(-1)).max() <= math.e**2 + 1e-3
