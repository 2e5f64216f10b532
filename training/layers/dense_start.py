"""How dense layers start: Glorot's normal draw and no bias, as the frameworks that the papers were written in do it.

Called by `training.models.build_model` for every model alike. torch's own start is narrower by a factor of about √3 and
learns visibly less in the few epochs that click models get (docs/peers.md). What was made to start at zero (a gate at
exactly 1) stays so; a layer whose paper says how it starts is marked by `keep_start`.
"""

import math

import torch
from torch import Tensor, nn

from training.layers.attention import DinAttention
from training.layers.mlp import SplitLinear

_MARK = "keeps_start"


@torch.no_grad()
def start_dense(model: nn.Module) -> None:
    """Draws all Linear layers anew (Glorot & Bengio 2010, eq. 12 for its variance); torch's global generator decides.

    A layer that is one Linear in parts is drawn by the width of all its parts together.
    """
    whole: dict[int, int] = {}  # id of a Linear -> width of the layer it is a part of
    for module in model.modules():
        if isinstance(module, SplitLinear):
            width = module.request.in_features + module.candidate.in_features
            whole |= {id(module.request): width, id(module.candidate): width}
        if isinstance(module, DinAttention) and module.flavour == "mlp":
            width = 3 * module.out_width
            whole |= {id(module.query_term): width, id(module.key_term): width}
            _draw(module.product_term, width)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.any() and not getattr(module, _MARK, False):
            _draw(module.weight, whole.get(id(module), module.in_features))
            if module.bias is not None:
                module.bias.zero_()


def keep_start(*layers: nn.Module) -> None:
    """Marks layers that start as they were made."""
    for layer in layers:
        setattr(layer, _MARK, True)


def _draw(weight: Tensor, fan_in: int) -> None:
    weight.normal_(0.0, math.sqrt(2.0 / (fan_in + weight.shape[0])))
