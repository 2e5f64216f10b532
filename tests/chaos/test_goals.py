"""The measures of docs/reliability.md with little of everything: what they count holds, and would not unprotected.

`make chaos` and `make soak` measure the same at length. Times are not asked for here: this machine may do other things.
Each twin takes one protection away and must be seen to fail.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.goals import (
    acknowledged,
    bit_flips,
    canaries,
    overload,
    restarts,
    retry_storm,
    slow_sockets,
    soak,
    store_faults,
)
from benchmarks.goals.lab import PATIENT, Lab, Sizes, open_lab
from benchmarks.goals.outcome import Outcome
from service.embedded_store import EmbeddedStore, embedded_store
from service.http_guard import FREELY_TURNED_AWAY
from tests.chaos.open_loop import LoadClient, Sent, Stream, closed_loop, load_client, open_loop

pytestmark = pytest.mark.e2e
# A service that one look at the store cannot hurry: a busy machine is no fault of the store's.
PATIENT_STORE = {
    "DAIAN_REDIS_READ_BUDGET_MS": "1000", "DAIAN_REDIS_TIMEOUT_MS": "1000", "DAIAN_REDIS_POOL_WAIT_MS": "1000",
}  # fmt: skip
LITTLE = Sizes(
    capacity_s=0.6, overload_s=1.5, fault_s=1.0, n_rounds=1, n_restarts=1, n_kills=1, n_store_kills=1, n_slow=40,
    n_canaries=300, n_flips=60, n_swaps=2, n_soak=600, n_starts=1,
)  # fmt: skip
ACK_FIRST = """
import asyncio
import service.user_store as module
_append = module.RedisUserStore.append
_tasks = set()
async def _later(self, events, tenant):
    await asyncio.sleep(20)
    await _append(self, events, tenant)
async def _ack_first(self, events, tenant=None):
    task = asyncio.create_task(_later(self, events, tenant))
    _tasks.add(task)
    return module.AppendResult(len(events), 0)
module.RedisUserStore.append = _ack_first
"""
NO_ADMISSION = """
import service.admission as module
module.Admission.turned_away_ms = lambda *_: 0
"""
NO_PRIORITY = """
import service.admission as module
module.Admission._bearable_s = lambda _, deadline, __: module.SHARE_OF_DEADLINE * deadline.left_s()
"""
IDS_IN_LOGS = """
import service.metrics as module
module.UserHasher.__call__ = lambda _, user: user
"""
FULL_AND_SLOW = """
import service.admission, service.http_guard
service.admission.Admission.predicted_wait_s = lambda _: 10.0
service.http_guard.PAUSE_S = 0.05
"""
NO_PAUSE = """
service.http_guard.GuardedProtocol._slow_down = lambda _: None
"""
LEAK = """
import service.api.exchange as module
_finished, _kept = module._finished, []
def _keeping(exchange, response):
    _kept.append(bytes(20_000))
    return _finished(exchange, response)
module._finished = _keeping
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(LITTLE, is_pinned=False) as found:
        yield replace(found, settings={"DAIAN_DRAIN_S": "0.5", "DAIAN_GRACE_S": "1"})


def counts_not_met(outcome: Outcome) -> list[str]:
    return [f"{one.what}: {one.found}" for one in outcome.checks if one.kind == "count" and not one.is_met]


async def carried_per_s(client: LoadClient, lab: Lab, *lines: str) -> float:
    """What this machine carries, at the least 400: the best of three looks, for it may stand still during one."""
    requests = lab.ranks(500, *lines)
    return max([400.0, *[await overload.capacity_of(client, requests, LITTLE.capacity_s / 2) for _ in range(3)]])


def surge(lab: Lab, prelude: str = "") -> list[Sent]:
    """What became of four times as much as the service carries."""

    async def main(host: str, port: int) -> list[Sent]:
        with load_client(host, port) as client:
            per_s = await carried_per_s(client, lab, "x-timeout-ms: 2000")
            return await open_loop(client, [lab.ranking(4 * per_s)], LITTLE.overload_s)

    with lab.service("surge", prelude=prelude) as service:
        return asyncio.run(main(service.host, service.port))


def test_g1_more_than_it_can_carry_is_refused_and_nothing_breaks(lab: Lab) -> None:
    found = surge(lab)
    shed = [one for one in found if one.status == 503]
    others = [one.status for one in found if one.status not in (200, 503)]
    assert (others, [one for one in shed if not one.has_retry_after]) == ([], [])
    assert shed


