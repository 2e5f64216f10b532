"""Weights of pairs of ids, hashed into one table: the cross-product features of a wide model. Used by WDL.

The hash is the same whole-number arithmetic in PyTorch and ONNX Runtime. Never here: which fields are crossed.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from training.layers.categories import FIRST_KNOWN
from training.layers.embedding import table

# All factors lie below 2^31 and sums are reduced before they are multiplied: nothing reaches 2^63, and PyTorch and ONNX
# Runtime need not agree on what lies beyond. The square takes neighbouring ids apart: without it the hash would be
# linear, and whole rows of pairs would share their buckets for an unlucky number of them.
_PRIME = 2**31 - 1
_LEFT, _RIGHT, _SHIFT = 1_540_483_477, 1_181_783_497, 668_265_263


class HashedCross(nn.Module):
    """One weight per pair (left, right), by hash: pairs that fall into one of the `n_buckets - 1` buckets share it.

    Bucket 0 is for pairs that are none; its weight is 0 and stays so. Raises ValueError for fewer than two buckets.
    """

    def __init__(self, n_buckets: int) -> None:
        super().__init__()
        if n_buckets < 2:
            raise ValueError(f"a cross of {n_buckets} buckets has no room for a pair; give at least 2")
        self.n_buckets = n_buckets
        self.weights = table(n_buckets, 1)

    def buckets(self, left: Int64[Tensor, "*#B"], right: Int64[Tensor, "*#B"]) -> Int64[Tensor, "*B"]:
        """0 where either id is nothing (0) or unknown (1): no pair; else 1..n_buckets - 1. Ids are below 2^31."""
        both = (left >= FIRST_KNOWN) & (right >= FIRST_KNOWN)
        mixed = torch.remainder(left * _LEFT, _PRIME) + torch.remainder(right * _RIGHT, _PRIME) + _SHIFT
        mixed = torch.remainder(mixed, _PRIME)
        hashed = torch.remainder(torch.remainder(mixed * mixed, _PRIME), self.n_buckets - 1) + 1
        return hashed * both.to(torch.int64)

    def forward(self, left: Int64[Tensor, "*#B"], right: Int64[Tensor, "*#B"]) -> Float[Tensor, "*B"]:
        """The weights of the pairs; shapes broadcast."""
        weights: Tensor = self.weights(self.buckets(left, right)).squeeze(-1)
        return weights
