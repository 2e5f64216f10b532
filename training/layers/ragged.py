"""Requests and their candidates: bringing request tensors to candidates, and candidates into padded rows.

Used by every model's `score`. With one request (always so in the exported graph) nothing is gathered or padded: tensors
with a leading 1 broadcast. `candidate_request` is then not even read, so the graph has no such input.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True)
class CandidateRows:
    """Where the candidates of a batch belong. Candidates of one request lie together, in the order of the requests."""

    n_requests: int
    request: Tensor  # int64 [N], row of the request
    place: Tensor | None  # int64 [N], row in the flattened padded layout; None with one request
    width: int  # candidates of the longest request; unused with one request

    @classmethod
    def of(cls, candidate_request: Int64[Tensor, " N"], n_requests: int) -> "CandidateRows":
        """Lays the rows out once per call of `score`."""
        if n_requests == 1:
            return cls(1, candidate_request, None, 0)
        counts = torch.bincount(candidate_request, minlength=n_requests)
        starts = torch.cumsum(counts, 0) - counts
        width = int(counts.max())
        slot = torch.arange(candidate_request.shape[0], device=candidate_request.device) - starts[candidate_request]
        return cls(n_requests, candidate_request, candidate_request * width + slot, width)

    def per_candidate(self, x: Shaped[Tensor, "R *D"]) -> Shaped[Tensor, "_ *D"]:
        """[R ...] to [N ...]; with one request [1 ...] as it is, which broadcasts against candidates."""
        return x if self.n_requests == 1 else x.index_select(0, self.request)

    def pad(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "R C D"]:
        """Candidates into one row per request; the rest of a row is zero."""
        if self.place is None:
            return x.unsqueeze(0)
        padded = x.new_zeros(self.n_requests * self.width, x.shape[1]).index_copy(0, self.place, x)
        return padded.view(self.n_requests, self.width, x.shape[1])

    def unpad(self, x: Float[Tensor, "R C D"]) -> Float[Tensor, "N D"]:
        """The reverse of `pad`: what lies in the padding is dropped."""
        if self.place is None:
            return x.squeeze(0)
        return x.reshape(self.n_requests * self.width, x.shape[2]).index_select(0, self.place)
