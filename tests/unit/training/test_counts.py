"""Counts and rates by hand; chunks and their merging change nothing and hold no more than the pairs."""

from collections.abc import Iterator

import numpy as np
import pytest

from training import counts as counts_module
from training.counts import Impressions, PairCounts, count, merge_pairs

N_ROWS = 5


def impressions(*rows: tuple[int, int, int]) -> Impressions:
    """(trigger, candidate, click) each."""
    trigger, candidate, click = np.array(rows, dtype=np.int64).T
    return trigger, candidate, click.astype(np.int8)


def test_rates_are_shrunk_as_the_docstring_says() -> None:
    shown = impressions((1, 2, 1), (1, 2, 0), (3, 2, 0), (1, 4, 0))
    counts = count([shown], N_ROWS)
    # Overall 1 of 4. Item 2: 1 of 3; item 4: 0 of 1; item 3 was never shown.
    expected = [(1 + 20 * 0.25) / 23, (0 + 20 * 0.25) / 21, 0.25]
    assert counts.click_rate(np.array([2, 4, 3])) == pytest.approx(expected)
    pairs = counts.pair_rate(np.array([1, 3, 2]), np.array([2, 2, 2]))
    assert pairs == pytest.approx([(1 + 10 * expected[0]) / 12, 10 * expected[0] / 11, expected[0]])


def test_a_pair_is_not_its_mirror() -> None:
    counts = count([impressions((1, 2, 1), (2, 1, 0))], N_ROWS)
    forth, back = counts.pair_rate(np.array([1, 2]), np.array([2, 1]))
    assert forth > back


@pytest.mark.parametrize("click", [0, 1])
def test_days_without_a_click_or_with_nothing_else_have_finite_logarithms(click: int) -> None:
    counts = count([impressions((1, 2, click), (1, 3, click))], N_ROWS)
    rates = np.append(counts.click_rate(np.arange(5)), counts.pair_rate(np.ones(5, np.int64), np.arange(5)))
    assert ((rates > 0) & (rates < 1)).all()


def test_nothing_shown_is_known_as_nothing() -> None:
    counts = count([], N_ROWS)
    assert counts.pair_rate(np.array([1]), np.array([2])) == pytest.approx(counts.click_rate(np.array([2])))


def random_chunks(n_chunks: int) -> Iterator[Impressions]:
    random = np.random.default_rng(4)
    for _ in range(n_chunks):
        trigger, candidate = random.integers(0, N_ROWS, (2, 30))
        yield trigger, candidate, (random.random(30) < 0.3).astype(np.int8)


def test_chunks_count_what_the_whole_counts() -> None:
    chunks = list(random_chunks(40))
    whole = tuple(np.concatenate(column) for column in zip(*chunks, strict=True))
    pieces, one = count(chunks, N_ROWS), count([whole], N_ROWS)  # type: ignore[list-item]
    for found, expected in zip(
        (pieces.shown, pieces.clicked, *pieces.pairs), (one.shown, one.clicked, *one.pairs), strict=True
    ):
        assert found.tolist() == expected.tolist()
    assert pieces.pairs.shown.sum() == 40 * 30
    assert pieces.pairs.clicked.sum() == sum(click.sum() for _, _, click in chunks)


def test_what_waits_is_never_more_than_the_pairs_and_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty chunks of 30 impressions are 1,200; there are 25 pairs."""
    held: list[int] = []

    def watched(parts: list[PairCounts]) -> PairCounts:
        held.append(sum(len(part.codes) for part in parts))
        return merge_pairs(parts)

    monkeypatch.setattr(counts_module, "merge_pairs", watched)
    count(random_chunks(40), N_ROWS)
    assert len(held) > 10
    assert max(held) <= 25 + 25 + 25
