"""Gate NU of PEPNet (Chang et al., KDD 2023), eq. 2-3: a bounded scale per channel, centred on one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

GAMMA = 2.0


class GateNU(nn.Module):
    """δ = 2·σ(W' ReLU(W x + b) + b'). The last layer starts at zero, so the gate starts as exactly 1 and learns from
    there.

    Only the last layer: with the first at zero as well nothing would ever learn.
    """

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, out)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """Scales in (0, 2)."""
        return GAMMA * torch.sigmoid(self.out(torch.relu(self.hidden(x))))
