"""Sub-sequences and labels by category, on pages small enough to read."""

import pytest
import torch
from torch import Tensor

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import random_inputs
from training.layers import categories
from training.layers.attention import TargetAttention
from training.layers.categories import (
    SearchedAttention,
    any_click_like_trigger,
    candidate_subsequence,
    same_value,
    trigger_subsequence,
)
from training.layers.ragged import CandidateRows

LEAF = 1


def pages() -> ModelInputs:
    """Two pages, of 2 and 3 candidates. Items are (id, leaf, price); leaves 0 and 1 say nothing."""
    inputs = random_inputs((2, 3), n_history=4)
    return inputs._replace(
        trigger_fields=torch.tensor([[10, 5, 3], [11, 1, 3]]),
        history_fields=torch.tensor(
            [
                [[20, 5, 2], [21, 6, 3], [22, 5, 1], [23, 5, 9]],
                [[24, 1, 2], [25, 5, 3], [0, 0, 0], [0, 0, 0]],
            ]
        ),
        history_age=torch.tensor([[4, 3, 2, 0], [2, 1, 0, 0]]),
        candidate_fields=torch.tensor([[30, 6, 2], [31, 5, 2], [11, 1, 2], [32, 5, 2], [33, 0, 2]]),
        candidate_request=torch.tensor([0, 0, 1, 1, 1]),
    )


def searched_by(inputs: ModelInputs) -> Tensor:
    rows = CandidateRows.of(inputs.candidate_request, 2)
    history, mask = inputs.history_fields[..., LEAF], inputs.history_age > 0
    return candidate_subsequence(rows, inputs.candidate_fields[:, LEAF], history, mask)


def check_nobody_shares_the_unknown() -> None:
    """The second page's trigger is of an unknown leaf: it has no sub-sequence, nor has a candidate without one."""
    assert trigger_subsequence(pages(), LEAF).tolist() == [[True, False, True, False], [False] * 4]
    first, second = searched_by(pages()).tolist()
    assert first == [[False, True, False, False], [True, False, True, False], [False] * 4]
    assert second == [[False] * 4, [False, True, False, False], [False] * 4]


def test_the_unknown_category_is_shared_by_nobody() -> None:
    check_nobody_shares_the_unknown()


@pytest.mark.parametrize("first_known", [0, 1])
def test_an_unknown_category_that_is_shared_is_caught(monkeypatch: pytest.MonkeyPatch, first_known: int) -> None:
    monkeypatch.setattr(categories, "FIRST_KNOWN", first_known)
    with pytest.raises(AssertionError):
        check_nobody_shares_the_unknown()


def test_ids_far_beyond_what_float32_holds_are_told_apart() -> None:
    inputs = pages()
    large = 2**24
    inputs.history_fields[0, 0, LEAF] = large
    inputs.candidate_fields[1, LEAF] = large + 1
    assert not searched_by(inputs)[0, 1, 0]


def test_equal_is_symmetric() -> None:
    left, right = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 4])
    assert same_value(left, right).tolist() == same_value(right, left).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("clicks", "label"),
    [
        ([0, 0, 0, 0, 0], [0, 0]),  # pages without a click are 0 (trap T5)
        ([1, 0, 0, 1, 1], [0, 0]),  # clicks on other leaves; leaf 5 is not the second trigger's
        ([0, 1, 0, 0, 0], [1, 0]),  # the trigger's leaf
        ([1, 1, 1, 0, 0], [1, 1]),  # the second trigger itself, whose leaf nobody knows
    ],
)
def test_the_label_of_a_page(clicks: list[int], label: list[int]) -> None:
    found = any_click_like_trigger(pages(), torch.tensor(clicks, dtype=torch.float32), LEAF)
    assert found.tolist() == label


def test_a_search_that_finds_all_is_plain_attention_and_one_that_finds_nothing_is_zero() -> None:
    torch.manual_seed(0)
    searched, plain = SearchedAttention(6, 5, 8, 2), TargetAttention(6, 5, 8, 2)
    plain.load_state_dict(searched.state_dict())
    queries, x = torch.randn(2, 3, 6), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    keys, values = searched.keys_values(x)
    every = mask.unsqueeze(1).expand(2, 3, 4)
    assert torch.allclose(searched(queries, keys, values, every), plain(queries, keys, values, mask), atol=1e-6)
    one = every.clone()
    one[0, 1] = False
    found = searched(queries, keys, values, one)
    assert torch.equal(found[0, 1], torch.zeros(8))
    assert torch.allclose(found[0, [0, 2]], plain(queries, keys, values, mask)[0, [0, 2]], atol=1e-6)
