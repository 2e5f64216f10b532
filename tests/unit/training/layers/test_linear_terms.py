"""Linear terms and hashed crosses, summed by hand."""

import pytest
import torch

from tests.unit.training.random_inputs import SIZES, random_inputs, with_large_weights
from training.layers import crosses
from training.layers.crosses import HashedCross
from training.layers.linear_terms import LinearTerms


def by_hand(terms: LinearTerms, table: str, fields: torch.Tensor) -> float:
    tables = getattr(terms, table).tables
    return sum(tables[i].weight[int(value), 0].item() for i, value in enumerate(fields))


@torch.no_grad()
def test_the_terms_of_a_page_are_the_sums_of_its_ids_weights() -> None:
    terms, inputs = with_large_weights(LinearTerms(SIZES, trigger=True)), random_inputs((2, 3))
    found = terms.request(inputs)
    for r in range(2):
        length = int((inputs.history_age[r] > 0).sum())
        history = [by_hand(terms, "history", inputs.history_fields[r, i]) for i in range(length)]
        wanted = (
            by_hand(terms, "user", inputs.user_fields[r])
            + by_hand(terms, "context", inputs.context_fields[r])
            + by_hand(terms, "trigger_item", inputs.trigger_fields[r])
            + sum(history) / max(1, length)
        )
        assert found[r].item() == pytest.approx(wanted, abs=1e-5)
    assert terms.similarity is not None
    bins = terms.similarity.vectors.weight[terms.similarity.bins(inputs.candidate_similarity), 0]
    for n in range(5):
        wanted = by_hand(terms, "candidate_item", inputs.candidate_fields[n]) + bins[n].item()
        assert terms.candidate(inputs)[n].item() == pytest.approx(wanted, abs=1e-5)


def test_without_the_trigger_there_are_no_weights_for_it() -> None:
    names = [name for name, _ in LinearTerms(SIZES, trigger=False).named_parameters()]
    assert not [name for name in names if "trigger" in name or "similarity" in name]


def test_pairs_get_buckets_by_hand() -> None:
    cross = HashedCross(11)
    left, right = torch.tensor([2, 2, 3, 2**31 - 1]), torch.tensor([5, 6, 5, 7])
    sums = [
        x * crosses._LEFT + y * crosses._RIGHT + crosses._SHIFT
        for x, y in zip(left.tolist(), right.tolist(), strict=True)
    ]
    wanted = [total**2 % crosses._PRIME % 10 + 1 for total in sums]
    assert cross.buckets(left, right).tolist() == wanted
    assert cross.buckets(left.unsqueeze(1), right).shape == (4, 4)


def test_a_pair_with_nothing_or_unknown_is_no_pair() -> None:
    cross = with_large_weights(HashedCross(11))
    left, right = torch.tensor([0, 1, 5, 5, 5]), torch.tensor([5, 5, 0, 1, 5])
    assert cross.buckets(left, right).tolist()[:4] == [0, 0, 0, 0]
    assert cross(left, right)[:4].abs().max().item() == 0
    assert cross(left, right)[4].item() != 0  # the twin: known ids do meet


def test_pairs_of_a_small_shop_rarely_share_a_bucket() -> None:
    cross = HashedCross(20_000)
    left, right = torch.meshgrid(torch.arange(2, 62), torch.arange(2, 62), indexing="ij")
    n_used = cross.buckets(left, right).unique().numel()
    assert n_used > 0.85 * left.numel()  # by chance alone 3,600 pairs would use 3,295 of 19,999 buckets


def test_a_cross_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        HashedCross(1)
