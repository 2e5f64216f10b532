"""Dense stacks: a plain one, and one whose first layer is split into a request part and a candidate part."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.layers.dense_start import GlorotPart


class Mlp(nn.Module):
    """Linear and ReLU by turns, and a last Linear to `out` without one (none when `out` is None)."""

    def __init__(self, width: int, hidden: Sequence[int], out: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        if out is not None:
            layers.append(nn.Linear(width, out))
        self.layers = nn.Sequential(*layers)
        self.out_width = width if out is None else out

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        """Applied to the last axis."""
        y: Tensor = self.layers(x)
        return y


class SplitLinear(nn.Module):
    """A Linear over [request | candidate] columns as the sum of two: the request's product is made once, not once a
    candidate.

    Starts as the one layer would: both parts are drawn by the width of all columns together. `n_layers`: how many
    layers of the same width lie side by side in `out`.
    """

    def __init__(self, request_width: int, candidate_width: int, out: int, n_layers: int = 1) -> None:
        super().__init__()
        self.n_layers = n_layers
        whole = nn.Linear(request_width + candidate_width, out)
        self.request = nn.Linear(request_width, out)
        self.candidate = nn.Linear(candidate_width, out, bias=False)
        with torch.no_grad():
            self.request.weight.copy_(whole.weight[:, :request_width])
            self.request.bias.copy_(whole.bias)
            self.candidate.weight.copy_(whole.weight[:, request_width:])

    def glorot_parts(self) -> list[GlorotPart]:
        """Both parts, by the width of the whole layer."""
        fan_in = self.request.in_features + self.candidate.in_features
        fan_out = self.request.out_features // self.n_layers
        return [(part.weight, fan_in, fan_out) for part in (self.request, self.candidate)]

    def request_part(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R E"]:
        """The request's columns and the bias."""
        y: Tensor = self.request(x)
        return y

    def forward(self, request_part: Float[Tensor, "_ E"], x: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """`request_part` is already one row per candidate, or a single row."""
        y: Tensor = self.candidate(x) + request_part
        return y


class TopMlp(nn.Module):
    """The network above all features: split first layer, ReLU stack, one logit."""

    def __init__(self, request_width: int, candidate_width: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        first, *rest = hidden
        self.first = SplitLinear(request_width, candidate_width, first)
        self.dropout = nn.Dropout(dropout)
        self.rest = Mlp(first, rest, 1, dropout)

    def request_part(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R E"]:
        """What the request gives to the first layer."""
        return self.first.request_part(x)

    def forward(self, request_part: Float[Tensor, "_ E"], x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """One logit per candidate."""
        hidden = self.dropout(torch.relu(self.first(request_part, x)))
        logits: Tensor = self.rest(hidden).squeeze(-1)
        return logits
