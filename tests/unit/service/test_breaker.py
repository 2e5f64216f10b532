"""The breaker as a state machine, on a clock of its own."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.breaker import Attempt, Breaker

OPEN_S = 0.2


class Bench:
    """A breaker, its clock, and what it said."""

    def __init__(self, max_failures: int = 3) -> None:
        self.now = 100.0
        self.said: list[tuple[bool, str]] = []
        self.breaker = Breaker(max_failures, OPEN_S, lambda: self.now, lambda is_open, kind: self.tell(is_open, kind))

    def tell(self, is_open: bool, kind: str) -> None:
        self.said.append((is_open, kind))

    def attempt(self) -> Attempt:
        attempt = self.breaker.admit()
        assert attempt is not None
        return attempt

    def fail(self, n: int) -> None:
        for _ in range(n):
            self.breaker.failed(self.attempt(), "timeout")


def test_opens_after_failures_in_a_row_and_refuses_for_its_pause() -> None:
    bench = Bench()
    bench.fail(3)
    assert bench.breaker.admit() is None
    bench.now += OPEN_S - 0.001
    assert bench.breaker.admit() is None
    assert bench.said == [(True, "timeout")]


def test_a_success_between_failures_starts_the_count_again() -> None:
    bench = Bench()
    bench.fail(2)
    bench.breaker.succeeded(bench.attempt())
    bench.fail(2)
    assert bench.breaker.state == "closed"


def test_lets_one_probe_through_and_closes_when_it_succeeds() -> None:
    bench = Bench()
    bench.fail(3)
    bench.now += OPEN_S
    probe = bench.attempt()
    assert bench.breaker.admit() is None
    bench.breaker.succeeded(probe)
    assert bench.breaker.admit() is not None
    assert bench.said == [(True, "timeout"), (False, "")]


def test_a_failed_probe_pauses_again_without_another_word() -> None:
    bench = Bench()
    bench.fail(3)
    bench.now += OPEN_S
    bench.breaker.failed(bench.attempt(), "timeout")
    assert bench.breaker.admit() is None
    assert bench.said == [(True, "timeout")]


def test_a_probe_that_never_reports_is_replaced() -> None:
    bench = Bench()
    bench.fail(3)
    bench.now += OPEN_S
    lost = bench.attempt()
    bench.now += OPEN_S
    probe = bench.attempt()
    bench.breaker.failed(lost, "timeout")
    bench.breaker.succeeded(probe)
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("is_success", [True, False])
def test_stragglers_from_before_the_pause_decide_nothing(is_success: bool) -> None:
    bench = Bench()
    straggler = bench.attempt()
    bench.fail(3)
    bench.now += 0.6 * OPEN_S
    if is_success:
        bench.breaker.succeeded(straggler)
    else:
        bench.breaker.failed(straggler, "timeout")
    assert bench.breaker.admit() is None
    bench.now += 0.6 * OPEN_S
    assert bench.breaker.admit() is not None


class BreakerMachine(RuleBasedStateMachine):
    """Any order of attempts, outcomes and time: at most one probe per pause, never a wait longer than a pause."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.pending: list[Attempt] = []
        self.refused_since: float | None = None

    @rule()
    def ask(self) -> None:
        was = self.bench.breaker.state
        attempt = self.bench.breaker.admit()
        if attempt is None:
            assert was != "closed"
            self.refused_since = self.refused_since or self.bench.now
        else:
            self.refused_since = None
            self.pending.append(attempt)
            if was != "closed":
                assert self.bench.breaker.admit() is None

    @rule(is_success=st.booleans(), place=st.integers(0, 50))
    def report(self, is_success: bool, place: int) -> None:
        if not self.pending:
            return
        attempt = self.pending.pop(place % len(self.pending))
        if is_success:
            self.bench.breaker.succeeded(attempt)
        else:
            self.bench.breaker.failed(attempt, "timeout")

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 1.0]))
    def wait(self, seconds: float) -> None:
        self.bench.now += seconds

    @invariant()
    def says_open_and_closed_in_turns(self) -> None:
        assert [is_open for is_open, _ in self.bench.said] == [place % 2 == 0 for place in range(len(self.bench.said))]


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
