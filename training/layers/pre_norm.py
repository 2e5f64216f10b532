"""A transformer layer with the norms before the blocks (Xiong et al., ICML 2020), as MIAN encodes behaviours."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.layers.attention import TargetAttention


class PreNormLayer(nn.Module):
    """x ← x + Attention(LN(x)); x ← x + W_2 ReLU(W_1 LN(x)). Padding is attended by nobody and comes out as zeros."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = TargetAttention(width, width, width, n_heads)
        self.before_dense = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "R L W"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L W"]:
        """The behaviours, each told of the others."""
        normed = self.before_attention(x)
        x = x + self.attention(normed, *self.attention.keys_values(normed), mask)
        x = x + self.outer(torch.relu(self.inner(self.before_dense(x))))
        encoded: Tensor = x * mask.unsqueeze(-1).to(x.dtype)
        return encoded
