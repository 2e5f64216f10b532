"""Admission: a queue that is bounded by predicted wait, looked at on entry and again at its end."""

import asyncio
import contextlib
import threading
import time

import pytest

from service import admission as module
from service.admission import Admission, Priority
from service.deadline import Deadline
from service.errors import DeadlineExceeded, Overloaded, TenantShare
from service.metrics import Metrics


def make(service_s: float, n_threads: int = 1) -> Admission:
    admission = Admission(n_threads, Metrics())
    admission.observe(service_s)
    return admission


def test_an_idle_service_admits_however_slow_it_was() -> None:
    admission = make(service_s=10.0)
    admission.enter(Deadline.after_ms(20))
    admission.leave()


def test_a_queue_longer_than_the_deadline_allows_is_refused_with_a_time_to_come_back() -> None:
    admission = make(service_s=0.05)
    for _ in range(2):
        admission.enter(Deadline.after_ms(1000))
    with pytest.raises(Overloaded) as caught:
        admission.enter(Deadline.after_ms(100))
    assert caught.value.retry_after_ms >= 100
    admission.enter(Deadline.after_ms(1000))  # more patience, same queue


def test_looking_takes_no_place() -> None:
    admission = make(service_s=0.05)
    for _ in range(50):
        admission.check(Deadline.after_ms(100))
    assert admission.predicted_wait_s() == 0.0


def test_places_are_given_back() -> None:
    admission = make(service_s=0.05)
    for _ in range(50):
        admission.enter(Deadline.after_ms(100))
        admission.leave()
    assert admission.predicted_wait_s() == 0.0


def run_behind_a_slow_one(deadline_ms: float) -> list[str]:
    """What was computed when the only worker is busy until the deadline has passed."""
    done: list[str] = []
    admission, is_free = make(service_s=0.001), threading.Event()

    async def both() -> None:
        slow = asyncio.create_task(admission.run(lambda: is_free.wait(60), Deadline.after_ms(60_000)))
        await asyncio.sleep(0)
        second = asyncio.create_task(admission.run(lambda: done.append("second"), Deadline.after_ms(deadline_ms)))
        await asyncio.sleep(3 * deadline_ms / 1000)
        is_free.set()
        await slow
        await second

    try:
        asyncio.run(both())
    finally:
        admission.close()
    return done


def test_work_whose_deadline_passed_in_the_queue_is_never_begun() -> None:
    with pytest.raises(DeadlineExceeded):
        run_behind_a_slow_one(deadline_ms=5)


def test_without_the_second_look_it_would_be_computed_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "passed", lambda _: False)
    assert run_behind_a_slow_one(deadline_ms=5) == ["second"]


def test_work_runs_whole_in_one_prepared_thread() -> None:
    prepared: list[str] = []
    admission = Admission(2, Metrics(), lambda: prepared.append(threading.current_thread().name))
    name = asyncio.run(admission.run(lambda: threading.current_thread().name, Deadline.after_ms(60_000)))
    admission.close()
    assert name in prepared


def shed_while_prefetching(prefetch_ms: float) -> dict[Priority, int]:
    """Refusals while one worker of 10 ms gets many times what it can do as prefetches, and a tenth from people.

    They have seconds, and the worker's time is known and not measured: this machine may stand still for a moment.
    """
    admission = Admission(1, Metrics(), usual_deadline_s=3.0)
    admission.observe(0.01)
    admission.observe = lambda *_: None  # type: ignore[method-assign]
    shed: dict[Priority, int] = {"interactive": 0, "prefetch": 0}

    async def one(priority: Priority, deadline: Deadline) -> None:
        try:
            admission.enter(deadline, priority)
        except Overloaded:
            shed[priority] += 1
            return
        try:
            await admission.run(lambda: time.sleep(0.01), deadline)
        except DeadlineExceeded:
            shed[priority] += 1
        finally:
            admission.leave()

    async def main() -> None:
        async with asyncio.TaskGroup() as calls:
            for tick in range(40):
                for _ in range(20):
                    calls.create_task(one("prefetch", Deadline.after_ms(prefetch_ms)))
                if tick % 10 == 0:
                    calls.create_task(one("interactive", Deadline.after_ms(3000)))
                await asyncio.sleep(0.025)

    asyncio.run(main())
    admission.close()
    return shed


@pytest.mark.parametrize("prefetch_ms", [3000, 12000])
def test_g3_prefetches_are_shed_first_and_nobody_else(prefetch_ms: float) -> None:
    shed = shed_while_prefetching(prefetch_ms)
    assert shed["interactive"] == 0
    assert shed["prefetch"] > 300


def test_g3_prefetches_with_the_rights_of_people_push_people_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bearable = Admission._bearable_s
    monkeypatch.setattr(Admission, "_bearable_s", lambda self, deadline, _: bearable(self, deadline, "interactive"))
    assert shed_while_prefetching(6000)["interactive"] > 0


