"""A transformer encoder over a history (Vaswani et al., 2017), right on empty sequences and in the exported graph.

DIHN's soft sequence modelling uses it. Belongs to the request: no candidate is seen.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.layers.attention import TargetAttention
from training.layers.mlp import Mlp


class EncoderBlock(nn.Module):
    """x ← LN(x + MHSA(x)), x ← LN(x + FFN(x)): normalised after the sum, as in the first paper."""

    def __init__(self, width: int, hidden: int, n_heads: int) -> None:
        super().__init__()
        self.attention = TargetAttention(width, width, width, n_heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = Mlp(width, (hidden,), width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "R L W"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L W"]:
        """What lies in the padding is never attended to, and is not cleared."""
        x = self.attention_norm(x + self.attention(x, *self.attention.keys_values(x), mask))
        encoded: Tensor = self.norm(x + self.feed_forward(x))
        return encoded


class HistoryEncoder(nn.Module):
    """Linear to the width, then the blocks one after another; zero where there is no behaviour."""

    def __init__(self, key_width: int, width: int, hidden: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.inward = nn.Linear(key_width, width)
        self.blocks = nn.ModuleList(EncoderBlock(width, hidden, n_heads) for _ in range(n_layers))

    def forward(self, x: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L W"]:
        """One vector per behaviour, told of all the others."""
        encoded: Tensor = self.inward(x)
        for block in self.blocks:
            encoded = block(encoded, mask)
        return torch.where(mask.unsqueeze(-1), encoded, 0.0)
