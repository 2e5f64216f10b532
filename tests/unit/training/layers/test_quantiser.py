"""Residual quantisation: codes by hand, exactness in fixed point, codes that follow what chooses them."""

import pytest
import torch
from torch import Tensor

from training.layers import quantiser
from training.layers.quantiser import LIMIT, STEPS, ResidualQuantiser, k_means


def drawn(n: int = 500, width: int = 8, seed: int = 0) -> Tensor:
    """Points in a few heaps."""
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, width, generator=chance) * 0.5
    return centres[torch.arange(n) % 12] + 0.05 * torch.randn(n, width, generator=chance)


def fitted(z: Tensor, n_levels: int = 3, n_codes: int = 16, n_steps: int = 30) -> ResidualQuantiser:
    torch.manual_seed(1)
    one = ResidualQuantiser(z.shape[1], n_levels, n_codes, decay=0.9)
    for _ in range(n_steps):
        one.follow(z)
    return one


def slow_choice(one: ResidualQuantiser, z: Tensor) -> list[list[int]]:
    """The definition, vector by vector, in double precision over the same grid."""
    books = one.all_codes().double().reshape(one.n_levels, one.n_codes, -1)
    found = []
    for vector in z.double():
        rest, codes = torch.round(vector * STEPS) / STEPS, []
        for level, book in enumerate(books):
            k = int((rest.clamp(-LIMIT / STEPS, LIMIT / STEPS) - book).norm(dim=1).argmin())
            rest = rest - book[k]
            codes.append(k + level * one.n_codes)
        found.append(codes)
    return found


def test_codes_are_the_nearest_to_what_is_left() -> None:
    z = drawn(60)
    one = fitted(z)
    assert one.choose(z).tolist() == slow_choice(one, z)


def test_a_vector_made_of_codes_is_found_again() -> None:
    one = ResidualQuantiser(2, 2, 2, decay=0.9)
    one.codes.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.25, 0.0], [0.0, -0.25]]]))
    z = torch.tensor([[1.25, 0.0], [0.0, 0.75]])
    chosen = one.choose(z)
    assert chosen.tolist() == [[0, 2], [1, 3]]
    assert torch.equal(one.straight_through(z, chosen), z)


def test_the_order_of_additions_changes_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns in another order: every sum is added up in another order, on vectors midway between two codes."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(1)
    one, other = ResidualQuantiser(32, 1, 256, 0.9), ResidualQuantiser(32, 1, 256, 0.9)
    other.codes.copy_(one.codes[:, :, order])
    codes = one.codes[0]
    z = (codes + codes[torch.cdist(codes, codes).fill_diagonal_(9e9).argmin(1)]) / 2
    assert torch.equal(one.choose(z), other.choose(z[:, order]))
    monkeypatch.setattr(quantiser.torch, "round", lambda x: x)
    assert not torch.equal(one.choose(z), other.choose(z[:, order]))


def test_sums_stay_exact_at_the_limits() -> None:
    """The largest numbers that can be met, in float32 and in double: the same."""
    chance = torch.Generator().manual_seed(5)
    book = torch.randint(-LIMIT, LIMIT + 1, (64, quantiser.MAX_WIDTH), generator=chance).float()
    book[0], book[1] = LIMIT, -LIMIT
    near = torch.cat([book, -book])
    distance = 0.5 * (book * book).sum(1) - near @ book.T
    exact = 0.5 * (book.double() ** 2).sum(1) - near.double() @ book.double().T
    assert torch.equal(distance.double(), exact)


def test_a_width_beyond_exactness_is_refused() -> None:
    with pytest.raises(ValueError, match="exact"):
        ResidualQuantiser(quantiser.MAX_WIDTH + 1, 2, 4, 0.9)


def test_codes_come_to_lie_where_the_vectors_are() -> None:
    z = drawn()
    one = fitted(z)
    left = (z - one.straight_through(z, one.choose(z))).square().mean()
    assert left < 0.01 * z.var()
    torch.manual_seed(1)
    unfitted = ResidualQuantiser(8, 3, 16, 0.9)
    assert (z - unfitted.straight_through(z, unfitted.choose(z))).square().mean() > 10 * left


def test_every_level_leaves_less() -> None:
    z = drawn()
    one = fitted(z)
    chosen = one.choose(z)
    codes = one.all_codes()
    left = [(z - codes[chosen[:, : level + 1]].sum(1)).square().mean() for level in range(3)]
    assert left[0] > left[1] > left[2]


def test_a_dead_code_begins_anew_and_without_it_stays_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def far(one: ResidualQuantiser) -> ResidualQuantiser:
        """One code where nothing is, long enough for its load to fade."""
        one.codes[0, 3], one.loads[0, 3] = 1.9, 1e-6
        one.sums[0, 3] = 1.9 * 1e-6
        return one

    z = drawn()
    revived = far(fitted(z))
    revived.follow(z)
    assert revived.codes[0, 3].abs().max() < 1.8
    monkeypatch.setattr(quantiser, "DEAD", 0.0)
    dead = far(fitted(z))
    dead.follow(z)
    assert dead.codes[0, 3].abs().max() > 1.8


def test_gradients_go_straight_through() -> None:
    z = drawn(20).requires_grad_()
    one = ResidualQuantiser(8, 2, 16, 0.9)
    weights = torch.randn(20, 8)
    (one.straight_through(z, one.choose(z)) * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)


def test_k_means_with_fewer_points_than_means() -> None:
    torch.manual_seed(0)
    means = k_means(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), 5, 3)
    assert means.shape == (5, 2)
    assert torch.isfinite(means).all()
    assert (means - torch.tensor([0.0, 1.0])).abs().sum(1).min() < 1e-6
