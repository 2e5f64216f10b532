"""The encoder against torch's own, where torch's is right, and on empty histories, where it is not."""

import pytest
import torch
from torch import Tensor, nn

from training.layers import attention
from training.layers.encoder_block import EncoderBlock, HistoryEncoder


def torchs_own(block: EncoderBlock, n_heads: int) -> nn.TransformerEncoderLayer:
    """torch's layer with the same weights; its biases, which ours has not, are zero."""
    width, hidden = block.norm.normalized_shape[0], block.feed_forward.layers[0].out_features
    layer = nn.TransformerEncoderLayer(width, n_heads, hidden, dropout=0.0, batch_first=True).train()
    mine = block.attention
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key.weight, mine.value.weight]))
        layer.self_attn.in_proj_bias.zero_()
        layer.self_attn.out_proj.weight.copy_(mine.out.weight)
        layer.self_attn.out_proj.bias.zero_()
    layer.linear1.load_state_dict(block.feed_forward.layers[0].state_dict())
    layer.linear2.load_state_dict(block.feed_forward.layers[2].state_dict())
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.norm.state_dict())
    return layer


def check_against_torchs_own() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(8, 16, 2)
    x = torch.randn(3, 5, 8)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    own = torchs_own(block, 2)(x, src_key_padding_mask=~mask)
    assert torch.allclose(block(x, mask)[mask], own[mask], atol=1e-5)


@torch.no_grad()
def test_a_block_is_the_papers() -> None:
    check_against_torchs_own()


@torch.no_grad()
def test_a_block_that_attends_to_padding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "masked_softmax", lambda scores, _mask: torch.softmax(scores, -1))
    with pytest.raises(AssertionError):
        check_against_torchs_own()


def test_padding_is_zero_and_an_empty_history_has_finite_gradients() -> None:
    encoder = HistoryEncoder(6, 8, 16, 2, 2)
    x: Tensor = torch.randn(2, 4, 6, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    encoded = encoder(x, mask)
    assert not encoded[~mask].any()
    assert encoded[mask].abs().sum() > 0
    encoded.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any()
