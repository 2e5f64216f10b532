"""DIN's unit: both ways of making its products are the paper's unit on [q, k, q-k, q⊙k], pair by pair."""

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


@torch.no_grad()
@pytest.mark.parametrize("way", ["_products_by_pair", "_products_by_behaviour"])
def test_saboteur_a_way_without_the_query_term_is_caught(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = getattr(DinAttention, way)
    monkeypatch.setattr(
        DinAttention, way, lambda self, q, *rest: honest(self, q, *rest) - self.query_term(q).unsqueeze(2)
    )
    with pytest.raises(AssertionError):
        check_against_pairs(2, 3 if way == "_products_by_pair" else 8)
