"""Recurrent layers over a history: a GRU over behaviours, and the GRU whose steps a candidate weighs. Used by DIEN.

How they are exported. Neither Loop nor Scan may stand in an exported graph (the service accepts plain operators only),
and torch's exporter unrolls a GRU and would fix the sequence's length with it. So the history is first brought to a
fixed number of steps (`newest`); the plain GRU becomes ONNX's own GRU operator, by name, while exporting, and the
weighed one is unrolled over all those steps. In PyTorch the steps stop at the longest history of the batch. Either way
the state is held where nothing is, so the numbers are the same.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from training.layers.dense_start import GlorotPart


def newest(
    fields: Int64[Tensor, "R L I"], age: Int64[Tensor, "R L"], n_steps: int
) -> tuple[Int64[Tensor, "R T I"], Int64[Tensor, "R T"]]:
    """The newest `n_steps` behaviours of left-aligned histories, oldest first, and zeros behind them."""
    length = (age > 0).to(torch.int64).sum(1, keepdim=True)
    places = torch.arange(n_steps, device=age.device) + (length - n_steps).clamp_min(0)
    there = (places < length).to(torch.int64)
    places = places * there  # place 0 is always there to be read, and the product below clears what was read
    taken = fields.gather(1, places.unsqueeze(-1).expand(-1, -1, fields.shape[2]))
    return taken * there.unsqueeze(-1), age.gather(1, places) * there


def longest(mask: Bool[Tensor, "R T"]) -> int:
    """How many steps any row needs; all of them while exporting, where the graph must fit every request."""
    return mask.shape[1] if torch.compiler.is_exporting() else int(mask.any(0).sum())


class SequenceGru(nn.Module):
    """h_t = GRU(x_t, h_{t-1}) over left-aligned sequences; zero where nothing is (DIEN eq. 2-5)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.hidden = hidden

    def glorot_parts(self) -> list[GlorotPart]:
        """Three gates side by side, each a layer of its own."""
        of_inputs, of_states = self.gru.all_weights[0][:2]
        return [(of_inputs, self.gru.input_size, self.hidden), (of_states, self.hidden, self.hidden)]

    def forward(self, x: Float[Tensor, "R T D"], mask: Bool[Tensor, "R T"]) -> Float[Tensor, "R T H"]:
        """All states. What follows a sequence's end cannot change the states before it, and is cleared."""
        if torch.compiler.is_exporting():
            states = self._as_operator(x)
        elif not (n_steps := longest(mask)):
            states = x.new_zeros(*x.shape[:2], self.hidden)
        else:
            states = functional.pad(self.gru(x[:, :n_steps])[0], (0, 0, 0, x.shape[1] - n_steps))
        return states * mask.unsqueeze(-1).to(x.dtype)

    def _as_operator(self, x: Tensor) -> Tensor:
        """ONNX's GRU: gates in the order update, reset, new; torch keeps reset, update, new."""
        weights = [_update_first(weight) for weight in self.gru.all_weights[0]]
        of_inputs, of_states, *biases = weights
        inputs = (x.transpose(0, 1), of_inputs.unsqueeze(0), of_states.unsqueeze(0), torch.cat(biases).unsqueeze(0))
        shape = (x.shape[1], 1, x.shape[0], self.hidden)
        states: Tensor = torch.onnx.ops.symbolic(
            "GRU", inputs, {"hidden_size": self.hidden, "linear_before_reset": 1}, dtype=x.dtype, shape=shape
        )
        return states.squeeze(1).transpose(0, 1)


def _update_first(weight: Tensor) -> Tensor:
    n = weight.shape[0] // 3
    return torch.cat([weight[n : 2 * n], weight[:n], weight[2 * n :]])


class AttentionalGru(nn.Module):
    """AUGRU: a GRU whose update gate is scaled by how much a query attends to the step (DIEN eq. 11-12).

    u = σ(W_u x + U_u h + b_u), r = σ(W_r x + U_r h + b_r), h̃ = tanh(W_h x + r ⊙ U_h h + b_h),
    h ← (1 - a u) ⊙ h + a u ⊙ h̃. A step nobody attends to (a = 0, all padding) leaves the state as it is.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden, bias=False)
        self.hidden = hidden

    def glorot_parts(self) -> list[GlorotPart]:
        """Three gates side by side, each a layer of its own."""
        return [(layer.weight, layer.in_features, self.hidden) for layer in (self.inputs, self.recurrent)]

    def input_part(self, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T G"]:
        """W x + b of all gates: the same for all queries, so made once per request."""
        y: Tensor = self.inputs(x)
        return y

    def forward(
        self,
        input_part: Float[Tensor, "R T G"],
        weights: Float[Tensor, "R C T"],
        mask: Bool[Tensor, "R T"],
    ) -> Float[Tensor, "R C H"]:
        """The last state for C queries per request, from their attention; 0 where there is no history.

        `mask` says only where the steps may stop; that `weights` are 0 in the padding is what holds the state.
        """
        n_hidden = self.hidden
        # Steps as slices that keep their axis, [R 1 G] and [R C 1]: they broadcast, and an unrolled graph stays short.
        gates, new = torch.split(input_part, [2 * n_hidden, n_hidden], dim=-1)
        gate_steps, new_steps = torch.split(gates, 1, dim=1), torch.split(new, 1, dim=1)
        attention = torch.split(weights, 1, dim=2)
        recurrent = self.recurrent.weight.t()
        state = weights.new_zeros(*weights.shape[:2], n_hidden)
        for t in range(longest(mask)):
            from_gates, from_state = torch.split(state @ recurrent, [2 * n_hidden, n_hidden], dim=-1)
            both = torch.sigmoid(gate_steps[t] + from_gates)
            update, reset = torch.split(both, n_hidden, dim=-1)
            proposed = torch.tanh(new_steps[t] + reset * from_state)
            state = state + attention[t] * update * (proposed - state)
        return state
