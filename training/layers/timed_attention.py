"""DIN's unit with a query that knows how long ago each behaviour was (DEI2N)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.layers.attention import masked_softmax
from training.layers.dense_start import GlorotPart
from training.layers.mlp import Mlp


class TimedAttention(nn.Module):
    """Pooling by softmax_t(unit(ReLU(W[q ⊕ gap_t]), k_t) / √d): the query is another one for every behaviour.

    "mlp" is DIN's unit on [p, k, p-k, p⊙k], p the timed query; its first layer is linear, so p-k adds nothing, and p
    meets one matrix per behaviour, made of the terms of p and of p⊙k. "dot" is p·k.
    """

    def __init__(
        self,
        query_width: int,
        gap_width: int,
        key_width: int,
        flavour: Literal["mlp", "dot"],
        hidden: Sequence[int] = (80, 40),
    ) -> None:
        super().__init__()
        self.flavour = flavour
        self.scale = key_width**-0.5
        self.query = nn.Linear(query_width, key_width)
        self.gap = nn.Linear(gap_width, key_width, bias=False)
        if flavour == "mlp":
            first, *rest = hidden
            self.key_term = nn.Linear(key_width, first)
            whole = nn.Linear(3 * key_width, first).weight.detach()
            self.query_term = nn.Parameter(whole[:, :key_width].clone())
            self.product_term = nn.Parameter(whole[:, key_width : 2 * key_width].clone())
            self.rest = Mlp(first, rest, None)
            # No bias: the same number added to every score of a softmax changes nothing and could never learn.
            self.out = nn.Linear(self.rest.out_width, 1, bias=False)

    def glorot_parts(self) -> list[GlorotPart]:
        """W in its two parts, and the unit's first layer in its three."""
        wide, width = self.query.in_features + self.gap.in_features, self.query.out_features
        parts: list[GlorotPart] = [(layer.weight, wide, width) for layer in (self.query, self.gap)]
        if self.flavour == "mlp":
            weights = (self.query_term, self.key_term.weight, self.product_term)
            parts += [(weight, 3 * width, len(weight)) for weight in weights]
        return parts

    def forward(
        self,
        queries: Float[Tensor, "R C Q"],
        keys: Float[Tensor, "R L D"],
        gap_term: Float[Tensor, "R L D"],
        mask: Bool[Tensor, "R L"],
    ) -> Float[Tensor, "R C D"]:
        """C queries per request over its L behaviours; `gap_term` is `self.gap` of their ages, made once per request.

        0 where nothing is there.
        """
        # [R L C D]: behaviours before candidates, so that each behaviour's matrix is one factor of a batched product.
        timed = torch.relu(self.query(queries).unsqueeze(1) + gap_term.unsqueeze(2))
        scores = self._unit(timed, keys) if self.flavour == "mlp" else (timed @ keys.unsqueeze(-1)).squeeze(-1)
        weights = masked_softmax(scores.transpose(1, 2) * self.scale, mask.unsqueeze(1))
        return weights @ keys

    def _unit(self, timed: Tensor, keys: Tensor) -> Tensor:
        """[R L C]."""
        many = len(keys) == 1 or timed.shape[2] >= len(self.product_term)
        products = self._products_by_behaviour if many else self._products_by_pair
        scores: Tensor = self.out(self.rest(torch.relu(products(timed, keys)))).squeeze(-1)
        return scores

    def _products_by_behaviour(self, timed: Tensor, keys: Tensor) -> Tensor:
        """For many candidates a request: a batched product against one matrix per behaviour."""
        per_behaviour = self.query_term + keys.unsqueeze(2) * self.product_term  # [R L E D]
        products: Tensor = timed @ per_behaviour.transpose(2, 3) + self.key_term(keys).unsqueeze(2)
        return products

    def _products_by_pair(self, timed: Tensor, keys: Tensor) -> Tensor:
        """For fewer candidates a request than hidden units: the matrices would outweigh the pairs."""
        pairs = torch.cat([timed, timed * keys.unsqueeze(2)], dim=-1)  # [R L C 2D]
        both = torch.cat([self.query_term, self.product_term], dim=1)
        terms = self.key_term(keys).unsqueeze(2).expand(*timed.shape[:3], -1)
        return torch.addmm(terms.flatten(0, 2), pairs.flatten(0, 2), both.T).view(terms.shape)
