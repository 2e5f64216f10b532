"""G1, G2, G3, G16: more load than the service can carry, prefetches beside people, one greedy tenant.

Capacity is measured first, in the same process and run, and every rate is a multiple of it. Called by `__main__.py`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.goals.lab import LIGHT, N_CANDIDATES, PATIENT_MS, Lab
from benchmarks.goals.outcome import D_S, Check, Outcome, all_200, at_least, at_most, none_of, percentile_ms
from service.api_keys import add_key
from tests.chaos.open_loop import LoadClient, Sent, Stream, closed_loop, load_client, open_loop
from tests.chaos.service_process import ServiceProcess

N_CLOSED = 4
NORMAL = 0.4  # of the capacity: a service that is neither idle nor in trouble
PEOPLE = 0.5  # of the capacity, in G3
TENANT_RATE = 20.0
OTHERS = ("b", "c", "d")


@dataclass(frozen=True)
class Overload:
    """What became of a load above capacity, and of the normal one before and after it."""

    capacity_per_s: float  # before it, which sets the rates
    capacity_after_per_s: float
    seconds: float
    surge: list[Sent]
    before: list[Sent]
    after: list[Sent]

    @property
    def accepted(self) -> list[float]:
        return [one.seconds for one in self.surge if one.status == 200]

    @property
    def shed(self) -> list[Sent]:
        return [one for one in self.surge if one.status == 503]

    @property
    def goodput(self) -> float:
        """Answers within the deadline, as a share of the capacity: of the larger one, for a surge may do harm."""
        capacity_per_s = max(self.capacity_per_s, self.capacity_after_per_s)
        return sum(seconds <= D_S for seconds in self.accepted) / self.seconds / capacity_per_s

    @property
    def degraded_share(self) -> float:
        found = [bool(one.degraded) for one in self.surge if one.status == 200]
        return sum(found) / max(1, len(found))


async def capacity_of(client: LoadClient, requests: Sequence[bytes], seconds: float) -> float:
    """Rankings a second when the service never waits for the client; the first part of the time warms it up."""
    await closed_loop(client, requests, seconds / 3, N_CLOSED)
    answers = await closed_loop(client, requests, seconds, N_CLOSED)
    return sum(one.status == 200 for one in answers) / seconds


async def patient_stream(lab: Lab, client: LoadClient, most_per_s: float) -> Stream:
    """Light requests that can wait, at a rate that this machine carries with ease: for what is not about speed."""
    requests = lab.ranks(LIGHT, deadline_ms=PATIENT_MS)
    per_s = NORMAL * await capacity_of(client, requests, lab.sizes.capacity_s / 2)
    return Stream(min(most_per_s, max(1.0, per_s)), requests)


async def overloaded(lab: Lab, service: ServiceProcess, times: float) -> Overload:
    """Capacity, a normal load, `times` the capacity, the normal load and the capacity again."""
    sizes = lab.sizes
    with load_client(service.host, service.port) as client:
        per_s = await capacity_of(client, lab.unhurried(), sizes.capacity_s)
        before = await open_loop(client, [lab.ranking(NORMAL * per_s)], sizes.fault_s, seed=1)
        surge = await open_loop(client, [lab.ranking(times * per_s)], sizes.overload_s, seed=2)
        after = await open_loop(client, [lab.ranking(NORMAL * per_s)], 1.0 + sizes.fault_s, seed=3)
        per_s_after = await capacity_of(client, lab.unhurried(), sizes.capacity_s)
    return Overload(per_s, per_s_after, sizes.overload_s, surge, before, after)


def surge_checks(found: Overload, least_goodput: float) -> list[Check]:
    """The checks that G1 and G2 share."""
    others = sum(one.status not in (200, 503) for one in found.surge)
    return [
        none_of("answers that are neither 200 nor 503, and broken connections", others, len(found.surge)),
        none_of("503 without Retry-After", sum(not one.has_retry_after for one in found.shed), len(found.shed)),
        at_most("p99 of accepted ones", percentile_ms(found.accepted, 99), D_S * 1000, "ms"),
        at_least("answered within the deadline, of the capacity", 100 * found.goodput, 100 * least_goodput, "%"),
    ]


def _how(found: Overload, times: float) -> str:
    return (
        f"capacity {found.capacity_per_s:.0f}/s (closed loop of {N_CLOSED}), then Poisson arrivals at {times:g} times "
        f"that for {found.seconds:g} s, then capacity {found.capacity_after_per_s:.0f}/s; "
        f"{100 * found.degraded_share:.0f} % of the accepted were degraded"
    )


def three_times(lab: Lab) -> Outcome:
    """G1."""
    with lab.service("g1") as service:
        found = asyncio.run(overloaded(lab, service, 3))
    shed = [one.seconds for one in found.shed]
    checks = [*surge_checks(found, 0.9), at_most("p99 of a 503", percentile_ms(shed, 99), 10, "ms")]
    return Outcome(_how(found, 3), checks)


def six_times(lab: Lab) -> Outcome:
    """G2."""
    with lab.service("g2") as service:
        found = asyncio.run(overloaded(lab, service, 6))
    before = percentile_ms([one.seconds for one in found.before if one.status == 200], 50)
    after = percentile_ms([one.seconds for one in found.after if one.status == 200 and one.due_s >= 1], 50)
    checks = [
        *surge_checks(found, 0.75),
        at_most("p50 of the normal load from 1 s after the surge on, of that before", after / before, 1.2, "times"),
    ]
    return Outcome(_how(found, 6), checks)


def prefetches(lab: Lab) -> Outcome:
    """G3."""

    async def main(service: ServiceProcess) -> tuple[float, list[Sent]]:
        with load_client(service.host, service.port) as client:
            per_s = await capacity_of(client, lab.unhurried(), lab.sizes.capacity_s)
            people = lab.ranking(PEOPLE * per_s, group="people")
            pages = lab.ranking(10 * PEOPLE * per_s, N_CANDIDATES, "x-priority: prefetch", group="prefetch")
            return per_s, await open_loop(client, [people, pages], lab.sizes.overload_s, seed=4)

    with lab.service("g3") as service:
        per_s, answers = asyncio.run(main(service))
    people = [one for one in answers if one.group == "people"]
    pages = [one for one in answers if one.group == "prefetch"]
    n_failed = sum(one.status != 200 for one in people)
    served = 100 * (1 - n_failed / max(1, len(people)))
    how = (
        f"capacity {per_s:.0f}/s; people at {PEOPLE:g} of it (deadline 100 ms), prefetches at ten times "
        f"the people's rate for {lab.sizes.overload_s:g} s; {sum(one.status == 200 for one in pages):,} of "
        f"{len(pages):,} prefetches were served; {n_failed} of {len(people):,} people were not"
    )
    others = sum(one.status not in (200, 503) for one in answers)
    return Outcome(
        how,
        [
            none_of("answers that are neither 200 nor 503, and broken connections", others, len(answers)),
            at_least("people answered 200", served, 99.9, "%"),
        ],
    )


def greedy_tenant(lab: Lab) -> Outcome:
    """G16."""
    keys_file = lab.folder / "g16-keys.json"
    keys = {name: add_key(keys_file, name, "load", ["rank"]).text for name in ("a", *OTHERS)}
    settings = {"DAIAN_KEYS_FILE": str(keys_file), "DAIAN_TENANT_RATE": f"{TENANT_RATE:g}", "DAIAN_TENANT_BURST": "20"}
    with lab.service("g16", settings) as service:
        rounds = asyncio.run(greedy_rounds(lab, service, keys))
    alone = [one for quiet, _ in rounds for one in quiet if one.group in OTHERS]
    beside = [one for _, loud in rounds for one in loud if one.group in OTHERS]
    greedy = [one for _, loud in rounds for one in loud if one.group == "a"]
    ratio = percentile_ms([one.seconds for one in beside], 99) / percentile_ms([one.seconds for one in alone], 99)
    how = (
        f"quota {TENANT_RATE:g}/s; three tenants at half of it, without and with a fourth at ten times it, "
        f"{len(rounds)} pairs of {lab.sizes.overload_s:g} s in turn; the greedy one got 429 for "
        f"{sum(one.status == 429 for one in greedy):,} of {len(greedy):,}"
    )
    return Outcome(
        how,
        [
            all_200("requests of the others that were not answered 200", beside),
            at_most("the others' p99, of that without the greedy one", ratio, 1.2, "times"),
        ],
    )


async def greedy_rounds(lab: Lab, service: ServiceProcess, keys: dict[str, str]) -> list[tuple[list[Sent], list[Sent]]]:
    """(without, with) the greedy tenant, in turn."""

    def stream(tenant: str, per_s: float) -> Stream:
        return Stream(per_s, lab.ranks(LIGHT, f"x-api-key: {keys[tenant]}"), tenant)

    quiet = [stream(tenant, TENANT_RATE / 2) for tenant in OTHERS]
    loud = [*quiet, stream("a", 10 * TENANT_RATE)]
    rounds = []
    with load_client(service.host, service.port) as client:
        for number in range(lab.sizes.n_rounds):
            without = await open_loop(client, quiet, lab.sizes.overload_s, seed=10 + number)
            rounds.append((without, await open_loop(client, loud, lab.sizes.overload_s, seed=20 + number)))
    return rounds
