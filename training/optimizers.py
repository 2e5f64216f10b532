"""A stage's optimiser: what it trains, at which rate, over dense and sparse gradients alike. Made by `training.loop`.

Large tables (`training.layers.embedding.SPARSE_FROM_ROWS`) hand over gradients of the touched rows alone. Adagrad takes
them as they are. Adam does not: such tables get SparseAdam, whose moments move only where a row was touched, so that a
step costs what it touches, not the whole table.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from training.config import OptimConfig
from training.models.spec import Stage


class StageOptimizer:
    """One or two optimisers that step together; as one, they are saved and put back."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups of parameters."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, dict[str, Any]]:
        """What is remembered of each parameter."""
        return {parameter: of for part in self._parts for parameter, of in part.state.items()}

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The reverse of `state_dict`, over the same model and stage."""
        for part, state in zip(self._parts, saved["parts"], strict=True):
            part.load_state_dict(state)


def make_optimizer(model: nn.Module, stage: Stage, config: OptimConfig) -> StageOptimizer:
    """A fresh optimiser over what the stage trains. Old accumulators would freeze the next stage."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    if sparse:
        # torch warns until it is told: what its own embedding layer hands over need not be checked at every step.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    groups: list[dict[str, Any]] = []
    sparse_groups: list[dict[str, Any]] = []
    for ratio, parameters in parameters_by_ratio(model, stage).items():
        rate = config.learning_rate * ratio
        dense = [p for p in parameters if id(p) not in tables]
        small = [p for p in parameters if id(p) in tables - sparse]
        large = [p for p in parameters if id(p) in sparse]
        groups.append({"params": dense, "lr": rate, "weight_decay": config.weight_decay})
        groups.append({"params": small, "lr": rate, "weight_decay": 0.0})
        sparse_groups.append({"params": large, "lr": rate})
    groups, sparse_groups = _filled(groups), _filled(sparse_groups)
    if config.kind == "adagrad":
        initial = config.initial_accumulator
        return StageOptimizer(
            [torch.optim.Adagrad([*groups, *sparse_groups], initial_accumulator_value=initial, foreach=False)]
        )
    parts: list[torch.optim.Optimizer] = []
    if groups:
        parts.append(torch.optim.Adam(groups, foreach=False))
    if sparse_groups:
        parts.append(torch.optim.SparseAdam(sparse_groups))
    return StageOptimizer(parts)


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def parameters_by_ratio(model: nn.Module, stage: Stage) -> dict[float, list[nn.Parameter]]:
    """Freezes what the stage does not train; the trained parameters by the ratio of their learning rate.

    Raises ValueError for a prefix that no parameter has: a stage that silently trains less than it says is worse than
    none.
    """
    unused = {*stage.trains, *stage.learning_rates}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        hits = [prefix for prefix in stage.trains if _within(name, prefix)]
        parameter.requires_grad_(bool(hits))
        if not hits:
            continue
        rates = [prefix for prefix in stage.learning_rates if _within(name, prefix)]
        unused -= {*hits, *rates}
        ratio = stage.learning_rates[max(rates, key=len)] if rates else 1.0
        groups.setdefault(ratio, []).append(parameter)
    unused -= set(stage.learning_rates)  # a rate for a part that an ablation took away does no harm
    if unused:
        raise ValueError(f"stage {stage.name!r} trains {sorted(unused)}, but the model has no such parameters")
    return groups


def _within(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(prefix + ".")
