"""Attentive fusion: several vectors of one thing as one, each weighed by what it says. DIHN's FIM, MIAN's GIM.

DIHN (Shen et al., WWW 2022) eq. 7-8 and MIAN (Zhang et al., WSDM 2021) eq. 14-15 are the same unit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.layers.dense_start import GlorotPart


class AttentiveFusion(nn.Module):
    """F = Σ_l softmax_l(tanh(r_l · W_l + b_l)) r_l. Every part has a W_l and a b_l of its own.

    The tanh bounds the scores, so no part can be heard more than e² times as much as another.
    """

    def __init__(self, n_parts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_parts, width))
        self.bias = nn.Parameter(torch.zeros(n_parts))
        nn.init.xavier_uniform_(self.weight)

    def glorot_parts(self) -> list[GlorotPart]:
        """Every row is a layer of its own, with one output."""
        return [(self.weight, self.weight.shape[1], 1)]

    def weights(self, parts: Float[Tensor, "*B G W"]) -> Float[Tensor, "*B G"]:
        """How much each part is heard; sums to 1 over the parts."""
        return torch.softmax(torch.tanh((parts * self.weight).sum(-1) + self.bias), dim=-1)

    def forward(self, parts: Float[Tensor, "*B G W"]) -> Float[Tensor, "*B W"]:
        """`parts` side by side in the last axis but one, in the order of W."""
        return (parts * self.weights(parts).unsqueeze(-1)).sum(-2)
