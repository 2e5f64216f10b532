"""Another start for a peer's layers. Called by `deepctr_models`, in the peers' environment; imports torch alone."""

import torch
from torch import nn


@torch.no_grad()
def by_glorot(module: nn.Module) -> None:
    """Dense weights, and recurrent ones gate by gate, anew by Glorot's (Xavier's) rule; biases zero; no embedding."""
    for name, parameter in module.named_parameters():
        layer = module.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Embedding):
            continue
        if parameter.dim() < 2:
            nn.init.zeros_(parameter)
            continue
        recurrent = hasattr(layer, "hidden_size")
        for part in parameter.chunk(3) if recurrent else (parameter,):
            nn.init.xavier_uniform_(part)
