"""The timed attention pair by pair, without any of its shared products."""

import math

import pytest
import torch
from torch import Tensor

from training.layers import timed_attention
from training.layers.timed_attention import TimedAttention


def pair_by_pair(attention: TimedAttention, query: Tensor, keys: Tensor, gaps: Tensor, mask: Tensor) -> Tensor:
    """One query over one history: ReLU(W[q ⊕ gap_t]), DIN's unit, softmax, sum."""
    weight = torch.cat([attention.query.weight, attention.gap.weight], dim=1)
    scores = []
    for key, gap in zip(keys[mask], gaps[mask], strict=True):
        timed = torch.relu(weight @ torch.cat([query, gap]) + attention.query.bias)
        if attention.flavour == "dot":
            score = timed @ key
        else:
            unit = torch.cat([attention.query_term, attention.key_term.weight, attention.product_term], dim=1)
            hidden = torch.relu(unit @ torch.cat([timed, key, timed * key]) + attention.key_term.bias)
            score = attention.out(attention.rest(hidden)).squeeze()
        scores.append(score / math.sqrt(len(keys[0])))
    return torch.softmax(torch.stack(scores), 0) @ keys[mask]


def check_against_pairs(flavour: str, n_candidates: int = 3) -> None:
    torch.manual_seed(0)
    attention = TimedAttention(5, 3, 6, flavour, hidden=(7, 4))
    queries, keys, gaps = torch.randn(2, n_candidates, 5), torch.randn(2, 4, 6), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [False, True, False, True]])
    found = attention(queries, keys, attention.gap(gaps), mask)
    for r in range(2):
        for c in range(n_candidates):
            expected = pair_by_pair(attention, queries[r, c], keys[r], gaps[r], mask[r])
            assert torch.allclose(found[r, c], expected, atol=1e-5)


both_flavours = pytest.mark.parametrize("flavour", ["mlp", "dot"])


@torch.no_grad()
@both_flavours
def test_pair_by_pair(flavour: str) -> None:
    check_against_pairs(flavour)
    check_against_pairs(flavour, n_candidates=8)  # more than hidden units: products by behaviour


@torch.no_grad()
@both_flavours
def test_a_query_without_its_relu_is_caught(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = torch.relu
    monkeypatch.setattr(timed_attention.torch, "relu", lambda x: x if x.dim() == 4 else honest(x))
    with pytest.raises(AssertionError):
        check_against_pairs(flavour)


@torch.no_grad()
@both_flavours
def test_attention_to_padding_is_caught(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_attention, "masked_softmax", lambda scores, _mask: torch.softmax(scores, -1))
    with pytest.raises(AssertionError):
        check_against_pairs(flavour)


@both_flavours
def test_nothing_there_gives_zero(flavour: str) -> None:
    attention = TimedAttention(5, 3, 6, flavour)
    found = attention(torch.randn(1, 2, 5), torch.randn(1, 4, 6), torch.randn(1, 4, 6), torch.zeros(1, 4).bool())
    assert torch.equal(found, torch.zeros(1, 2, 6))
