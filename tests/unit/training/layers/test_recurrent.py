"""The recurrent layers against plain loops over cells, and what holds the state."""

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training.random_inputs import with_large_weights
from training.layers import recurrent
from training.layers.recurrent import AttentionalGru, SequenceGru, newest

LENGTHS = (0, 1, 3, 5)
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def augru() -> AttentionalGru:
    layer = with_large_weights(AttentionalGru(4, 3), spread=0.6).double()
    assert isinstance(layer, AttentionalGru)
    return layer


def test_newest_takes_the_last_behaviours_in_order_and_clears_the_rest() -> None:
    fields = torch.arange(1, 21).reshape(2, 5, 2)
    age = torch.tensor([[3, 2, 9, 7, 0], [4, 0, 0, 0, 0]])
    taken, ages = newest(fields, age, 3)
    assert ages.tolist() == [[2, 9, 7], [4, 0, 0]]
    assert taken[..., 0].tolist() == [[3, 5, 7], [11, 0, 0]]
    taken, ages = newest(fields, age, 7)
    assert ages.tolist() == [[3, 2, 9, 7, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0]]
    assert taken[0, :, 1].tolist() == [2, 4, 6, 8, 0, 0, 0]
    assert not newest(fields, torch.zeros_like(age), 3)[1].any()


@torch.no_grad()
def test_the_gru_is_a_loop_over_its_cell_and_stops_where_the_sequence_does() -> None:
    torch.manual_seed(0)
    layer, x = SequenceGru(4, 3).double(), drawn(4, 5, 4)
    cell = nn.GRUCell(4, 3).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.gru.state_dict().items()})
    states = layer(x, MASK)
    for r, length in enumerate(LENGTHS):
        state = torch.zeros(1, 3, dtype=torch.float64)
        for t in range(length):
            state = cell(x[r, t : t + 1], state)
            assert torch.allclose(states[r, t], state[0], atol=1e-12)
        assert not states[r, length:].any()
    assert not layer(x[:1], MASK[:1]).any()  # nobody has a history
    assert torch.equal(layer(torch.where(MASK.unsqueeze(-1), x, 99.0), MASK), states)  # pads never matter


def slow_augru(layer: AttentionalGru, x: Tensor, attention: Tensor) -> Tensor:
    """Eq. 11-12 for one query, gate by gate: x [T D], attention [T]."""
    w_u, w_r, w_h = layer.inputs.weight.chunk(3)
    b_u, b_r, b_h = layer.inputs.bias.chunk(3)
    u_u, u_r, u_h = layer.recurrent.weight.chunk(3)
    state = torch.zeros(3, dtype=torch.float64)
    for x_t, a_t in zip(x, attention, strict=True):
        update = a_t * torch.sigmoid(w_u @ x_t + u_u @ state + b_u)
        reset = torch.sigmoid(w_r @ x_t + u_r @ state + b_r)
        proposed = torch.tanh(w_h @ x_t + reset * (u_h @ state) + b_h)
        state = (1 - update) * state + update * proposed
    return state


@torch.no_grad()
def check_equations() -> None:
    layer, x = augru(), drawn(4, 5, 4)
    weights = torch.softmax(drawn(4, 2, 5, seed=1), -1) * MASK.unsqueeze(1)
    last = layer(layer.input_part(x), weights, MASK)
    assert last.shape == (4, 2, 3)
    for r, length in enumerate(LENGTHS):
        for c in range(2):
            wanted = slow_augru(layer, x[r, :length], weights[r, c, :length])
            assert torch.allclose(last[r, c], wanted, atol=1e-12)


def test_the_augru_is_its_equations() -> None:
    check_equations()


def test_steps_that_stop_too_early_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "longest", lambda _mask: 3)
    with pytest.raises(AssertionError):
        check_equations()


@torch.no_grad()
def test_a_step_without_attention_leaves_the_state() -> None:
    layer, x = augru(), drawn(1, 5, 4)
    everything = torch.ones(1, 5, dtype=torch.bool)
    weights = torch.tensor([[[0.6, 0.0, 0.4, 0.0, 0.0], [0.6, 0.1, 0.4, 0.0, 0.0]]], dtype=torch.float64)
    parts = layer.input_part(x)
    attended = layer(parts[:, [0, 2]], weights[:, :1, [0, 2]], everything[:, :2])
    last = layer(parts, weights, everything)
    assert torch.equal(last[:, :1], attended)
    assert not torch.allclose(last[:, 1:], attended)  # the twin: a step with attention moves it
    assert not layer(parts, weights * 0, everything).any()
