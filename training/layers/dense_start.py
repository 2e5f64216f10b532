"""How dense layers start: Glorot's normal draw and no bias, as the frameworks that the papers were written in do it.

Called by `training.models.build_model` for every model alike. torch's own start is narrower by a factor of about √3 and
learns visibly less in the few epochs that click models get (docs/peers.md). A module whose weights are not one Linear a
layer says so by `glorot_parts`: a layer in several parts, several layers side by side in one weight, a bare Parameter.
What was made to start at zero (a gate at exactly 1) stays so; a layer whose paper says how it starts is marked by
`keep_start`.
"""

import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

_MARK = "keeps_start"
GlorotPart = tuple[Tensor, int, int]  # a weight, and the fan-in and fan-out of the layer that it is (a part of)


@runtime_checkable
class StartsInParts(Protocol):
    """A module with weights whose own shape is not that of the layer they belong to."""

    def glorot_parts(self) -> Iterable[GlorotPart]:
        """Those weights; all others of the module are plain Linears."""
        ...


@torch.no_grad()
def start_dense(model: nn.Module) -> None:
    """Draws all dense layers anew (Glorot & Bengio 2010, eq. 12 for its variance); torch's global generator decides."""
    drawn: set[int] = set()
    for module in model.modules():
        if isinstance(module, StartsInParts):
            for weight, fan_in, fan_out in module.glorot_parts():
                _draw(weight, fan_in, fan_out)
                drawn.add(id(weight))
    for module in model.modules():
        if getattr(module, _MARK, False):
            continue
        if isinstance(module, nn.Linear) and module.weight.any():
            if id(module.weight) not in drawn:
                _draw(module.weight, module.in_features, module.out_features)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                if name.startswith("bias"):
                    parameter.zero_()


def keep_start(*layers: nn.Module) -> None:
    """Marks layers that start as they were made."""
    for layer in layers:
        setattr(layer, _MARK, True)


def _draw(weight: Tensor, fan_in: int, fan_out: int) -> None:
    weight.normal_(0.0, math.sqrt(2.0 / (fan_in + fan_out)))
