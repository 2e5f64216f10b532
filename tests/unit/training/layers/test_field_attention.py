"""Self-attention over the fields of two items against its equation, one candidate and one head at a time."""

import pytest
import torch
from torch import Tensor

from training.layers.field_attention import FieldSelfAttention
from training.layers.ragged import CandidateRows


def by_hand(of: FieldSelfAttention, x: Tensor) -> Tensor:
    q, k, v = (x @ part.T for part in of.projections.weight.chunk(3))
    heads = []
    for head in range(2):
        take = slice(3 * head, 3 * head + 3)
        heads.append(torch.softmax(q[:, take] @ k[:, take].T / 3**0.5, dim=-1) @ v[:, take])
    return (x + torch.cat(heads, dim=-1)).flatten()


@torch.no_grad()
def test_every_field_of_both_items_sees_every_other() -> None:
    torch.manual_seed(4)
    of = FieldSelfAttention(6, 2)
    owner = torch.tensor([0, 0, 1])
    rows = CandidateRows.of(owner, 2)
    candidate, trigger = torch.randn(3, 2, 6), torch.randn(2, 2, 6)
    found = of(rows, of.projected(candidate), of.projected(trigger))
    for row, request in enumerate(owner.tolist()):
        torch.testing.assert_close(found[row], by_hand(of, torch.cat([candidate[row], trigger[request]])))
    swapped = of(rows, of.projected(candidate), of.projected(trigger.flip(0)))
    assert (found - swapped)[:, :12].abs().max() > 1e-3  # the candidate's own fields have seen the trigger's


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="5 heads"):
        FieldSelfAttention(24, 5)
