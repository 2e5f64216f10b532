"""G10: events that were acknowledged are there, once, after the service and its store were killed with -9.

Writers keep a ledger of what was answered 200, and send everything else again as it was. At the end the ledger is held
against the store itself. Called by `__main__.py`.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from benchmarks.goals.lab import Lab
from benchmarks.goals.outcome import Check, Outcome, none_of
from service.embedded_store import EmbeddedStore
from service.user_store import RedisUserStore, StoreSettings
from tests.chaos.open_loop import LoadClient, load_client, post
from tests.chaos.service_process import ServiceProcess

N_WRITERS = 4
PER_CALL = 5
PER_USER = 200  # then a writer takes a new user: below what the store keeps of one
KEEP = 1_000
PAUSE_S = 0.3
BACK_S = 120.0
DAY_MS = 86_400_000
Event = tuple[str, str]  # user, item: every event has an item of its own


@dataclass
class Ledger:
    """What was sent, and what of it was acknowledged."""

    sent: set[Event] = field(default_factory=set)
    acknowledged: set[Event] = field(default_factory=set)
    n_again: int = 0
    is_over: bool = False


async def write(client: LoadClient, ledger: Ledger, writer: int) -> None:
    """Calls of PER_CALL events, each repeated until it is acknowledged."""
    for call in count():
        if ledger.is_over:
            return
        user, at = f"w{writer}-{call * PER_CALL // PER_USER}", int(time.time() - 5) * 1000
        items = [f"e{writer}-{call}-{number}" for number in range(PER_CALL)]
        body = [{"event_id": item, "type": "click", "user": user, "item": item, "time": at} for item in items]
        ledger.sent.update((user, item) for item in items)
        request = post("/v1/events", {"events": body})
        while not await is_stored(client, request):
            ledger.n_again += 1
            await asyncio.sleep(0.05)
        ledger.acknowledged.update((user, item) for item in items)


async def is_stored(client: LoadClient, request: bytes) -> bool:
    try:
        return (await client.ask(request)).status == 200
    except (OSError, TimeoutError):
        return False


def kill_store(store: EmbeddedStore) -> None:
    """kill -9, and a new server on the same folder."""
    os.kill(store.pid, signal.SIGKILL)
    store.stop()
    store.start()


def kill_workers(service: ServiceProcess) -> None:
    for pid in service.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def storm(lab: Lab, service: ServiceProcess, store: EmbeddedStore, ledger: Ledger) -> None:
    """Writers, and kills of the service and of the store in turn."""
    with load_client(service.host, service.port) as client:
        writers = [asyncio.create_task(write(client, ledger, number)) for number in range(N_WRITERS)]
        for _ in range(lab.sizes.n_store_kills):
            for kill in (lambda: kill_workers(service), lambda: kill_store(store)):
                n_before = len(ledger.acknowledged)
                until_s = time.monotonic() + BACK_S
                while len(ledger.acknowledged) < n_before + N_WRITERS * PER_CALL:  # it works again
                    if time.monotonic() > until_s:
                        raise TimeoutError(f"no event was taken for {BACK_S:g} s after a kill")
                    await asyncio.sleep(0.01)
                await asyncio.sleep(PAUSE_S)
                await asyncio.to_thread(kill)
        ledger.is_over = True
        await asyncio.gather(*writers)


async def until_killed(service: ServiceProcess, ledger: Ledger) -> None:
    """Writers until a few calls were acknowledged, then one kill of the service and nothing more."""
    with load_client(service.host, service.port) as client:
        writers = [asyncio.create_task(write(client, ledger, number)) for number in range(N_WRITERS)]
        until_s = time.monotonic() + BACK_S
        while len(ledger.acknowledged) < N_WRITERS * PER_CALL and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        kill_workers(service)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)


async def found_in(url: str, users: set[str]) -> Counter[Event]:
    """Every behaviour of these users in the store, and how often it is there."""
    store, found = (
        RedisUserStore(StoreSettings(url, timeout_ms=10_000, read_budget_ms=10_000, keep=KEEP)),
        Counter[Event](),
    )
    for user in sorted(users):
        known = await store.fetch(user, time.time_ns() // 1_000_000 + DAY_MS)
        if known.degraded:
            raise RuntimeError(f"the store could not be read: {known.degraded}")
        found.update((user, one.item) for one in known.behaviours)
    await store.close()
    return found


def ledger_checks(ledger: Ledger, found: Counter[Event]) -> list[Check]:
    """Nothing lost, nothing doubled, nothing that nobody sent."""
    n_lost = len(ledger.acknowledged - found.keys())
    n_doubled = sum(times > 1 for times in found.values())
    return [
        none_of("acknowledged events that are not there", n_lost, len(ledger.acknowledged)),
        none_of("events that are there twice", n_doubled, len(found)),
        none_of("events that nobody sent", len(found.keys() - ledger.sent), len(found)),
    ]


def measure(lab: Lab) -> Outcome:
    """G10."""
    store, ledger = EmbeddedStore(lab.folder / "g10-store"), Ledger()
    store.start()
    try:
        settings = {"DAIAN_WORKERS": "2", "DAIAN_REDIS_URL": store.url, "DAIAN_BEHAVIOURS_KEEP": str(KEEP)}
        with lab.service("g10", settings) as service:
            asyncio.run(storm(lab, service, store, ledger))
        found = asyncio.run(found_in(store.url, {user for user, _ in ledger.sent}))
    finally:
        store.stop()
    how = (
        f"{lab.sizes.n_store_kills} times kill -9 of both workers and {lab.sizes.n_store_kills} times of the store "
        f"(append-only file, everysec) under {N_WRITERS} writers; {ledger.n_again} calls were sent again"
    )
    return Outcome(how, ledger_checks(ledger, found))
