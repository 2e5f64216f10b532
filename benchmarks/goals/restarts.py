"""G7, G8, G9, G17: bundles swapped, workers replaced and killed under load, and how long a start takes.

Two workers share one listening socket that their parent holds open, so a worker that goes leaves no connection behind
that nobody accepts. Called by `__main__.py`. Kills only workers of services that it started.
"""

import asyncio
import os
import select
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.goals.lab import PATIENT, Lab
from benchmarks.goals.outcome import Check, Outcome, all_200, at_most, none_of, not_measured, percentile_ms
from benchmarks.goals.overload import patient_stream
from service.contract.bundle import point_to, read_bundle
from tests.chaos.open_loop import LoadClient, Sent, load_client, open_loop, post
from tests.chaos.service_process import ServiceProcess, end_orphan, free_port, launch, status_of
from tests.small_bundle import write_small_bundle

PER_S = 120.0  # light requests: what counts is whether they are answered
WORKER_S = 60.0
SETTLE_S = 1.0
SWAP_S = 120.0  # the trial starts an interpreter, and gives up by itself
SETTLED_SWAPS = 20
TWO_WORKERS = {**PATIENT, "DAIAN_WORKERS": "2"}
VERSIONS = ("v1", "v2", "v3")
Act = Callable[[LoadClient], Awaitable[None]]


@dataclass
class Killed:
    """What was under way when workers were killed."""

    n_kills: int = 0
    n_in_flight: int = 0
    seconds_to_full: list[float] = field(default_factory=list)


async def beside(lab: Lab, service: ServiceProcess, act: Act, n_retries: int = 0) -> list[Sent]:
    """All answers of a load that runs for as long as `act` does."""
    answers: list[Sent] = []
    with load_client(service.host, service.port, n_retries) as client:
        stream, turn = await patient_stream(lab, client, PER_S), 0
        acting = asyncio.ensure_future(act(client))
        while not acting.done():
            answers += await open_loop(client, [stream], SETTLE_S, seed=turn)
            turn += 1
        await acting
        answers += await open_loop(client, [stream], SETTLE_S, seed=turn)
    return answers


async def until(is_true: Callable[[], bool], what: str) -> float:
    """Seconds until it is. Raises TimeoutError."""
    started_s = time.monotonic()
    while not await asyncio.to_thread(is_true):
        if time.monotonic() - started_s > WORKER_S:
            raise TimeoutError(f"after {WORKER_S:g} s still not so: {what}")
        await asyncio.sleep(0.02)
    return time.monotonic() - started_s


async def replaced(service: ServiceProcess, pid: int, number: int) -> float:
    """Signals one worker; seconds until another answers in its place."""
    n_opened = service.n_bundles_opened()
    os.kill(pid, number)
    return await until(
        lambda: pid not in service.workers() and service.n_bundles_opened() > n_opened, "a new worker answers"
    )


async def ended(pid: int) -> None:
    """Returns once the process is dead, its connections closed: until then it may be given more requests."""
    descriptor, dead = os.pidfd_open(pid), select.poll()
    dead.register(descriptor, select.POLLIN)
    try:
        while not dead.poll(0):
            await asyncio.sleep(0.001)
    finally:
        os.close(descriptor)


def rolling_restarts(lab: Lab, n_retries: int = 0) -> Outcome:
    """G8: one rolling restart replaces both workers, one after the other, by SIGTERM."""

    async def main(service: ServiceProcess) -> list[Sent]:
        async def act(_: LoadClient) -> None:
            for _turn in range(lab.sizes.n_restarts):
                for pid in sorted(service.workers()):
                    await replaced(service, pid, signal.SIGTERM)

        return await beside(lab, service, act, n_retries)

    with lab.service("g8", {**TWO_WORKERS, "DAIAN_DRAIN_S": "3"}) as service:
        answers = asyncio.run(main(service))
    how = (
        f"two workers behind one socket, each in turn told to stop by SIGTERM and replaced, {lab.sizes.n_restarts} "
        f"times, under at most {PER_S:g} requests a second on keep-alive connections, {n_retries} retries"
    )
    return Outcome(how, [all_200("requests not answered 200", answers)])


def workers_killed(lab: Lab) -> Outcome:
    """G9."""
    killed = Killed()

    async def main(service: ServiceProcess) -> list[Sent]:
        async def act(client: LoadClient) -> None:
            for turn in range(lab.sizes.n_kills):
                pid = sorted(service.workers())[turn % 2]
                while not client.n_in_flight:  # a kill between two requests would show nothing
                    await asyncio.sleep(0.001)
                killed.n_kills += 1
                n_before, n_begun = client.n_in_flight, client.n_begun
                replacing = asyncio.ensure_future(replaced(service, pid, signal.SIGKILL))
                await ended(pid)
                await asyncio.sleep(0.01)  # until this loop has seen it, requests are still sent to the dead one
                killed.n_in_flight += n_before + client.n_begun - n_begun
                killed.seconds_to_full.append(await replacing)

        return await beside(lab, service, act, n_retries=1)

    with lab.service("g9", TWO_WORKERS) as service:
        answers = asyncio.run(main(service))
    how = (
        f"{killed.n_kills} times kill -9 of one of two workers under at most {PER_S:g} requests a second; a new "
        f"one answered after {max(killed.seconds_to_full):.1f} s at most; {killed.n_in_flight} requests were in "
        "flight at the kills"
    )
    return Outcome(how, kill_checks(answers, killed.n_in_flight))


