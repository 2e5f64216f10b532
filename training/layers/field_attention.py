"""Self-attention over the fields of a candidate and of the page's trigger together (R3S's feature interaction)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.layers.dense_start import GlorotPart
from training.layers.ragged import CandidateRows


class FieldSelfAttention(nn.Module):
    """x + Attention(x) over 2F fields, F of the candidate and F of the trigger, by heads; no norm, nothing to mask.

    The trigger's queries, keys and values belong to the request and are made once.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"field width {width} does not divide into {n_heads} heads; choose a multiple")
        self.n_heads = n_heads
        self.head_width = width // n_heads
        self.projections = nn.Linear(width, 3 * width, bias=False)

    def glorot_parts(self) -> list[GlorotPart]:
        """Queries, keys and values are three layers side by side."""
        width = self.projections.in_features
        return [(self.projections.weight, width, width)]

    def projected(self, x: Float[Tensor, "B F W"]) -> Float[Tensor, "B F W4"]:
        """Each field with its query, key and value: W4 is 4 W."""
        return torch.cat([x, self.projections(x)], dim=-1)

    def forward(
        self, rows: CandidateRows, candidate: Float[Tensor, "N F W4"], trigger: Float[Tensor, "R F W4"]
    ) -> Float[Tensor, "N D"]:
        """The fields after they have met, flattened: D is 2 F W. Both sides as `projected` gives them."""
        fields = torch.cat([candidate, rows.per_candidate(trigger).expand(candidate.shape[0], -1, -1)], dim=1)
        x, query, key, value = fields.chunk(4, dim=-1)
        scores = self._heads(query) @ self._heads(key).transpose(2, 3) * self.head_width**-0.5
        attended = (torch.softmax(scores, dim=-1) @ self._heads(value)).transpose(1, 2)
        return (x + attended.reshape(x.shape)).flatten(1)

    def _heads(self, x: Float[Tensor, "N F W"]) -> Float[Tensor, "N H F E"]:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_width).transpose(1, 2)
