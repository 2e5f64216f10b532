"""Recall: by level in proportion to the intent, never the trigger, never twice, always something."""

import numpy as np
import pytest

from service.retriever import POOL, Retriever
from service.runtime import Runtime

NOTHING = np.zeros(0, np.int64)


@pytest.fixture
def retriever(runtime: Runtime) -> Retriever:
    return runtime.ranker._retriever


def levels_of(runtime: Runtime, trigger: int, rows: np.ndarray) -> np.ndarray:
    return runtime.encoder.scale.level(runtime.encoder.catalogue.similarity(np.array([trigger]), rows))


def test_the_pool_is_full_distinct_and_without_trigger_and_excluded(retriever: Retriever) -> None:
    excluded = np.array([2, 3, 4])
    rows = retriever.recall(1, NOTHING, None, excluded).rows
    assert len(rows) == POOL == len(set(rows.tolist()))
    assert not {0, 1, 2, 3, 4} & set(rows.tolist())


def test_an_intent_moves_the_pool_towards_its_levels(retriever: Retriever, runtime: Runtime) -> None:
    near, far = np.array([0, 0, 0, 1], np.float32), np.array([0, 1, 0, 0], np.float32)
    n_near, n_far = (
        np.bincount(levels_of(runtime, 1, retriever.recall(1, NOTHING, intent, NOTHING, 80).rows), minlength=5)
        for intent in (near, far)
    )
    assert n_near[4] >= 0.7 * 80
    assert n_far[2] >= 0.7 * 80


def test_each_level_gets_its_share_of_what_the_intent_divides(retriever: Retriever, runtime: Runtime) -> None:
    newest = runtime.encoder.catalogue.rows(["i3", "i5"])
    rows = retriever.recall(1, newest, np.array([0, 1, 1, 1], np.float32) / 3, NOTHING, 80).rows
    assert np.bincount(levels_of(runtime, 1, rows[:60]), minlength=5)[2:].tolist() == [20, 20, 20]


def test_without_an_intent_the_nearest_come_first(retriever: Retriever, runtime: Runtime) -> None:
    rows = retriever.recall(1, NOTHING, None, NOTHING, 40).rows[:20]
    similarity = runtime.encoder.catalogue.similarity(np.array([1]), rows)
    everything = runtime.encoder.catalogue.similarity(np.array([1]), np.arange(2, 601))
    assert similarity.min() >= np.sort(everything)[-45]


def test_neighbours_of_the_newest_behaviours_join(retriever: Retriever, runtime: Runtime) -> None:
    newest = runtime.encoder.catalogue.rows(["i3"])
    with_newest = set(retriever.recall(1, newest, None, NOTHING, 80).rows.tolist())
    without = set(retriever.recall(1, NOTHING, None, NOTHING, 80).rows.tolist())
    added = np.array(sorted(with_newest - without))
    assert len(added) >= 5
    assert (runtime.encoder.catalogue.similarity(newest, added) > 0.5).mean() > 0.7


def test_an_unknown_trigger_is_answered_with_popular_items(retriever: Retriever) -> None:
    recalled = retriever.recall(0, NOTHING, None, NOTHING, 30)
    assert not recalled.near
    np.testing.assert_array_equal(np.sort(recalled.rows), np.arange(1, 31))  # popularity falls along the rows


def test_no_index_at_all_still_recalls(runtime: Runtime) -> None:
    recalled = Retriever(runtime.encoder, None).recall(1, NOTHING, np.full(4, 0.25, np.float32), NOTHING, 50)
    assert (len(recalled.rows), recalled.near) == (50, False)


def test_an_intent_that_is_no_distribution_asks_for_all_levels_alike(retriever: Retriever) -> None:
    broken = np.array([np.nan, np.inf, -1, 0], np.float32)
    assert len(retriever.recall(1, NOTHING, broken, NOTHING).rows) == POOL


def by_definition(runtime: Runtime, trigger: int, newest: list[int], intent: np.ndarray, n_wanted: int) -> list[int]:
    """The pool in plain Python: nobody twice, quotas by level, and what stands behind whom."""
    retriever, banned = runtime.ranker._retriever, {0, -1, trigger}

    def found(rows: list[int], n_each: int) -> list[int]:
        return retriever._neighbours(np.array(rows, np.int64), n_each).tolist()

    def first(rows: list[int]) -> list[int]:
        return [row for row in dict.fromkeys(rows) if row not in banned]

    popular = first(retriever.popular.tolist())
    proposed = first(found([trigger], 2 * n_wanted) + popular)
    n_some = int(n_wanted * 0.125)
    n_divided = n_wanted - int(n_wanted * 0.25)
    quota = [0, *np.ceil((intent / intent.sum()).astype(np.float32) * n_divided).tolist()]
    within, beyond = [], []
    for row, level in zip(proposed, levels_of(runtime, trigger, np.array(proposed)).tolist(), strict=True):
        quota[level] -= 1
        (within if quota[level] >= 0 else beyond).append(row)
    chosen = within + beyond
    around = first(found(newest[-5:], n_wanted // 5))
    return first(chosen[:n_divided] + around[:n_some] + popular[:n_some] + chosen)[:n_wanted]


@pytest.mark.parametrize("n_wanted", [8, 80, 400, 2000])
@pytest.mark.parametrize("trigger", [0, 1, 77, 400])
def test_the_pool_is_what_its_definition_says(runtime: Runtime, trigger: int, n_wanted: int) -> None:
    retriever, intent = runtime.ranker._retriever, np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    newest = [3, 9, 9, 200, 410, 77, 5]
    rows = retriever.recall(trigger, np.array(newest, np.int64), intent, NOTHING, n_wanted).rows
    assert rows.tolist() == by_definition(runtime, trigger, newest, intent, n_wanted)
