"""Which candidates are compared with which: by hand on small pages, and by counting on drawn ones."""

import pytest
import torch
from torch import Tensor

from training.layers.label_pairs import page_pairs, pairs_over_time

USER = torch.tensor([7, 7, 9, 3, 4])  # two requests of one user, one of another, two of nobody known
REQUEST = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
CLICKS = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0])


def test_all_pairs_of_a_short_page_and_none_with_padding() -> None:
    there = torch.tensor([[True, True, True], [True, False, False]])
    pairs = page_pairs(there, at_most=64)
    assert pairs.nonzero().tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 2]]


def test_a_long_page_gives_no_more_than_its_share() -> None:
    torch.manual_seed(0)
    there = torch.ones(3, 12, dtype=torch.bool)
    there[1, 3:] = False
    pairs = page_pairs(there, at_most=10)
    assert pairs.sum((1, 2)).tolist() == [10, 3, 10]
    assert not pairs.tril().any()
    assert not (pairs[0] == pairs[2]).all()


def test_pairs_over_time_are_of_one_user_in_two_requests() -> None:
    torch.manual_seed(0)
    found = {tuple(pair) for pair in pairs_over_time(USER, REQUEST, CLICKS, 400).tolist()}
    # user 7: clicked 0 in request 0 and 3 in request 1; not clicked 1 in request 0 and 2 in request 1
    assert found == {(0, 2), (3, 1)}


def test_by_ids_that_hide_who_it_is_strangers_would_be_paired() -> None:
    hidden = torch.tensor([7, 7, 9, 1, 1])  # both unknown
    found = {tuple(pair) for pair in pairs_over_time(hidden, REQUEST, CLICKS, 400).tolist()}
    assert (6, 7) in found


@pytest.mark.parametrize("clicks", [torch.zeros(8), torch.ones(8)], ids=["no click", "only clicks"])
def test_one_class_makes_no_pair(clicks: Tensor) -> None:
    assert pairs_over_time(USER, REQUEST, clicks, 100).shape == (0, 2)


def test_no_more_pairs_than_asked_for() -> None:
    n = 300
    request = torch.arange(n) // 3
    user = torch.full((100,), 5)
    clicks = (torch.arange(n) % 3 == 0).float()
    pairs = pairs_over_time(user, request, clicks, 64)
    assert len(pairs) == 64
    assert (request[pairs[:, 0]] != request[pairs[:, 1]]).all()
    assert (clicks[pairs[:, 0]] == 1).all()
    assert (clicks[pairs[:, 1]] == 0).all()
