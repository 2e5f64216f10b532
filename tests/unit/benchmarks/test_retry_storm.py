"""G19 is about the others: what the clients that ask again at once are given must not stand in for it."""

import pytest

from benchmarks.goals.retry_storm import Storm, checks_of
from tests.chaos.open_loop import Sent


def answered(n: int, seconds: float = 0.05) -> list[Sent]:
    return [Sent(0.0, seconds, 200)] * n


def refused(n: int) -> list[Sent]:
    return [Sent(0.0, 0.001, 503, has_retry_after=True)] * n


def not_met(loud: list[Sent], spun: list[Sent]) -> list[str]:
    found = Storm(550.0, 10.0, [*answered(1_000), *refused(100)], loud, spun)
    return [one.what for one in checks_of(found) if not one.is_met]


ALL, OTHERS = "answers in time with them, of that without, to all", "the same, to the others alone"


@pytest.mark.parametrize(
    ("loud", "spun", "missed"),
    [
        (answered(880), answered(110), []),
        (answered(700), answered(100), []),
        (refused(1_200), answered(1_000), [OTHERS]),  # the others get nothing, the spinning ones all of it
        ([], answered(1_000), [OTHERS]),
        (answered(690), answered(310), [OTHERS]),
        (answered(780), [], [ALL]),  # nobody's gain
        (answered(1_000, seconds=0.2), answered(1_000), [OTHERS]),  # too late is nothing
    ],
)
def test_g19_is_met_by_the_others_answers(loud: list[Sent], spun: list[Sent], missed: list[str]) -> None:
    assert not_met(loud, [*spun, *refused(50)]) == missed


def test_g19_without_any_answers_before_is_not_met() -> None:
    found = Storm(550.0, 10.0, refused(10), refused(10), refused(10))
    assert [one.what for one in checks_of(found) if not one.is_met] == [ALL, OTHERS]
