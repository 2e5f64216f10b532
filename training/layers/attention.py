"""Attention over behaviours in the one form that is right everywhere, empty sequences and the exported graph included.

Scores of padding become -1e4, and weights are multiplied by the mask after the softmax: an empty sequence gives exactly
0. With -inf it gives NaN, and torch's fused attention with a boolean mask exports to a graph that answers with the mean
of the padding.

Keys and values belong to the request and are made once; candidates bring queries only. N queries over [R L D] are one
batched product in the padded layout of `layers.ragged`, never a gather of [N L D].
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.layers.dense_start import GlorotPart
from training.layers.ragged import CandidateRows

MASKED_SCORE = -1e4


def masked_softmax(scores: Float[Tensor, "*B L"], mask: Bool[Tensor, "*#B L"]) -> Float[Tensor, "*B L"]:
    """Softmax over what is there; all zeros where nothing is."""
    weights = torch.softmax(torch.where(mask, scores, MASKED_SCORE), dim=-1)
    return weights * mask.to(weights.dtype)


def masked_mean(x: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R D"]:
    """Mean over what is there; 0 where nothing is."""
    weights = mask.to(x.dtype)
    return (x * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True).clamp_min(1.0)


class DinAttention(nn.Module):
    """DIN's pooling (Zhou et al., KDD 2018): behaviours weighted by their fit to the query, softmax and 1/√d as in
    their code.

    "mlp" is the paper's unit on [q, k, q-k, q⊙k]. Its first layer is linear, so q-k adds nothing that q and k do not
    carry: it is a term of q, a term of k (each made once) and the product term, the only one made per pair. "dot" is (W
    q)·k.
    """

    def __init__(
        self, query_width: int, key_width: int, flavour: Literal["mlp", "dot"], hidden: Sequence[int] = (80, 40)
    ) -> None:
        super().__init__()
        self.flavour = flavour
        self.scale = key_width**-0.5
        self.query = nn.Linear(query_width, key_width, bias=flavour == "mlp")
        self.out_width = key_width
        if flavour == "mlp":
            first, *rest = hidden
            whole = nn.Linear(3 * key_width, first)
            self.query_term = nn.Linear(key_width, first)
            self.key_term = nn.Linear(key_width, first, bias=False)
            self.product_term = nn.Parameter(whole.weight[:, 2 * key_width :].detach().clone())
            with torch.no_grad():
                self.query_term.weight.copy_(whole.weight[:, :key_width])
                self.query_term.bias.copy_(whole.bias)
                self.key_term.weight.copy_(whole.weight[:, key_width : 2 * key_width])
            self.rest = _stack(first, rest)

    def glorot_parts(self) -> list[GlorotPart]:
        """The unit's first layer, in three parts."""
        if self.flavour == "dot":
            return []
        width, first = 3 * self.out_width, len(self.product_term)
        weights = (self.query_term.weight, self.key_term.weight, self.product_term)
        return [(weight, width, first) for weight in weights]

    def key_part(self, keys: Float[Tensor, "R L D"]) -> Float[Tensor, "R L _"]:
        """What is made once per request: the unit's term of the keys, [R L E] (the keys themselves for "dot").

        For one request alone it is the first layer as the query meets it, a matrix for each behaviour, [1 L E*D]: a
        page of candidates is then a single GEMM, ReLU included.
        """
        if self.flavour == "dot":
            return keys
        if len(keys) > 1:
            terms: Tensor = self.key_term(keys)
            return terms
        return (keys.unsqueeze(2) * self.product_term + self.query_term.weight).flatten(2)

    def forward(
        self,
        queries: Float[Tensor, "R C Q"],
        keys: Float[Tensor, "R L D"],
        key_part: Float[Tensor, "R L _"],
        mask: Bool[Tensor, "R L"],
    ) -> Float[Tensor, "R C D"]:
        """C queries per request over its L behaviours; `key_part` of the same keys."""
        mapped = self.query(queries)
        scores = self._unit(mapped, keys, key_part) if self.flavour == "mlp" else mapped @ keys.transpose(1, 2)
        return self._pooled(scores, keys, mask)

    def one_per_request(
        self, query: Float[Tensor, "R Q"], keys: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]
    ) -> Float[Tensor, "R D"]:
        """A single query per request, such as the trigger: nothing is worth making once for it."""
        mapped = self.query(query).unsqueeze(1)
        if self.flavour == "dot":
            scores = mapped @ keys.transpose(1, 2)
        else:
            hidden = self._by_pair(mapped, keys, self.key_term(keys))
            scores = self.rest(hidden).view(len(keys), 1, keys.shape[1])
        return self._pooled(scores, keys, mask).squeeze(1)

    def _pooled(self, scores: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        return masked_softmax(scores * self.scale, mask.unsqueeze(1)) @ keys

    def _unit(self, q: Tensor, keys: Tensor, key_part: Tensor) -> Tensor:
        if len(keys) == 1:
            hidden = self._of_one_request(q, keys, key_part)
        elif q.shape[1] < len(self.product_term):
            hidden = self._by_pair(q, keys, key_part)
        else:
            hidden = self._by_behaviour(q, keys, key_part)
        scores: Tensor = self.rest(hidden)
        return scores.view(len(keys), q.shape[1], keys.shape[1])

    def _of_one_request(self, q: Tensor, keys: Tensor, key_part: Tensor) -> Tensor:
        """For one request, whose layer is in `key_part`. Pairs as rows [C*L E], so that what follows is GEMMs too."""
        biases = (self.key_term(keys) + self.query_term.bias).flatten()  # [L*E]
        hidden = torch.addmm(biases, q.squeeze(0), key_part.reshape(-1, q.shape[2]).T)
        return torch.relu(hidden).view(-1, len(self.product_term))

    def _by_behaviour(self, q: Tensor, keys: Tensor, key_part: Tensor) -> Tensor:
        """For many candidates a request: one GEMM against weights made once per behaviour."""
        n_requests, n_behaviours, width = keys.shape
        n_hidden = self.product_term.shape[0]
        weights = keys.unsqueeze(2) * self.product_term  # [R L 1 D] * [E D]
        products = q @ weights.reshape(n_requests, n_behaviours * n_hidden, width).transpose(1, 2)
        hidden = products.reshape(n_requests, -1, n_behaviours, n_hidden)
        hidden = hidden + self.query_term(q).unsqueeze(2) + key_part.unsqueeze(1)
        return torch.relu(hidden).flatten(0, 2)

    def _by_pair(self, q: Tensor, keys: Tensor, key_part: Tensor) -> Tensor:
        """For fewer candidates a request than hidden units: the weights would outweigh the pairs."""
        pairs = q.unsqueeze(2) * keys.unsqueeze(1)  # [R C 1 D] * [R 1 L D]
        terms: Tensor = self.query_term(q).unsqueeze(2) + key_part.unsqueeze(1)
        hidden = torch.addmm(terms.flatten(0, 2), pairs.flatten(0, 2), self.product_term.T)
        return torch.relu(hidden)


def _stack(width: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    # No bias: the same number added to every score of a softmax changes nothing and could never learn.
    return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))


