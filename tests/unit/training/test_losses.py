"""The two losses: their direction, their mean, their gradient at the ends."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from training.losses import click_loss, intent_loss


def test_intent_loss_is_zero_for_the_label_itself() -> None:
    label = torch.softmax(torch.randn(4, 6), -1)
    assert intent_loss(label, label).item() == pytest.approx(0.0, abs=1e-6)


def test_intent_loss_is_cross_entropy_less_the_labels_entropy_in_this_direction() -> None:
    label = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    predicted = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    cross = -(label * predicted.log()).sum(-1).mean()
    entropy = -(torch.where(label > 0, label * label.clamp_min(1e-9).log(), 0.0)).sum(-1).mean()
    assert intent_loss(predicted, label).item() == pytest.approx((cross - entropy).item(), abs=1e-6)


def test_intent_loss_is_a_mean_over_requests_not_over_levels() -> None:
    label, predicted = torch.eye(6)[:1], torch.full((1, 6), 1 / 6)
    assert intent_loss(predicted, label).item() == pytest.approx(np.log(6), abs=1e-6)
    assert intent_loss(predicted.repeat(5, 1), label.repeat(5, 1)).item() == pytest.approx(np.log(6), abs=1e-6)


def test_intent_loss_keeps_its_gradient_where_the_prediction_is_almost_zero() -> None:
    z = torch.tensor([[0.0, 50.0]], requires_grad=True)
    intent_loss(torch.softmax(z, -1), torch.tensor([[1.0, 0.0]])).backward()
    assert z.grad is not None
    assert z.grad[0, 0].item() == pytest.approx(-1.0, abs=1e-3)


def test_a_batch_without_a_label_costs_nothing() -> None:
    """A shop without vectors, or an unlucky batch: a mean over no request is no reason to stop a training."""
    z = torch.zeros(0, 6, requires_grad=True)
    loss = intent_loss(torch.softmax(z, -1), torch.zeros(0, 6))
    loss.backward()
    assert loss.item() == 0.0


def test_click_loss_is_the_mean_cross_entropy() -> None:
    logits, clicks = torch.randn(50), (torch.rand(50) < 0.3).float()
    expected = log_loss(clicks.numpy(), torch.sigmoid(logits.double()).numpy(), labels=[0, 1])
    assert click_loss(logits, clicks).item() == pytest.approx(expected, rel=1e-5)
