"""DIN's unit: all three ways of making its products are the paper's unit on [q, k, q-k, q⊙k], pair by pair."""

import pytest
import torch

from training.layers.attention import DinAttention

HIDDEN = (7, 4)


def pair_by_pair(
    attention: DinAttention, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """One request: every pair through the whole first layer at once."""
    unit = torch.cat([attention.query_term.weight, attention.key_term.weight, attention.product_term], dim=1)
    pooled = []
    for q in attention.query(queries):
        inputs = torch.stack([torch.cat([q, key, q * key]) for key in keys[mask]])
        hidden = torch.relu(inputs @ unit.T + attention.query_term.bias)
        scores = attention.rest(hidden).squeeze(-1) * attention.scale
        pooled.append(torch.softmax(scores, 0) @ keys[mask])
    return torch.stack(pooled)


def check_against_pairs(n_requests: int, n_candidates: int) -> None:
    torch.manual_seed(0)
    attention = DinAttention(5, 6, "mlp", HIDDEN)
    queries, keys = torch.randn(n_requests, n_candidates, 5), torch.randn(n_requests, 4, 6)
    mask = torch.tensor([[True, True, True, False], [False, True, False, True]])[:n_requests]
    found = attention(queries, keys, attention.key_part(keys), mask)
    for r in range(n_requests):
        assert torch.allclose(found[r], pair_by_pair(attention, queries[r], keys[r], mask[r]), atol=1e-5)


# Fewer candidates than hidden units, as many, more; and one request, which is always by behaviour.
SHAPES = [(2, 3), (2, 7), (2, 8), (1, 3)]


@torch.no_grad()
@pytest.mark.parametrize(("n_requests", "n_candidates"), SHAPES)
def test_pair_by_pair(n_requests: int, n_candidates: int) -> None:
    check_against_pairs(n_requests, n_candidates)


@pytest.mark.parametrize(("n_requests", "n_candidates"), SHAPES)
def test_all_ways_have_the_gradients_of_the_pairs(n_requests: int, n_candidates: int) -> None:
    torch.manual_seed(0)
    attention = DinAttention(5, 6, "mlp", HIDDEN)
    queries, keys = torch.randn(n_requests, n_candidates, 5), torch.randn(n_requests, 4, 6)
    mask = torch.tensor([[True, True, True, False], [False, True, False, True]])[:n_requests]
    weight = torch.randn(n_requests, n_candidates, 6)

    def gradients(pooled: torch.Tensor) -> list[torch.Tensor]:
        attention.zero_grad()
        (pooled * weight).sum().backward()
        return [parameter.grad.clone() for parameter in attention.parameters()]

    found = gradients(attention(queries, keys, attention.key_part(keys), mask))
    one_by_one = [pair_by_pair(attention, queries[r], keys[r], mask[r]) for r in range(n_requests)]
    for ours, theirs in zip(found, gradients(torch.stack(one_by_one)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("n_requests", "n_candidates"), SHAPES)
def test_an_empty_history_pools_to_nothing(n_requests: int, n_candidates: int) -> None:
    attention = DinAttention(5, 6, "mlp", HIDDEN)
    queries, keys = torch.randn(n_requests, n_candidates, 5), torch.randn(n_requests, 4, 6)
    nothing = torch.zeros(n_requests, 4, dtype=torch.bool)
    assert not attention(queries, keys, attention.key_part(keys), nothing).any()


@torch.no_grad()
@pytest.mark.parametrize("flavour", ["mlp", "dot"])
def test_one_query_per_request_is_a_page_of_one(flavour: str) -> None:
    torch.manual_seed(0)
    attention = DinAttention(5, 6, flavour, HIDDEN)  # type: ignore[arg-type]
    queries, keys, mask = torch.randn(3, 5), torch.randn(3, 4, 6), torch.rand(3, 4) < 0.7
    of_page = attention(queries.unsqueeze(1), keys, attention.key_part(keys), mask)
    assert torch.allclose(attention.one_per_request(queries, keys, mask), of_page.squeeze(1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "n_requests", "n_candidates"), [("_by_pair", 2, 3), ("_by_behaviour", 2, 8), ("_of_one_request", 1, 3)]
)
def test_saboteur_a_way_that_is_wrong_is_caught(
    way: str, n_requests: int, n_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = getattr(DinAttention, way)
    monkeypatch.setattr(DinAttention, way, lambda *given: torch.relu(honest(*given) - 0.1))
    with pytest.raises(AssertionError):
        check_against_pairs(n_requests, n_candidates)
