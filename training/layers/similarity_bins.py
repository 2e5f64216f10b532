"""A similarity as a vector: equal-width bins over the encoder's range of levels, one more for "no vector to compare".

Bins are found by comparing and counting, without arithmetic on the similarity: torch and ONNX Runtime cannot disagree
at an edge.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from training.layers.embedding import table

# Similarities lie in [-1, 1]; -2 says that an item has no vector.
LOWEST = -1.5


def has_similarity(similarity: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    """False where an item has no vector."""
    return similarity > LOWEST


class SimilarityBins(nn.Module):
    """`n_bins` equal-width bins between the first and the last level edge; what lies outside falls into the end bins.

    Bin 0 is "nothing to compare" and is the zero vector.
    """

    inner_edges: Tensor

    def __init__(self, level_edges: tuple[float, ...], n_bins: int, width: int) -> None:
        super().__init__()
        edges = np.linspace(level_edges[0], level_edges[-1], n_bins + 1, dtype=np.float64)[1:-1].astype(np.float32)
        self.register_buffer("inner_edges", torch.from_numpy(edges), persistent=False)
        self.vectors = table(n_bins + 1, width)
        self.width = width

    def bins(self, similarity: Float[Tensor, " N"]) -> Int64[Tensor, " N"]:
        """0 for nothing, else 1..n_bins."""
        above = (similarity.unsqueeze(-1) >= self.inner_edges).to(torch.int64).sum(-1)
        return (above + 1) * has_similarity(similarity).to(torch.int64)

    def forward(self, similarity: Float[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """The bins' vectors."""
        vectors: Tensor = self.vectors(self.bins(similarity))
        return vectors
