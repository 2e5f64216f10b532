"""The page: order, ladder, reasons, and what stands where when scores are missing."""

import numpy as np
import pytest

from service import page
from service.page import History, Scored

NAN = float("nan")
SEEN = History(n_used=3, n_similar=1, related_threshold=0.5)


def scored(logits: list[float], similarity: list[float] | None = None, popularity: list[float] | None = None) -> Scored:
    n = len(logits)
    near = np.array(similarity if similarity is not None else [0.1] * n, np.float32)
    return Scored(
        ids=[f"i{place}" for place in range(n)],
        logits=np.array(logits, np.float32),
        similarity=near,
        levels=np.where(near == -2, 0, 3).astype(np.int64),
        popularity=np.array(popularity if popularity is not None else [0.0] * n, np.float32),
        known=np.ones(n, np.bool_),
    )


def ids(found: Scored, history: History = SEEN) -> list[object]:
    return [item["id"] for item in page.items(found, 100, history, 0.05)]


def test_best_first_and_ties_in_the_callers_order() -> None:
    assert ids(scored([0.5, 2.0, 0.5, 2.0])) == ["i1", "i3", "i0", "i2"]


def test_unscored_stand_after_all_scored_in_the_given_order() -> None:
    found = scored([NAN, -9.0, float("inf"), -8.0])
    assert ids(found) == ["i3", "i1", "i0", "i2"]
    last = page.items(found, 100, SEEN, 0.05)[-1]
    assert (last["score"], last["ctr"], last["reason"]) == (None, 0.05, "prior")
    assert found.coverage == 0.5


def test_the_ladder_goes_from_similarity_to_popularity_to_the_given_order() -> None:
    nothing = [NAN, NAN, NAN]
    assert ids(scored(nothing, similarity=[0.2, -2.0, 0.9])) == ["i2", "i0", "i1"]
    assert ids(scored(nothing, similarity=[-2.0] * 3, popularity=[0.1, 0.3, 0.2])) == ["i1", "i2", "i0"]
    assert ids(scored(nothing, similarity=[-2.0] * 3)) == ["i0", "i1", "i2"]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (History(3, 1, 0.5), ["explicit_intent", "implicit_intent", "implicit_intent"]),
        (History(3, 0, 0.5), ["similar", "implicit_intent", "implicit_intent"]),
        (History(0, 0, 0.5), ["similar", "popular", "popular"]),
    ],
)
def test_reasons_follow_similarity_and_history(history: History, expected: list[str]) -> None:
    found = scored([3.0, 2.0, 1.0], similarity=[0.5, 0.49, -2.0])
    assert [item["reason"] for item in page.items(found, 3, history, 0.05)] == expected


def test_an_item_without_a_vector_has_no_similarity_and_level_0() -> None:
    item = page.items(scored([1.0], similarity=[-2.0]), 1, SEEN, 0.05)[0]
    assert (item["similarity"], item["level"]) == (None, 0)


@pytest.mark.parametrize("logit", [-1000.0, -3.0, 0.0, 3.0, 1000.0])
def test_ctr_is_a_probability_and_never_overflows(logit: float) -> None:
    ctr = page.items(scored([logit]), 1, SEEN, 0.05)[0]["ctr"]
    assert isinstance(ctr, float)
    assert 0.0 <= ctr <= 1.0


def test_nothing_to_rank_is_an_empty_page_with_full_coverage() -> None:
    assert page.items(scored([]), 5, SEEN, 0.05) == []
    assert scored([]).coverage == 1.0