class TargetAttention(nn.Module):
    """Multi-head attention of queries over a request's behaviours (DAIAN eq. 7-8).

    head_i = softmax((q W_i^Q)(K W_i^K)^T / √d_h)(V W_i^V), out = (head_1 ⊕ … ⊕ head_h) W^O. W^O has no bias: an empty
    sequence gives exactly 0.
    """

    def __init__(self, query_width: int, key_width: int, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"attention width {width} does not divide into {n_heads} heads; choose a multiple")
        self.n_heads = n_heads
        self.head_width = width // n_heads
        self.query = nn.Linear(query_width, width, bias=False)
        self.key = nn.Linear(key_width, width, bias=False)
        self.value = nn.Linear(key_width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def keys_values(self, x: Float[Tensor, "R L D"]) -> tuple[Float[Tensor, "R H E L"], Float[Tensor, "R H L E"]]:
        """Keys and values by head, laid out for the two products; made once per request."""
        n_requests, n_behaviours, _ = x.shape
        shape = (n_requests, n_behaviours, self.n_heads, self.head_width)
        return self.key(x).reshape(shape).permute(0, 2, 3, 1), self.value(x).reshape(shape).permute(0, 2, 1, 3)

    def forward(
        self,
        queries: Float[Tensor, "R C Q"],
        keys: Float[Tensor, "R H E L"],
        values: Float[Tensor, "R H L E"],
        mask: Bool[Tensor, "R L"],
    ) -> Float[Tensor, "R C W"]:
        """C queries per request; 0 where the request has no behaviours."""
        n_requests, n_queries, _ = queries.shape
        q = self.query(queries) * self.head_width**-0.5
        q = q.reshape(n_requests, n_queries, self.n_heads, self.head_width).transpose(1, 2)
        weights = masked_softmax(q @ keys, mask[:, None, None, :])
        heads = (weights @ values).transpose(1, 2).reshape(n_requests, n_queries, self.n_heads * self.head_width)
        out: Tensor = self.out(heads)
        return out

    def one_per_request(
        self, query: Float[Tensor, "R Q"], x: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]
    ) -> Float[Tensor, "R W"]:
        """A single query per request, such as the trigger."""
        out: Tensor = self(query.unsqueeze(1), *self.keys_values(x), mask)
        return out.squeeze(1)


class SelfAttention(nn.Module):
    """One masked layer (DAIAN eq. 9): linear to the width, multi-head self-attention, residual, LayerNorm, mask."""

    def __init__(self, key_width: int, width: int, n_heads: int) -> None:
        super().__init__()
        self.inward = nn.Linear(key_width, width)
        self.attention = TargetAttention(width, width, width, n_heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "R L D"], mask: Bool[Tensor, "R L"]) -> Float[Tensor, "R L W"]:
        """Zero where there is no behaviour."""
        inward = self.inward(x)
        attended = self.attention(inward, *self.attention.keys_values(inward), mask)
        normed: Tensor = self.norm(inward + attended)
        return normed * mask.unsqueeze(-1).to(inward.dtype)


def candidates_attend(
    attention: TargetAttention,
    rows: CandidateRows,
    queries: Float[Tensor, "N Q"],
    keys: Float[Tensor, "R H E L"],
    values: Float[Tensor, "R H L E"],
    mask: Bool[Tensor, "R L"],
) -> Float[Tensor, "N W"]:
    """Every candidate attends to the behaviours of its own request."""
    return rows.unpad(attention(rows.pad(queries), keys, values, mask))