def test_g1_without_admission_everyone_is_let_in_and_waits(lab: Lab) -> None:
    """What comes then is refused behind the queue, when its time is over: nobody is told at once."""
    shed = [one.seconds for one in surge(lab, NO_ADMISSION) if one.status == 503]
    assert min(shed, default=1.0) > 0.02


def odds_of_people(lab: Lab, prelude: str = "") -> float:
    """How much better the odds of an answer are for people than for prefetches, when as many of each ask for 500.

    Together they are at least twice what the service carries, however quick the machine is. A ratio of odds, not of
    answers: what people leave over, prefetches may have.
    """

    async def main(host: str, port: int) -> list[Sent]:
        lines = "x-timeout-ms: 2000"
        with load_client(host, port) as client:
            per_s = await carried_per_s(client, lab, lines)
            streams = [
                Stream(per_s, lab.ranks(500, lines), "people"),
                Stream(per_s, lab.ranks(500, lines, "x-priority: prefetch"), "prefetch"),
            ]
            return await open_loop(client, streams, LITTLE.overload_s)

    with lab.service("g3", prelude=prelude) as service:
        answers = asyncio.run(main(service.host, service.port))
    people, pages = (
        Counter(one.status == 200 for one in answers if one.group == group) for group in ("people", "prefetch")
    )
    return ((people[True] + 1) / (people[False] + 1)) / ((pages[True] + 1) / (pages[False] + 1))


def test_g3_people_go_first(lab: Lab) -> None:
    assert odds_of_people(lab) > 4


def test_g3_without_the_priority_they_do_not(lab: Lab) -> None:
    assert odds_of_people(lab, NO_PRIORITY) < 4


def faulted(lab: Lab, name: str, **off: str) -> store_faults.Faulted:
    """A store that falls silent for three seconds, with three before and behind: longer than this machine may stop."""
    slow = replace(
        lab, settings={**lab.settings, **PATIENT, **PATIENT_STORE, **off}, sizes=replace(LITTLE, fault_s=3.0)
    )
    with embedded_store(lab.folder / name) as url:
        return asyncio.run(store_faults.one_fault(slow, url, "black hole", 10.0))


def test_g4_every_page_is_filled_while_the_store_is_silent(lab: Lab) -> None:
    found = faulted(lab, "g4")
    every = [*found.before, *found.during, *found.after]
    assert {one.status for one in every} == {200}
    assert found.share_degraded > 0.5
    assert min(one.seconds for one in found.during) < 0.5
    assert not all(one.degraded for one in found.after)


def test_g4_without_the_breaker_each_request_pays_for_the_silence(lab: Lab) -> None:
    found = faulted(lab, "g4-off", DAIAN_BREAKER_FAILURES="100")
    degraded = [one.seconds for one in found.during if one.degraded]
    assert min(degraded) > 0.5


def test_g8_workers_are_replaced_and_whoever_tries_twice_does_not_notice(lab: Lab) -> None:
    assert counts_not_met(restarts.rolling_restarts(lab, n_retries=1)) == []


def test_g9_a_killed_worker_costs_what_it_had_in_hand(lab: Lab) -> None:
    assert counts_not_met(restarts.workers_killed(lab)) == []


def test_g10_what_was_acknowledged_is_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # `everysec` puts a write off while the disk's sync is under way, and a kill just then costs it: what is asked here
    # is what the service acknowledges, not how quick this disk is.
    ours = EmbeddedStore._arguments
    monkeypatch.setattr(EmbeddedStore, "_arguments", lambda self: [*ours(self), "--appendfsync", "always"])
    assert counts_not_met(acknowledged.measure(lab)) == []


def test_g10_an_acknowledgement_before_the_write_is_found_out(lab: Lab) -> None:
    store, ledger = EmbeddedStore(lab.folder / "g10-off"), acknowledged.Ledger()
    store.start()
    try:
        settings = {**restarts.TWO_WORKERS, "DAIAN_REDIS_URL": store.url, "DAIAN_WORKERS": "1"}
        with lab.service("g10-off", settings, prelude=ACK_FIRST) as service:
            asyncio.run(acknowledged.until_killed(service, ledger))
        found = asyncio.run(acknowledged.found_in(store.url, {user for user, _ in ledger.sent}))
    finally:
        store.stop()
    lost, *_ = acknowledged.ledger_checks(ledger, found)
    assert not lost.is_met


