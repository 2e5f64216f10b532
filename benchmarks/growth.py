"""Part `growth`: time and memory against candidates, behaviours, items and workers.

Candidates, items and workers over HTTP on the real service; behaviours through the encoder and the request graph in
this process, because a request may bring 500 at most and a store with so many takes time to fill. Memory is PSS of the
service's processes, without the store: a page that two of them share counts once in the sum. What a request with many
behaviours needs is far below what PSS can show: it is counted by numpy's own allocations. Throughput against workers
is in part `http`, where they take turns.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from benchmarks.bundles import bundle_of
from benchmarks.graphs import NOW_MS, open_pair
from benchmarks.page import Found, Goal, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.shop_load import pages, send_behaviours
from benchmarks.stages import take_turns
from service.bench.asking import closed_loop, run
from service.bench.served import Placement, Served, serving
from service.bench.stage_times import of_headers
from service.bench.turns import Spread, in_turns, seconds_of

SHARED = 1.25
SEARCHED, DAYS = 1000, 180
MANY = {"DAIAN_MAX_CANDIDATES": "2000"}
T = TypeVar("T")
N_PAGES = 500  # candidates of the pages by which catalogues are compared


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """All four."""
    scene = Scene(n_items=plan.n_items)
    root = bundle_of(scene, "daian", plan.bundles, tell)
    candidates, raw_candidates = _candidates(scene, root, plan)
    tell("candidates are done")
    behaviours, raw_behaviours = _behaviours(root, plan)
    tell("behaviours are done")
    items, goals, raw_items = _items(plan, tell)
    raw = {"candidates": raw_candidates, "behaviours": raw_behaviours, "items": raw_items}
    return Found("growth", "Growth", [candidates, behaviours, *items], goals, [], raw)


def _candidates(scene: Scene, root: Path, plan: Plan) -> tuple[Table, Any]:
    """Pages of all sizes in turn, then the memory after pages of each size."""
    sizes = [n for n in plan.growth_candidates if n <= scene.n_items]
    requests = {str(n): pages(scene, n, n_users=50) for n in sizes}
    memory = {}
    with (
        TemporaryDirectory(prefix="daian-bench-") as folder,
        serving(root, Path(folder), Placement(1, 1), MANY) as served,
    ):
        send_behaviours(served, scene, n_users=50)
        for n in sizes:
            run(closed_loop(served.port, requests[str(n)], 1, plan.warm_up_s))
            memory[str(n)] = served.pss_mb()
        loads = take_turns(served, requests, plan.n_stage_requests // 2)
    rows = []
    for n, load in loads.items():
        stages = of_headers(load.stages)
        graphs = [a + b for a, b in zip(stages["request_graph"], stages["candidate_graph"], strict=True)]
        shown = [Spread.of(values).shown() for values in (stages["total"], graphs)]
        rows.append([n, *shown, f"{1000 * Spread.of(graphs).median / int(n):.1f}", f"{memory[n]:,.0f}"])
    head = ["candidates", "whole request, ms", "graphs, ms", "graphs a candidate, µs", "PSS after such pages, MB"]
    caption = "Against candidates: one visitor, one worker, pages of all sizes in turn."
    return Table(caption, head, rows), {n: of_headers(load.stages) for n, load in loads.items()}


def _behaviours(root: Path, plan: Plan) -> tuple[Table, Any]:
    """Searched behaviours 0 to 1,000; the history that the model reads is cut at 50."""
    scene = Scene(n_items=plan.n_items, n_related=SEARCHED, window_days=DAYS)
    encoder, scorer = scene.encoder, open_pair(root)
    subjects: dict[str, Callable[[], float]] = {}
    for n in plan.growth_behaviours:
        batch = scene.batch([n], 1, NOW_MS, n_behaviours=n)
        inputs = encoder.encode(batch)
        subjects[f"encode {n}"] = seconds_of(lambda batch=batch: encoder.encode_request(batch))  # type: ignore[misc]
        subjects[f"graph {n}"] = seconds_of(lambda inputs=inputs: scorer.encode_request(inputs))  # type: ignore[misc]
    found = in_turns(subjects, plan.growth_rounds, n_warm_up=2)
    rows = []
    for n in plan.growth_behaviours:
        both = [Spread.of([1e6 * s for s in found[f"{what} {n}"]]).shown() for what in ("encode", "graph")]
        batch = scene.batch([n], 1, NOW_MS, n_behaviours=n)
        most, inputs = peak_bytes(lambda batch=batch: encoder.encode_request(batch))  # type: ignore[misc]
        state = sum(array.nbytes for array in scorer.encode_request(inputs).tensors.values())
        rows.append([str(n), *both, f"{most / 1000:,.0f}", f"{state / 1000:,.0f}"])
    caption = f"Against behaviours ({SEARCHED:,} searched for those like the trigger, at most 50 in the history)."
    head = ["behaviours", "encoding the request's side, µs", "request graph, µs", "most memory while encoding, kB",
            "handed to the candidate graph, kB"]  # fmt: skip
    return Table(caption, head, rows), found


def peak_bytes(call: Callable[[], T]) -> tuple[int, T]:
    """The most that Python and numpy held at once beyond what they had before the call, and what it gave."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        given = call()
        return tracemalloc.get_traced_memory()[1] - before, given
    finally:
        tracemalloc.stop()


