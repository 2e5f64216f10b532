"""Transformer over a sequence in which no place sees a later one, for models that generate what comes next.

Written out, with the masks of `layers.attention`: torch's own layers give NaN for empty sequences once exported.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.layers.attention import masked_softmax
from training.layers.dense_start import GlorotPart
from training.layers.mlp import Mlp


class CausalBlock(nn.Module):
    """Pre-norm block: x + Attention(LN x), then x + FFN(LN x). Padding stays what it is and is seen by nobody."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"attention width {width} does not divide into {n_heads} heads; choose a multiple")
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dense_norm = nn.LayerNorm(width)
        self.dense = Mlp(width, (2 * width,), width)

    def glorot_parts(self) -> list[GlorotPart]:
        """Queries, keys and values are three layers side by side."""
        width = self.query_key_value.in_features
        return [(self.query_key_value.weight, width, width)]

    def forward(self, x: Float[Tensor, "R L W"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L W"]:
        """Place t is made of the places up to t that are there."""
        x = x + self._attend(self.attention_norm(x), mask)
        y: Tensor = x + self.dense(self.dense_norm(x))
        return y

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        n_requests, length, width = x.shape
        head = width // self.n_heads
        by_head = self.query_key_value(x).reshape(n_requests, length, 3, self.n_heads, head).permute(2, 0, 3, 1, 4)
        queries, keys, values = by_head[0], by_head[1], by_head[2]
        seen = (mask.unsqueeze(1) & not_later(mask)).unsqueeze(1)
        weights = masked_softmax((queries * head**-0.5) @ keys.transpose(2, 3), seen)
        attended: Tensor = self.out((weights @ values).transpose(1, 2).reshape(n_requests, length, width))
        return attended


def not_later(mask: Bool[Tensor, "R L"]) -> Bool[Tensor, "L L"]:
    """True where the column's place is not after the row's."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return place.unsqueeze(0) <= place.unsqueeze(1)


def newest(x: Float[Tensor, "R L W"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R W"]:
    """The last place that is there (the valid ones come first); zero where there is none."""
    place = torch.arange(mask.shape[1], device=mask.device)
    last = (place.unsqueeze(0) == mask.sum(1, keepdim=True) - 1).to(x.dtype)
    return (x * last.unsqueeze(-1)).sum(1)
