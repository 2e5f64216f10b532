"""Dense layers start by Glorot: the right spread by the whole layer's width, no bias, and what starts at zero stays."""

import pytest
import torch
from torch import nn

from tests.unit.training.random_inputs import SIZES, TINY
from training.layers.attention import DinAttention
from training.layers.causal import CausalBlock
from training.layers.dense_start import StartsInParts, keep_start, start_dense
from training.layers.embedding import EmbeddingWidths
from training.layers.field_attention import FieldSelfAttention
from training.layers.gate import GateNU
from training.layers.mlp import SplitLinear
from training.layers.recurrent import SequenceGru
from training.layers.timed_attention import TimedAttention
from training.models import build_model, spec_of
from training.rows import ROWS, Size

AVERAGE = Size(EmbeddingWidths(16, 8, 4, 4), width=32, n_heads=4, top=(64, 32))


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


BARE = {"queries", "scale", "shift"}  # NIF's tokens and their alignment, which starts as the identity: no layer


def rule(model: nn.Module) -> dict[int, float]:
    """The spread of every weight of two axes: by what its module declares, else by its own shape."""
    found = {id(w): (2 / sum(w.shape)) ** 0.5 for w in model.parameters() if w.ndim == 2}
    for module in model.modules():
        if isinstance(module, StartsInParts):
            found |= {id(w): (2 / (fan_in + fan_out)) ** 0.5 for w, fan_in, fan_out in module.glorot_parts()}
    return found


def strangers(model: nn.Module) -> list[str]:
    """Weights that do not start by the rule, tables, zeros and what is marked aside."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    marked = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and getattr(m, "keeps_start", False)}
    spreads, found = rule(model), []
    for name, weight in model.named_parameters():
        if weight.ndim != 2 or id(weight) in tables | marked or not weight.any() or name.split(".")[-1] in BARE:
            continue
        mean_square = weight.square().mean().item() / spreads[id(weight)] ** 2
        if abs(mean_square - 1) > 6 * (2 / weight.numel()) ** 0.5:  # six standard errors of a normal draw's variance
            found.append(name)
    return found


@pytest.mark.parametrize("row", ROWS)
def test_every_row_starts_by_the_rule(row: str) -> None:
    torch.manual_seed(0)
    assert strangers(build_model(ROWS[row].config(AVERAGE), SIZES)) == []


@pytest.mark.parametrize("row", ["dien", "dei2n", "dihn", "mian", "nif_lite", "poso", "r3s"])
def test_the_test_sees_torchs_own_start(row: str) -> None:
    torch.manual_seed(0)
    config = ROWS[row].config(AVERAGE)
    assert strangers(spec_of(config).build(config, SIZES))


def test_fused_layers_and_parts_are_drawn_as_the_layers_they_are() -> None:
    torch.manual_seed(0)
    gru, causal, fields = SequenceGru(60, 90), CausalBlock(120, 2), FieldSelfAttention(120, 2)
    timed, gates = TimedAttention(100, 50, 90, "mlp"), SplitLinear(40, 60, 4 * 50, n_layers=4)
    start_dense(nn.ModuleList([gru, causal, fields, timed, gates]))
    expected = [
        (gru.gru.weight_ih_l0, 60 + 90),
        (gru.gru.weight_hh_l0, 90 + 90),
        (causal.query_key_value.weight, 120 + 120),
        (fields.projections.weight, 120 + 120),
        (timed.query.weight, 100 + 50 + 90),
        (timed.gap.weight, 100 + 50 + 90),
        (timed.product_term, 3 * 90 + 80),
        (gates.candidate.weight, 40 + 60 + 50),
    ]
    for weight, fans in expected:
        assert spread(weight) == pytest.approx((2 / fans) ** 0.5, rel=0.05)
    assert not gru.gru.bias_ih_l0.any()
    assert not gru.gru.bias_hh_l0.any()
