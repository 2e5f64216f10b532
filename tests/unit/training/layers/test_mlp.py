"""The split first layer is one layer: what the request gives is made once, and nothing changes by it."""

import pytest
import torch
from torch import Tensor, nn

from training.layers.mlp import SplitLinear, TopMlp

REQUEST, CANDIDATE, OUT = 7, 5, 6
OWNER = torch.tensor([0, 0, 0, 1, 2, 2])  # the request of each candidate


def as_one(split: SplitLinear) -> nn.Linear:
    """The same layer over [request | candidate] columns, unsplit."""
    whole = nn.Linear(REQUEST + CANDIDATE, OUT)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([split.request.weight, split.candidate.weight], dim=1))
        whole.bias.copy_(split.request.bias)
    return whole


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, REQUEST), torch.randn(len(OWNER), CANDIDATE)


def check_same(split: SplitLinear) -> None:
    of_request, of_candidates = inputs()
    expected = as_one(split)(torch.cat([of_request[OWNER], of_candidates], dim=1))
    found = split(split.request_part(of_request)[OWNER], of_candidates)
    assert torch.allclose(found, expected, atol=1e-6)
    # A page of one request needs no row a candidate.
    alone = split(split.request_part(of_request[:1]), of_candidates[:3])
    assert torch.allclose(alone, expected[:3], atol=1e-6)


@torch.no_grad()
def test_a_layer_in_two_parts_is_the_one_layer() -> None:
    check_same(SplitLinear(REQUEST, CANDIDATE, OUT))


@torch.no_grad()
def test_saboteur_a_bias_of_each_part_would_be_seen() -> None:
    split = SplitLinear(REQUEST, CANDIDATE, OUT)
    split.candidate = nn.Linear(CANDIDATE, OUT)
    with pytest.raises(AssertionError):
        check_same(split)


def test_the_parts_learn_what_the_one_layer_learns() -> None:
    split = SplitLinear(REQUEST, CANDIDATE, OUT)
    whole, (of_request, of_candidates) = as_one(split), inputs()
    weight = torch.randn(len(OWNER), OUT)
    (whole(torch.cat([of_request[OWNER], of_candidates], dim=1)) * weight).sum().backward()
    (split(split.request_part(of_request)[OWNER], of_candidates) * weight).sum().backward()
    of_whole, of_request_part, of_candidate_part = (
        layer.weight.grad for layer in (whole, split.request, split.candidate)
    )
    assert of_whole is not None
    assert of_request_part is not None
    assert of_candidate_part is not None
    assert torch.allclose(torch.cat([of_request_part, of_candidate_part], dim=1), of_whole, atol=1e-5)


@torch.no_grad()
def test_the_top_is_the_plain_stack_over_the_joined_columns() -> None:
    top, (of_request, of_candidates) = TopMlp(REQUEST, CANDIDATE, (OUT, 4)), inputs()
    hidden = torch.relu(as_one(top.first)(torch.cat([of_request[OWNER], of_candidates], dim=1)))
    expected = top.rest(hidden).squeeze(-1)
    found = top(top.request_part(of_request)[OWNER], of_candidates)
    assert torch.allclose(found, expected, atol=1e-6)
    assert expected.std() > 1e-3
