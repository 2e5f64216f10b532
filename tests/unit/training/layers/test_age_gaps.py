"""Gaps between behaviours, by hand."""

import torch

from tests.unit.training.random_inputs import SIZES
from training.layers.age_gaps import age_gaps


def test_gaps_by_hand() -> None:
    age = torch.tensor([[9, 9, 4, 1, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6])
    assert age_gaps(age).tolist() == [[0, 1, 6, 4, 0, 0], [0] * 6, [0] * 6]


def test_a_table_of_ages_has_a_row_for_every_gap() -> None:
    oldest, newest = SIZES.n_age_bins - 1, 1
    assert int(age_gaps(torch.tensor([[oldest, newest]])).max()) == oldest