def test_g11_a_leak_has_a_slope(lab: Lab) -> None:
    with lab.service("g11", PATIENT, prelude=LEAK) as service:
        found = asyncio.run(soak.soak(lab, service, LITTLE.n_soak))
    slope, half = found.slope()
    assert found.n_failed == 0
    assert slope - half > 1_000  # 20 kB a request of some 100 MB, over a million


def slow(lab: Lab, seconds: str) -> Lab:
    return replace(lab, settings={**lab.settings, "DAIAN_RECEIVE_TIMEOUT_S": seconds})


LOOKED_AT_S = 4.0  # and two more: each socket is closed after one, whether or not this machine stops for a while


def test_g12_slow_sockets_are_closed_and_hold_nobody_up(lab: Lab) -> None:
    assert counts_not_met(slow_sockets.measure(slow(lab, "1"), LOOKED_AT_S)) == []


def test_g12_with_all_the_time_in_the_world_they_stay(lab: Lab) -> None:
    outcome = slow_sockets.measure(slow(lab, "60"), LOOKED_AT_S)
    assert [line for line in counts_not_met(outcome) if line.startswith("slow sockets that were closed")]


def test_g14_no_id_comes_back(lab: Lab) -> None:
    assert counts_not_met(canaries.measure(lab)) == []


def test_g14_an_id_in_the_log_is_found(lab: Lab) -> None:
    found = canaries.searched(replace(lab, prelude=IDS_IN_LOGS, sizes=replace(LITTLE, n_canaries=100)))
    assert set(found.leaks) == {"log"}


def test_g15_no_flip_is_read_as_data_and_a_careless_reader_takes_them(tmp_path: Path) -> None:
    found = bit_flips.tried(tmp_path, LITTLE.n_flips)
    assert (found.n, found.n_silent) == (LITTLE.n_flips, 0)
    assert found.n_unseen > 0


def greedy(lab: Lab, name: str, **off: str) -> Outcome:
    folder = lab.folder / name
    folder.mkdir()
    return overload.greedy_tenant(replace(lab, folder=folder, settings={**lab.settings, **PATIENT, **off}))


def test_g16_a_greedy_tenant_is_held_back_and_the_others_are_not(lab: Lab) -> None:
    outcome = greedy(lab, "g16")
    assert counts_not_met(outcome) == []
    assert "429 for 0 of" not in outcome.how


def test_g16_without_a_quota_nobody_is_held_back(lab: Lab) -> None:
    assert "429 for 0 of" in greedy(lab, "g16-off", DAIAN_TENANT_RATE="0").how


def test_g17_nothing_is_ready_whose_golden_requests_fail(lab: Lab) -> None:
    n_asked, n_ready = restarts.bad_start(lab)
    assert n_asked > 0
    assert n_ready == 0


def test_g19_beside_clients_that_ask_on_nothing_breaks_and_some_are_answered(lab: Lab) -> None:
    with lab.service("g19") as service:
        found = asyncio.run(retry_storm.storm(lab, service, times=4))
    assert [one.what for one in retry_storm.checks_of(found) if one.kind == "count" and not one.is_met] == []
    assert found.refused
    assert retry_storm.in_time(found.loud) > 0


def refusals_of_four(lab: Lab, prelude: str = "") -> int:
    """What four connections are refused in a second that ask again at once; nobody is let in, a pause is 50 ms."""

    async def main(host: str, port: int) -> list[Sent]:
        with load_client(host, port) as client:
            return await closed_loop(client, lab.ranks(), 1.0, retry_storm.N_SPINNING)

    with lab.service("g19-full", prelude=FULL_AND_SLOW + prelude) as service:
        answers = asyncio.run(main(service.host, service.port))
    assert {one.status for one in answers} == {503}
    return len(answers)


MOST_REFUSED = 2 * retry_storm.N_SPINNING * (FREELY_TURNED_AWAY + 1.0 / 0.05)


def test_g19_who_asks_on_is_refused_so_often_and_no_more(lab: Lab) -> None:
    assert refusals_of_four(lab) < MOST_REFUSED


def test_g19_without_the_pause_refusals_are_without_number(lab: Lab) -> None:
    assert refusals_of_four(lab, NO_PAUSE) > MOST_REFUSED
