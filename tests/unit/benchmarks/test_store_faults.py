"""How long a service takes to be as before a fault: a burst that costs answers on quiet days is no fault's doing."""

from benchmarks.goals.store_faults import Faulted
from tests.chaos.open_loop import Sent


def answers(degraded_at_s: list[float]) -> list[Sent]:
    whole = [Sent(number / 100, 0.01, 200) for number in range(300)]
    return [*whole, *(Sent(at_s, 0.01, 200, degraded="behaviours") for at_s in degraded_at_s)]


def seconds(before: list[float], after: list[float]) -> float:
    return Faulted("refused", answers(before), answers([]), answers(after)).back_to_normal_s


def test_an_answer_that_lacks_something_is_not_normal() -> None:
    assert seconds([], []) == 0.0
    assert seconds([], [0.1, 0.4]) == 0.5
    assert seconds([], [2.4]) == 2.5


def test_unless_as_many_did_before_the_fault() -> None:
    assert seconds([2.4], [2.4]) == 0.0
    assert seconds([2.4], [0.3, 0.3, 2.4]) == 0.5


def test_a_refusal_counts_as_well() -> None:
    found = Faulted("refused", answers([]), answers([]), [Sent(1.1, 0.0, 503)])
    assert found.back_to_normal_s == 1.25
