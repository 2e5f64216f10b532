"""A peer whose layers start by Glorot: dense and recurrent ones wide enough, embeddings as they were."""

import pytest
import torch
from torch import nn

from benchmarks.peers.glorot import by_glorot


class Peer(nn.Module):
    """As a library leaves it: everything drawn from N(0, 0.0001^2), biases not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({"item": nn.Embedding(50, 8)})
        self.dense, self.recurrent = nn.Linear(64, 32), nn.GRU(16, 16, batch_first=True)
        self.bias = nn.Parameter(torch.ones(1))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1e-4)


@pytest.fixture(name="peer")
def _peer() -> Peer:
    torch.manual_seed(1)
    return Peer()


def test_dense_weights_have_glorots_spread(peer: Peer) -> None:
    by_glorot(peer)
    assert peer.dense.weight.std().item() == pytest.approx((2 / (64 + 32)) ** 0.5, rel=0.1)


def test_each_gate_of_a_recurrent_layer_is_a_matrix_of_its_own(peer: Peer) -> None:
    by_glorot(peer)
    for gate in peer.recurrent.weight_hh_l0.chunk(3):
        assert gate.std().item() == pytest.approx((2 / (16 + 16)) ** 0.5, rel=0.15)


def test_biases_are_zero_and_embeddings_stay(peer: Peer) -> None:
    before = peer.tables["item"].weight.clone()  # type: ignore[union-attr]
    by_glorot(peer)
    assert torch.equal(peer.tables["item"].weight, before)  # type: ignore[arg-type]
    assert not peer.dense.bias.any()
    assert not peer.recurrent.bias_ih_l0.any()
    assert not peer.bias.any()