def test_prefetches_wait_for_a_share_of_what_people_have_however_patient_they_are() -> None:
    admission = Admission(1, Metrics(), usual_deadline_s=0.1)
    admission.observe(0.005)
    admission.enter(Deadline.after_ms(2000), "prefetch")
    assert 0.005 * module.SAFETY < module.SHARE_OF_PREFETCH * 0.1
    admission.enter(Deadline.after_ms(2000), "prefetch")  # waits 5 ms
    with pytest.raises(Overloaded):
        admission.enter(Deadline.after_ms(2000), "prefetch")  # would wait 10
    admission.enter(Deadline.after_ms(100), "interactive")
    admission.close()


def wait_behind_ten(loop_cpu_s: float, n_answered: int = 10) -> float:
    admission = make(service_s=0.001)
    for _ in range(n_answered):
        admission.enter(Deadline.after_ms(1000))
        admission.leave()
    admission.observe_loop(loop_cpu_s)
    for _ in range(10):
        admission.enter(Deadline.after_ms(1000))
    return admission.predicted_wait_s()


def test_what_the_event_loop_needs_is_waited_for_too() -> None:
    assert wait_behind_ten(loop_cpu_s=0.02) == pytest.approx(10 * (0.001 + 0.002))
    assert wait_behind_ten(loop_cpu_s=0.02, n_answered=1) == pytest.approx(10 * 0.001)  # one says nothing about ten


def test_few_answers_a_look_are_counted_until_they_are_enough() -> None:
    admission = make(service_s=0.001)
    for _ in range(2):
        for _ in range(4):
            admission.enter(Deadline.after_ms(1000))
            admission.leave()
        admission.observe_loop(0.008)
    assert admission._loop_s == pytest.approx(0.002)


def test_what_the_loop_once_cost_is_forgotten() -> None:
    admission = make(service_s=0.001)
    for _ in range(5):
        admission.enter(Deadline.after_ms(1000))
        admission.leave()
    admission.observe_loop(0.1)
    assert admission._loop_s == pytest.approx(0.02)
    for _ in range(100):  # ten quiet seconds
        admission.observe_loop(0.0001)
    assert admission._loop_s < 0.001


def test_a_worker_that_the_clock_finds_slow_is_slow() -> None:
    admission = Admission(1, Metrics())
    admission.observe(0.01, cpu_s=0.001)  # beside other processes
    for _ in range(10):
        admission.enter(Deadline.after_ms(1000))
    assert admission.predicted_wait_s() == pytest.approx(0.1)


# --- tenants ----------------------------------------------------------------------------------------------------------


def n_entered(admission: Admission, tenant: str, n: int = 50, deadline_ms: float = 100) -> int:
    """How many of so many requests at once get a place."""
    entered = 0
    for _ in range(n):
        with contextlib.suppress(Overloaded, TenantShare):
            still = Deadline.after_ms(deadline_ms, lambda: 0.0)  # a busy machine is not the question
            admission.enter(still, "interactive", tenant)
            entered += 1
    return entered


N_PLACES = 12  # rankings of 5 ms in 0.7 of 100 ms, by 1.2; and the one that is computed


def test_whoever_asks_alone_may_have_every_place() -> None:
    assert n_entered(make(service_s=0.005), "loud") == N_PLACES


@pytest.mark.parametrize("n_threads", [1, 2])
def test_while_others_ask_a_tenant_has_half_and_the_others_get_in(n_threads: int) -> None:
    admission = make(0.005 * n_threads, n_threads)  # as many a second
    admission.enter(Deadline.after_ms(100), "interactive", "calm")
    assert n_entered(admission, "loud") == N_PLACES // 2
    assert n_entered(admission, "calm", 5) == 5
    with pytest.raises(TenantShare) as caught:
        admission.enter(Deadline.after_ms(100), "interactive", "loud")
    assert caught.value.retry_after_ms >= 100


def test_without_the_share_the_others_find_the_queue_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_OF_TENANT", 100.0)
    admission = make(service_s=0.005)
    admission.enter(Deadline.after_ms(100), "interactive", "calm")
    assert n_entered(admission, "loud") == N_PLACES - 1
    assert n_entered(admission, "calm", 5) == 0


def test_who_was_refused_by_a_full_queue_has_its_half_as_soon_as_it_is_shorter() -> None:
    admission = make(service_s=0.005)
    assert n_entered(admission, "loud") == N_PLACES
    assert n_entered(admission, "calm") == 0
    for n_left in range(N_PLACES - 1, N_PLACES // 2 - 1, -1):
        admission.leave("loud")
        assert n_entered(admission, "loud") == 0, n_left
    assert n_entered(admission, "calm", 5) == 5


def test_a_longer_deadline_is_no_claim_to_more() -> None:
    admission = make(service_s=0.005)
    admission.enter(Deadline.after_ms(100), "interactive", "calm")
    assert n_entered(admission, "loud", deadline_ms=2000) == N_PLACES // 2


def test_nobody_is_refused_while_a_worker_is_free() -> None:
    admission = make(service_s=1.0, n_threads=4)
    admission.enter(Deadline.after_ms(100), "interactive", "calm")
    assert n_entered(admission, "loud", 3) == 3


def test_a_share_is_one_place_at_least() -> None:
    admission = make(service_s=0.05)  # two places
    admission.enter(Deadline.after_ms(100), "interactive", "calm")
    assert n_entered(admission, "loud") == 1
