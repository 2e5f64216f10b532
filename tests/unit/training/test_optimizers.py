"""Optimisers over models with a large table, whose gradients are sparse: both kinds train it, and resume exactly."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.training.random_inputs import SIZES, random_batch
from training.config import OptimConfig
from training.layers.embedding import SPARSE_FROM_ROWS
from training.loop import batch_loss
from training.models import build_model
from training.models.din import DinConfig
from training.models.spec import Stage
from training.optimizers import StageOptimizer, make_optimizer

LARGE = replace(SIZES, user=(SPARSE_FROM_ROWS, 6), item=(SPARSE_FROM_ROWS, 12, 18))
CLICKS = Stage("clicks", trains=("",), intent="none")
ADAM = OptimConfig(kind="adam", learning_rate=1e-2)
BOTH = pytest.mark.parametrize("config", [ADAM, OptimConfig()], ids=["adam", "adagrad"])


def model_of(sizes: Any = LARGE) -> nn.Module:
    torch.manual_seed(4)
    return build_model(DinConfig(top=(8,)), sizes)


def large_tables(model: nn.Module) -> list[nn.Embedding]:
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= SPARSE_FROM_ROWS]


def train(model: nn.Module, optimizer: StageOptimizer, steps: range) -> None:
    for seed in steps:
        optimizer.zero_grad()
        batch_loss(model, CLICKS, random_batch((5, 3, 6), seed)).backward()
        optimizer.step()


@BOTH
def test_a_large_table_moves_where_it_was_touched_and_nowhere_else(config: OptimConfig) -> None:
    model = model_of()
    assert all(table.sparse for table in large_tables(model))
    before = [table.weight.detach().clone() for table in large_tables(model)]
    train(model, make_optimizer(model, CLICKS, config), range(3))
    for table, old in zip(large_tables(model), before, strict=True):
        moved = (table.weight != old).any(dim=1)
        assert moved[1:60].any()  # random inputs draw ids below 60
        assert not moved[60:].any()
        assert not moved[0]


def test_adagrad_over_sparse_gradients_is_adagrad() -> None:
    sparse, dense = model_of(), model_of()
    for table in large_tables(dense):
        table.sparse = False
    for model in (sparse, dense):
        train(model, make_optimizer(model, CLICKS, OptimConfig()), range(4))
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(next(dense.parameters()), next(model_of().parameters()))


@BOTH
def test_an_optimiser_put_back_goes_on_bit_for_bit(config: OptimConfig) -> None:
    whole = model_of()
    train(whole, make_optimizer(whole, CLICKS, config), range(4))
    first = model_of()
    optimizer = make_optimizer(first, CLICKS, config)
    train(first, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    second = model_of()
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, CLICKS, config)
    resumed.load_state_dict(saved)
    train(second, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@BOTH
def test_a_fresh_optimiser_in_its_place_would_not(config: OptimConfig) -> None:
    whole, broken = model_of(), model_of()
    train(whole, make_optimizer(whole, CLICKS, config), range(4))
    for steps in (range(2), range(2, 4)):
        train(broken, make_optimizer(broken, CLICKS, config), steps)
    assert not torch.equal(large_tables(whole)[0].weight, large_tables(broken)[0].weight)


def test_rates_and_decay_reach_small_and_large_tables() -> None:
    model = model_of()
    stage = replace(CLICKS, learning_rates={"top": 0.1})
    groups = make_optimizer(model, stage, replace(ADAM, weight_decay=0.01)).param_groups
    of = {id(p): (group["lr"], group.get("weight_decay", 0.0)) for group in groups for p in group["params"]}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        rate = 1e-3 if name.startswith("top.") else 1e-2
        assert of[id(parameter)] == pytest.approx((rate, 0.0 if id(parameter) in tables else 0.01)), name
