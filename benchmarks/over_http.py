"""Part `http`: throughput and waiting over HTTP, closed and open loop, and how much of the server's time is graphs.

Real uvicorn and a real store. Server efficiency is (answers x processor seconds of the two graphs alone, in this
process, one thread) over the processor seconds of the service: 1 would be a server that does nothing but run graphs.
The graphs are timed between the turns of the load, so that a slower minute slows both. The placements (workers x
threads) take turns. The client shares the machine with the service, and its time is not in the service's.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bundles import bundle_of
from benchmarks.graphs import NOW_MS, open_pair, scores_of_pair
from benchmarks.page import Found, Goal, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.shop_load import check_whole, pages, send_behaviours
from service.bench.asking import Load, closed_loop, open_loop, run
from service.bench.served import Placement, Served, serving
from service.bench.turns import Spread, seconds_of
from service.contract.encoder import ModelInputs
from service.scorer import Scorer

PLACEMENTS = (Placement(1, 1), Placement(1, 2), Placement(2, 1))
CONNECTIONS = 4
EFFICIENCY = {100: 0.60, 500: 0.80}
TAIL = 2.5
GRAPH_TIMES = 7  # of the graphs alone, beside each turn


@dataclass
class Turns:
    """What one placement gave with pages of one size, turn by turn."""

    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    efficiency: list[float] = field(default_factory=list)
    open_p50_ms: list[float] = field(default_factory=list)
    open_p99_ms: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    n_failed: int = 0
    n_degraded: int = 0
    first_failure: str = ""

    def count(self, load: Load) -> None:
        """Answers that were not whole."""
        self.n_failed += load.n_failed
        self.n_degraded += load.n_degraded
        self.first_failure = self.first_failure or load.first_failure


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Each placement with 100 and 500 candidates (those of the plan between 2 and 500)."""
    scene = Scene(n_items=plan.n_items)
    root = bundle_of(scene, "daian", plan.bundles, tell)
    sizes = [n for n in plan.candidates if 1 < n <= 500]
    found: dict[tuple[str, int], Turns] = {}
    with TemporaryDirectory(prefix="daian-bench-") as folder, ExitStack() as stack:
        services = _start(stack, root, Path(folder), scene, tell)
        scorer = open_pair(root)
        for n in sizes:
            inputs = scene.encoder.encode(scene.batch([n], n, NOW_MS))
            requests = pages(scene, n)
            for served in services.values():
                check_whole(served, requests, n, scene.n_behaviours)
                run(closed_loop(served.port, requests, CONNECTIONS, plan.warm_up_s))
            turns = {label: Turns() for label in services}
            for number in range(plan.load_rounds):
                for label, served in services.items():
                    _closed_turn(turns[label], served, requests, scorer, inputs, plan.load_s)
                for label, served in services.items():
                    _open_turn(turns[label], served, requests, plan.load_s, seed=number)
                tell(f"N = {n}, round {number + 1} of {plan.load_rounds}")
            found |= {(label, n): turn for label, turn in turns.items()}
    return _report(found, sizes, plan)


def _start(stack: ExitStack, root: Path, folder: Path, scene: Scene, tell: Callable[[str], None]) -> dict[str, Served]:
    """One service for each placement; those whose turn it is not are idle."""
    services = {}
    for placement in PLACEMENTS:
        served = stack.enter_context(serving(root, folder / placement.label.replace(" ", ""), placement, {}))
        send_behaviours(served, scene)
        services[placement.label] = served
        tell(f"{placement.label} is ready at port {served.port}")
    return services


def _closed_turn(
    turns: Turns, served: Served, requests: list[bytes], scorer: Scorer, inputs: ModelInputs, seconds: float
) -> None:
    timed = seconds_of(lambda: scores_of_pair(scorer, inputs), time.thread_time)
    alone = [timed() for _ in range(GRAPH_TIMES)]
    cpu_before_s = served.cpu_s()
    load = run(closed_loop(served.port, requests, CONNECTIONS, seconds))
    cpu_s = served.cpu_s() - cpu_before_s
    alone += [timed() for _ in range(GRAPH_TIMES)]
    turns.count(load)
    turns.per_s.append(load.per_s)
    turns.p50_ms.append(load.ms(50))
    turns.p99_ms.append(load.ms(99))
    turns.cores.append(cpu_s / load.wall_s)
    turns.efficiency.append(len(load.seconds) * Spread.of(alone).median / cpu_s)


def _open_turn(turns: Turns, served: Served, requests: list[bytes], seconds: float, seed: int) -> None:
    """Half of what the closed loop reached last."""
    load = run(open_loop(served.port, requests, turns.per_s[-1] / 2, seconds, seed))
    turns.count(load)
    turns.open_p50_ms.append(load.ms(50))
    turns.open_p99_ms.append(load.ms(99))
    turns.tail.append(load.ms(99) / load.ms(50))
    time.sleep(0.2)


def _report(found: dict[tuple[str, int], Turns], sizes: list[int], plan: Plan) -> Found:
    closed, opened, goals = [], [], []
    for (label, n), turns in found.items():
        shown = [
            Spread.of(values).shown()
            for values in (turns.per_s, turns.p50_ms, turns.p99_ms, turns.cores, turns.efficiency)
        ]
        closed.append([str(n), label, *shown, f"{turns.n_failed} / {turns.n_degraded}"])
        half = Spread.of([per_s / 2 for per_s in turns.per_s])
        waits = [Spread.of(values).shown() for values in (turns.open_p50_ms, turns.open_p99_ms, turns.tail)]
        opened.append([str(n), label, half.shown(), *waits])
    for n in sizes:
        of_size = {label: turns for (label, size), turns in found.items() if size == n}
        if n in EFFICIENCY:
            best = max(Spread.of(turns.efficiency).median for turns in of_size.values())
            goals.append(Goal(f"server efficiency over HTTP, N = {n}, best placement", EFFICIENCY[n], best))
        tail = min(Spread.of(turns.tail).median for turns in of_size.values())
        goals.append(Goal(f"p99 / p50 at half of the capacity, open loop, N = {n}, best placement", TAIL, tail, False))
    first = Table(
        f"Closed loop, {CONNECTIONS} connections, {plan.load_rounds} turns of {plan.load_s:g} s, medians (quartiles).",
        ["N", "workers x threads", "answers/s", "p50, ms", "p99, ms", "cores of the service", "server efficiency",
         "failed / degraded"],
        closed,
    )  # fmt: skip
    second = Table(
        "Open loop at half of what each reached in the closed loop; time counts from the moment a request was due.",
        ["N", "workers x threads", "arrivals/s", "p50, ms", "p99, ms", "p99 / p50"],
        opened,
    )
    raw = {f"{label}, N = {n}": vars(turns) for (label, n), turns in found.items()}
    notes = [f"{label}, N = {n}, first failure: {t.first_failure}" for (label, n), t in found.items() if t.n_failed]
    return Found("http", "Over HTTP", [first, second], goals, notes, raw)
