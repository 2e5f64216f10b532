"""Dense layers start by Glorot: the right spread by the whole layer's width, no bias, and what starts at zero stays."""

import pytest
import torch
from torch import nn

from tests.unit.training.random_inputs import SIZES, TINY
from training.layers.attention import DinAttention
from training.layers.dense_start import keep_start, start_dense
from training.layers.gate import GateNU
from training.layers.mlp import SplitLinear
from training.models import build_model
from training.rows import ROWS


def spread(weight: torch.Tensor) -> float:
    return weight.std().item()


def test_a_layer_has_glorots_spread_and_no_bias() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 200)
    assert spread(layer.weight) == pytest.approx((1 / 900) ** 0.5, rel=0.03)  # torch's own: narrower
    start_dense(layer)
    assert spread(layer.weight) == pytest.approx((2 / 500) ** 0.5, rel=0.03)
    assert not layer.bias.any()


def test_the_parts_of_a_layer_are_drawn_as_the_whole_one() -> None:
    torch.manual_seed(0)
    split, unit = SplitLinear(200, 100, 150), DinAttention(90, 100, "mlp", (80, 40))
    start_dense(nn.ModuleList([split, unit]))
    for weight in (split.request.weight, split.candidate.weight):
        assert spread(weight) == pytest.approx((2 / 450) ** 0.5, rel=0.05)
    for weight in (unit.query_term.weight, unit.key_term.weight, unit.product_term):
        assert spread(weight) == pytest.approx((2 / 380) ** 0.5, rel=0.05)


def test_zeros_and_marked_layers_keep_their_start() -> None:
    torch.manual_seed(0)
    gate, marked = GateNU(8, 8, 8), nn.Linear(4, 4)
    keep_start(marked)
    before = marked.weight.clone()
    start_dense(nn.ModuleList([gate, marked]))
    assert torch.equal(gate(torch.randn(3, 8)), torch.ones(3, 8))
    assert torch.equal(marked.weight, before)


@pytest.mark.parametrize("row", ["din", "daian", "mwuf"])
def test_every_model_starts_so(row: str) -> None:
    torch.manual_seed(0)
    model = build_model(ROWS[row].config(TINY), SIZES)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and not getattr(m, "keeps_start", False)]
    assert layers
    assert not any(layer.bias.any() for layer in layers if layer.bias is not None)
