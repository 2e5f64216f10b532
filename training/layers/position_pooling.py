"""Additive attention by place in the history: what a sub-sequence holds, read without any query (DIHN's HSM)."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from training.layers.attention import masked_softmax
from training.layers.dense_start import GlorotPart


def places(mask: Bool[Tensor, "R L"], furthest: int) -> Int64[Tensor, "R L"]:
    """The place of each behaviour counted from the newest (1), `furthest` for all beyond; 0 in the padding.

    From the newest: a place then means the same in short histories and long ones.
    """
    there = mask.to(torch.int64)
    counted = there.sum(1, keepdim=True) - torch.cumsum(there, dim=1) + 1
    return counted.clamp(max=furthest) * there


class PositionPooling(nn.Module):
    """u = Σ_t α_t e_t, α = softmax_t(z^T tanh(W_p p_t + W_e e_t + b)), DIHN eq. 4-6; 0 for an empty sub-sequence."""

    def __init__(self, position_width: int, key_width: int, width: int) -> None:
        super().__init__()
        self.position = nn.Linear(position_width, width, bias=False)
        self.key = nn.Linear(key_width, width)
        self.out = nn.Linear(width, 1, bias=False)

    def glorot_parts(self) -> list[GlorotPart]:
        """W_p and W_e are one layer over place and behaviour together."""
        fan_in = self.position.in_features + self.key.in_features
        return [(layer.weight, fan_in, layer.out_features) for layer in (self.position, self.key)]

    def forward(
        self, positions: Float[Tensor, "R L P"], keys: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]
    ) -> Float[Tensor, "R D"]:
        """`mask` is the sub-sequence; `positions` are those in the whole sequence."""
        scores = self.out(torch.tanh(self.position(positions) + self.key(keys))).squeeze(-1)
        weights: Tensor = masked_softmax(scores, mask)
        return (weights.unsqueeze(1) @ keys).squeeze(1)