def _items(plan: Plan, tell: Callable[[str], None]) -> tuple[list[Table], list[Goal], Any]:
    """Catalogues of each size, served by one worker and by two."""
    time_rows, memory_rows, goals, raw = [], [], [], {}
    for n in plan.growth_items:
        scene = Scene(n_items=n)
        root = bundle_of(scene, "daian", plan.bundles, tell)
        memory = {}
        for workers in (1, 2):
            with (
                TemporaryDirectory(prefix="daian-bench-") as folder,
                serving(root, Path(folder), Placement(workers, 1), {}) as served,
            ):
                loads = _visit(served, scene, plan, workers)
                memory[workers] = served.pss_mb()
            if workers == 1:
                shown = [Spread.of(of_headers(load.stages)["total"]).shown() for load in loads.values()]
                time_rows.append([f"{n:,}", *shown, f"{_size_mb(root):,.0f}"])
                raw[str(n)] = {kind: of_headers(load.stages) for kind, load in loads.items()}
        shared = memory[2] / memory[1]
        raw[f"{n} pss_mb"] = memory
        memory_rows.append([f"{n:,}", f"{memory[1]:,.0f}", f"{memory[2]:,.0f}", f"{shared:.2f}"])
        if n == 1_000_000:
            goals.append(Goal("memory of two workers against one, 1,000,000 items (PSS)", SHARED, shared, False))
        tell(f"{n:,} items: PSS {memory[1]:.0f} and {memory[2]:.0f} MB")
    n_pages = min(N_PAGES, min(plan.growth_items))
    head = ["items", f"{n_pages} candidates given, ms", "recalled, ms", "bundle on disk, MB"]
    times = Table("Against the catalogue: one visitor, one worker.", head, time_rows)
    head = ["items", "PSS of one worker, MB", "PSS of two workers, MB", "two / one"]
    return [times, Table("Memory against workers, after the same pages.", head, memory_rows)], goals, raw


def _visit(served: Served, scene: Scene, plan: Plan, workers: int) -> dict[str, Any]:
    """Both kinds of page, enough to touch the memory of all workers."""
    send_behaviours(served, scene, n_users=50)
    n_pages = min(N_PAGES, min(plan.growth_items))
    requests = {"given": pages(scene, n_pages, n_users=50), "recalled": pages(scene, None, n_users=50)}
    for of_kind in requests.values():
        run(closed_loop(served.port, of_kind, 4 * workers, plan.warm_up_s))
    return take_turns(served, requests, plan.n_stage_requests // 4)


def _size_mb(root: Path) -> float:
    return float(np.sum([path.stat().st_size for path in root.rglob("*") if path.is_file()])) / 1e6