def kill_checks(answers: list[Sent], n_in_flight: int) -> list[Check]:
    """At most those in flight were cut off, and one repetition answers them all."""
    n_broken = sum(one.n_broken > 0 for one in answers)
    first = Check(
        "requests cut off", f"{n_broken:,} of {len(answers):,}", f"≤ {n_in_flight} in flight", n_broken <= n_in_flight
    )
    return [first, all_200("not answered 200 with one retry on a new connection", answers)]


def starts(lab: Lab) -> Outcome:
    """G17."""
    seconds = []
    for _ in range(lab.sizes.n_starts):
        with lab.service("g17") as service:
            seconds.append(service.ready_s)
    n_asked, n_ready = bad_start(lab)
    how = f"{len(seconds)} starts of `daian serve` with its embedded store; one on a bundle whose golden requests fail"
    return Outcome(
        how,
        [
            at_most("slowest start to ready", max(seconds), 3, "s"),
            none_of("looks at /readyz that said ready though the golden requests fail", n_ready, n_asked),
        ],
    )


def bad_start(lab: Lab) -> tuple[int, int]:
    """(looks, those that found it ready) at a service whose bundle does not give the golden scores."""
    root, port = lab.folder / "g17-bad", free_port()
    golden: list[dict[str, object]] = [
        {"case": "wrong", "request": wrong_request(lab), "logits": [9.0], "intent": None}
    ]
    write_small_bundle(root, golden=golden)
    folder = lab.folder / "g17-bad-run"
    process = launch(root, folder, lab.cores()[:1], DAIAN_PORT=str(port), **lab.settings)
    n_asked = n_ready = 0
    try:
        while process.poll() is None and n_asked < 3_000:
            n_ready += status_of(f"http://127.0.0.1:{port}/readyz") == 200
            n_asked += 1
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        end_orphan(folder / "store")
    return n_asked, n_ready


def wrong_request(lab: Lab) -> dict[str, object]:
    return {
        "request_id": "r", "requested_at": 1_790_000_000_000, "user": {"user": None}, "context": {},
        "trigger": lab.item_ids[0], "behaviours": [], "candidates": lab.item_ids[1:2],
    }  # fmt: skip


def swaps(lab: Lab) -> Outcome:
    """G7: through the admin port, each with its trial in a child process, as in production."""
    if lab.sizes.n_swaps < 1:
        return not_measured("no swaps were asked for")
    root, memory = lab.folder / "g7-bundles", list[int]()
    for version in reversed(VERSIONS):
        write_small_bundle(root, version=version)
    point_to(root, read_bundle(root / "daian" / VERSIONS[0]))
    admin = free_port()

    async def main(service: ServiceProcess) -> tuple[list[Sent], list[Sent]]:
        async def act(_: LoadClient) -> None:
            with load_client(service.host, admin) as operator:
                for turn in range(lab.sizes.n_swaps):
                    body = {"version": VERSIONS[(turn + 1) % len(VERSIONS)]}
                    reply = await operator.ask(post("/v1/admin/models/daian:promote", body), SWAP_S)
                    if reply.status != 200:
                        raise RuntimeError(f"a swap was refused: {reply.body.decode()}")
                    memory.append(service.resident_bytes())

        async def wait(_: LoadClient) -> None:
            await asyncio.sleep(lab.sizes.fault_s)

        return await beside(lab, service, wait), await beside(lab, service, act)

    settings = {**PATIENT, "DAIAN_ADMIN_PORT": str(admin), "DAIAN_BUNDLE_POLL_S": "0"}
    with lab.service("g7", settings, root=root) as service:
        quiet, answers = asyncio.run(main(service))
    n_degraded = sum(bool(one.degraded) for one in answers)
    how = (
        f"{len(memory)} promotions through the admin port, each tried in a child process first, under at most "
        f"{PER_S:g} requests a second; {n_degraded} of {len(answers):,} answers were degraded, without swaps "
        f"{sum(bool(one.degraded) for one in quiet)} of {len(quiet):,}"
    )
    too_few = f"{len(memory)} swaps are too few for memory" if len(memory) <= SETTLED_SWAPS else ""
    return Outcome(how, swap_checks(quiet, answers, memory), too_few)


def swap_checks(quiet: list[Sent], answers: list[Sent], memory: list[int]) -> list[Check]:
    """Nobody notices, and memory stays what it was once the first swaps had filled the pools that stay."""
    ratio = percentile_ms([one.seconds for one in answers], 99) / percentile_ms([one.seconds for one in quiet], 99)
    checks = [
        all_200("requests not answered 200", answers),
        at_most("p99, of that without swaps", ratio, 1.5, "times"),
    ]
    if len(memory) > SETTLED_SWAPS:
        grown = memory[-1] / memory[SETTLED_SWAPS - 1]
        checks.append(at_most(f"memory at the end, of that after swap {SETTLED_SWAPS}", grown, 1.05, "times", "count"))
    return checks
