"""The hash of pairs: as many buckets as a random one would fill, for any number of buckets; no pair of the unknown."""

import pytest
import torch

from training.layers.crosses import HashedCross

N = 200


def expected(n_pairs: int, n_buckets: int) -> float:
    """Distinct buckets that a random hash fills."""
    return n_buckets * (1 - (1 - 1 / n_buckets) ** n_pairs)


def filled(buckets: torch.Tensor) -> int:
    return len(buckets.unique())


@pytest.mark.parametrize("n_buckets", [501, 20_000, 2**18, 1_000_004])
def test_the_most_frequent_pairs_fill_as_many_buckets_as_chance_would(n_buckets: int) -> None:
    ids = torch.arange(2, 2 + N)
    found = HashedCross(n_buckets).buckets(ids.unsqueeze(1), ids)
    assert filled(found) == pytest.approx(expected(N * N, n_buckets - 1), rel=0.02)
    assert int(found.min()) >= 1
    assert int(found.max()) < n_buckets


def test_a_linear_hash_does_not() -> None:
    ids = torch.arange(2, 2 + N)
    found = torch.remainder(ids.unsqueeze(1) * 1_000_003 + ids, 19_999)
    assert filled(found) < 0.7 * expected(N * N, 19_999)


def test_no_number_on_the_way_depends_on_overflow() -> None:
    cross, largest = HashedCross(20_000), 2**31 - 1
    ids = [2, 3, 12_345, largest - 1, largest]
    for left in ids:
        for right in ids:
            prime = 2**31 - 1
            mixed = (left * 1_540_483_477 % prime + right * 1_181_783_497 % prime + 668_265_263) % prime
            wanted = mixed**2 % prime % 19_999 + 1  # Python's whole numbers have no end
            assert int(cross.buckets(torch.tensor(left), torch.tensor(right))) == wanted


def test_nothing_and_unknown_make_no_pair() -> None:
    ids = torch.tensor([0, 1, 2])
    found = HashedCross(50).buckets(ids.unsqueeze(1), ids)
    assert (found > 0).tolist() == [[False] * 3, [False] * 3, [False, False, True]]
