"""G4: the behaviour store refuses, falls silent, is slow, or cuts its connections; rankings go on without history.

A fault proxy stands between the service and a real server and misbehaves while an open-loop load runs. Called by
`__main__.py`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice

from benchmarks.goals.lab import N_USERS, Lab, pinned
from benchmarks.goals.outcome import D_S, Check, Outcome, all_200, at_least, at_most, percentile_ms
from benchmarks.goals.overload import NORMAL, capacity_of
from service.embedded_store import embedded_store
from tests.chaos.fault_proxy import FaultProxy, fault_proxy
from tests.chaos.open_loop import LoadClient, Sent, load_client, open_loop, post

FAULTS = ("refused", "black hole", "1 s slow", "reset")
RESETS_EVERY_S = 0.2
WARM_UP_S = 1.0
WINDOW_S = 0.25


@dataclass(frozen=True)
class Faulted:
    """One fault: the load before it, during it and from its end on."""

    fault: str
    before: list[Sent]
    during: list[Sent]
    after: list[Sent]

    @property
    def back_to_normal_s(self) -> float:
        """Seconds from the end of the fault to the end of the last window with more answers that failed or lacked
        something than the worst one before the fault: a burst of arrivals alone may cost an answer its history.
        """
        usual = max(_not_whole(self.before).values(), default=0)
        late = [window for window, n in _not_whole(self.after).items() if n > usual]
        return (max(late) + 1) * WINDOW_S if late else 0.0

    @property
    def share_degraded(self) -> float:
        return sum(bool(one.degraded) for one in self.during) / max(1, len(self.during))


def _not_whole(answers: list[Sent]) -> Counter[int]:
    """How many answers failed or lacked something, by window."""
    return Counter(int(one.due_s / WINDOW_S) for one in answers if one.status != 200 or one.degraded)


async def begin(proxy: FaultProxy, fault: str) -> None:
    if fault == "refused":
        await proxy.refuse()
    elif fault == "black hole":
        proxy.mode = "swallow"
    elif fault == "1 s slow":
        proxy.delay_s = 1.0


async def end(proxy: FaultProxy, fault: str) -> None:
    if fault == "refused":
        await proxy.accept()
    proxy.mode, proxy.delay_s = "pass", 0.0


async def with_resets(proxy: FaultProxy, load: Awaitable[list[Sent]]) -> list[Sent]:
    """The load, with every connection to the store cut again and again."""
    running = asyncio.ensure_future(load)
    while not running.done():
        proxy.reset()
        await asyncio.wait({running}, timeout=RESETS_EVERY_S)
    return await running


async def through(lab: Lab, proxy: FaultProxy, client: LoadClient, per_s: float, fault: str) -> Faulted:
    """Normal load, the fault, and normal again."""

    def load(seed: int) -> Awaitable[list[Sent]]:
        return open_loop(client, [lab.ranking(per_s)], lab.sizes.fault_s, seed)

    before = await load(1)
    await begin(proxy, fault)
    during = await (with_resets(proxy, load(2)) if fault == "reset" else load(2))
    await end(proxy, fault)
    return Faulted(fault, before, during, await load(3))


async def fill(lab: Lab, client: LoadClient) -> None:
    """A few clicks for every user of the load: a history that can be missing."""
    at = int(time.time() - 600) * 1000
    events = [
        {"event_id": f"{user}-{item}", "type": "click", "user": f"u{user}", "item": item, "time": at}
        for user in range(N_USERS)
        for item in islice(lab.item_ids, 5)
    ]
    request, until_s = post("/v1/events", {"events": events}), time.monotonic() + 30
    while (status := (await client.ask(request)).status) != 200:
        if time.monotonic() > until_s:
            raise RuntimeError(f"the store took no events: {status}")


@asynccontextmanager
async def behind_proxy(lab: Lab, url: str) -> AsyncIterator[tuple[FaultProxy, LoadClient]]:
    """A service whose store is behind a fault proxy, with users in it, and a client of the service."""
    async with fault_proxy(url) as proxy:
        stack = ExitStack()
        # In a thread: the service asks the store through the proxy, which lives in this loop.
        service = await asyncio.to_thread(stack.enter_context, lab.service("g4", {"DAIAN_REDIS_URL": proxy.url}))
        try:
            with pinned(lab.cores()[1:]), load_client(service.host, service.port) as client:
                await fill(lab, client)
                yield proxy, client
        finally:
            await asyncio.to_thread(stack.close)


async def one_fault(lab: Lab, url: str, fault: str, per_s: float) -> Faulted:
    """One fault at a given rate."""
    async with behind_proxy(lab, url) as (proxy, client):
        return await through(lab, proxy, client, per_s, fault)


async def all_faults(lab: Lab, url: str) -> tuple[float, list[Faulted]]:
    """The capacity and every fault, `n_rounds` times in turn."""
    async with behind_proxy(lab, url) as (proxy, client):
        capacity = await capacity_of(client, lab.unhurried(), lab.sizes.capacity_s)
        await open_loop(client, [lab.ranking(NORMAL * capacity)], WARM_UP_S, seed=9)
        rounds = [fault for _ in range(lab.sizes.n_rounds) for fault in FAULTS]
        return capacity, [await through(lab, proxy, client, NORMAL * capacity, fault) for fault in rounds]


def fault_checks(fault: str, found: list[Faulted]) -> list[Check]:
    """What must hold for one fault, over its rounds."""
    every = [one for part in found for one in (*part.before, *part.during, *part.after)]
    during = [one.seconds for part in found for one in part.during]
    before = [one.seconds for part in found for one in part.before]
    ratio = percentile_ms(during, 50) / percentile_ms(before, 50)
    checks = [
        all_200(f"{fault}: not answered 200", every),
        at_most(f"{fault}: p50, of the normal one", ratio, 1.2, "times"),
        at_most(f"{fault}: p99", percentile_ms(during, 99), D_S * 1000, "ms"),
        at_most(f"{fault}: from its end to normal again", max(one.back_to_normal_s for one in found), 1.0, "s"),
    ]
    if fault != "reset":  # a reset costs one answer per connection at most
        seen = 100 * min(part.share_degraded for part in found)
        checks.append(at_least(f"{fault}: answers that said what was missing", seen, 50, "%", "count"))
    return checks


def measure(lab: Lab) -> Outcome:
    """G4."""
    with embedded_store(lab.folder / "g4-store") as url:
        capacity, found = asyncio.run(all_faults(lab, url))
    how = (
        f"{NORMAL:g} of the capacity ({capacity:.0f}/s); each fault for {lab.sizes.fault_s:g} s, with as long before "
        f"and after it, {lab.sizes.n_rounds} times in turn; `reset` cut all connections every {RESETS_EVERY_S:g} s"
    )
    checks = [check for fault in FAULTS for check in fault_checks(fault, [one for one in found if one.fault == fault])]
    return Outcome(how, checks)
