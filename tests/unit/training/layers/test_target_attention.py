"""Keys and values made once a request: the same as torch's own multi-head attention, candidate by candidate."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.layers.attention import TargetAttention

QUERY, KEY, WIDTH, HEADS = 5, 6, 8, 4
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def candidate_by_candidate(attention: TargetAttention, queries: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Each pair by itself, its keys and values made anew, through torch's own attention; queries [R C Q]."""
    found = torch.zeros(*queries.shape[:2], WIDTH)
    for r, of_request in enumerate(queries):
        for c, query in enumerate(of_request):
            heads = (attention.query(query[None]), attention.key(x[r, mask[r]]), attention.value(x[r, mask[r]]))
            q, k, v = (one.view(-1, HEADS, WIDTH // HEADS).transpose(0, 1) for one in heads)
            pooled = functional.scaled_dot_product_attention(q, k, v)
            found[r, c] = attention.out(pooled.transpose(0, 1).reshape(-1, WIDTH))[0]
    return found


def check_same() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(QUERY, KEY, WIDTH, HEADS)
    queries, x = torch.randn(2, 3, QUERY), torch.randn(2, 4, KEY)
    found = attention(queries, *attention.keys_values(x), MASK)
    expected = candidate_by_candidate(attention, queries, x, MASK)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-6)


@torch.no_grad()
def test_a_page_is_its_candidates_one_by_one() -> None:
    check_same()


@torch.no_grad()
def test_saboteur_heads_that_are_laid_out_wrong_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TargetAttention.keys_values

    def exchanged(attention: TargetAttention, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = honest(attention, x)
        return keys, values.flip(1)

    monkeypatch.setattr(TargetAttention, "keys_values", exchanged)
    with pytest.raises(AssertionError):
        check_same()


@torch.no_grad()
def test_the_trigger_alone_is_a_page_of_one() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(QUERY, KEY, WIDTH, HEADS)
    query, x = torch.randn(2, QUERY), torch.randn(2, 4, KEY)
    page = attention(query.unsqueeze(1), *attention.keys_values(x), MASK)
    assert torch.allclose(attention.one_per_request(query, x, MASK), page.squeeze(1), atol=1e-6)
