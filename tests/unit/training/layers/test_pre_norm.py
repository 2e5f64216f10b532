"""The Pre-LN layer against its two lines written out, and its padding."""

import pytest
import torch
from torch import Tensor

from training.layers import attention
from training.layers.pre_norm import PreNormLayer


def layer() -> PreNormLayer:
    torch.manual_seed(2)
    return PreNormLayer(8, 2)


@torch.no_grad()
def by_hand(of: PreNormLayer, x: Tensor) -> Tensor:
    """One sequence without padding, head by head."""
    a, normed = of.attention, of.before_attention(x)
    heads = []
    for head in range(2):
        take = slice(4 * head, 4 * head + 4)
        q, k, v = (normed @ part.weight[take].T for part in (a.query, a.key, a.value))
        heads.append(torch.softmax(q @ k.T / 4**0.5, dim=-1) @ v)
    x = x + torch.cat(heads, dim=-1) @ a.out.weight.T
    inner = torch.relu(of.before_dense(x) @ of.inner.weight.T + of.inner.bias)
    return x + inner @ of.outer.weight.T + of.outer.bias


@torch.no_grad()
def check(of: PreNormLayer) -> None:
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    encoded = of(x, mask)
    torch.testing.assert_close(encoded[0], by_hand(of, x[0]))
    torch.testing.assert_close(encoded[1, :3], by_hand(of, x[1, :3]))
    assert not encoded[1, 3:].any()


def test_as_written_out_with_and_without_padding() -> None:
    check(layer())


def test_attending_to_padding_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "masked_softmax", lambda scores, _mask: torch.softmax(scores, dim=-1))
    with pytest.raises(AssertionError):
        check(layer())
