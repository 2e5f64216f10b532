"""The causal block sees nothing that comes later, and the newest place is the last that is there."""

import pytest
import torch

from training.layers import causal
from training.layers.causal import CausalBlock, newest, not_later


def block() -> CausalBlock:
    torch.manual_seed(1)
    return CausalBlock(8, 2)


MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [False] * 4])


def check_nothing_later_is_seen() -> None:
    one, x = block(), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[:, 2:] += 1.0
    assert torch.equal(one(x, MASK)[:, :2], one(other, MASK)[:, :2])
    assert not torch.equal(one(x, MASK)[0, 2:], one(other, MASK)[0, 2:])


def test_no_place_sees_a_later_one() -> None:
    check_nothing_later_is_seen()


def test_without_the_order_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "not_later", lambda mask: torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool))
    with pytest.raises(AssertionError):
        check_nothing_later_is_seen()


def test_the_attention_is_softmax_over_what_came_before() -> None:
    one, x = block(), torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(3))
    normed = one.attention_norm(x)[0]
    queries, keys, values = one.query_key_value(normed).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = queries[2, head] @ keys[:, head].T / 2.0
        heads.append(torch.softmax(scores, -1) @ values[:, head])
    attended = x[0, 2] + one.out(torch.cat(heads))
    wanted = attended + one.dense(one.dense_norm(attended))
    assert (one(x, MASK[:1, :3])[0, 2] - wanted).abs().max() < 1e-6


def test_newest_is_the_last_that_is_there() -> None:
    x = torch.arange(12.0).reshape(3, 4, 1)
    assert newest(x, MASK).squeeze(1).tolist() == [3.0, 5.0, 0.0]
    assert not_later(MASK).tolist()[1] == [True, True, False, False]


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        CausalBlock(6, 4)
