"""Part `stages`: where the time of one request goes, by the service's own stage timer (the Server-Timing header).

One visitor, one worker with one thread, real HTTP and a real store; pages of each kind in turn. What the timer cannot
see (the server around the handler, the wire, the client) is the difference to the time that the client saw; time in no
stage is reading the body, the hand-over to the worker thread and waiting for it. The stage `encode` has all that turns
strings into tensors, the related history too: what it is made of is timed in this process.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.bundles import bundle_of
from benchmarks.graphs import NOW_MS
from benchmarks.page import Found, Goal, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.shop_load import check_whole, pages, send_behaviours
from service.bench.asking import Load, closed_loop, run
from service.bench.served import Placement, Served, serving
from service.bench.stage_times import of_headers
from service.bench.turns import Spread, in_turns, seconds_of
from service.contract.requests import RequestBatch
from service.contract.similarity import search_related

ENCODE_SHARE = 0.15
A_TURN_S = 0.25


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Median time of every stage, for pages with 100 and 500 candidates (the plan's) and for recall."""
    scene = Scene(n_items=plan.n_items)
    root = bundle_of(scene, "daian", plan.bundles, tell)
    kinds: dict[str, int | None] = {f"N = {n}": n for n in plan.candidates if n > 1} | {"recall": None}
    with TemporaryDirectory(prefix="daian-bench-") as folder:
        loads = _loads(root, Path(folder), scene, kinds, plan.n_stage_requests, tell)
    tables, raw, goals = [], {}, []
    for kind, load in loads.items():
        found = of_headers(load.stages)
        tables.append(stage_table(kind, found, load))
        raw[kind] = {"stages": found, "client_s": load.seconds}
        if kind == "N = 500":
            share = float(np.median(share_of(found, ("encode", "related"))))
            goals.append(Goal("encode and related history, share of the request, N = 500", ENCODE_SHARE, share, False))
    table, raw["encoding"] = encoding_table(scene, [n for n in plan.candidates if n > 1], plan.n_rounds)
    notes = ["One worker, one thread, one connection"]
    return Found("stages", "Stages of one request", [*tables, table], goals, notes, raw)


def _loads(
    root: Path, folder: Path, scene: Scene, kinds: dict[str, int | None], n_requests: int, tell: Callable[[str], None]
) -> dict[str, Load]:
    with serving(root, folder, Placement(1, 1), {}) as served:
        tell(f"sent {send_behaviours(served, scene)} behaviours")
        requests = {kind: pages(scene, n) for kind, n in kinds.items()}
        for kind, n in kinds.items():
            check_whole(served, requests[kind], n, scene.n_behaviours)
        return take_turns(served, requests, n_requests)


def take_turns(served: Served, requests: dict[str, list[bytes]], n_requests: int) -> dict[str, Load]:
    """Short turns of each kind until each has its number of answers; the first turn of each is not counted."""
    loads = {kind: Load() for kind in requests}
    for kind in requests:
        run(closed_loop(served.port, requests[kind], 1, A_TURN_S))
    while min(len(load.seconds) + load.n_failed for load in loads.values()) < n_requests:
        for kind, load in loads.items():
            one = run(closed_loop(served.port, requests[kind], 1, A_TURN_S))
            load.seconds += one.seconds
            load.stages += one.stages
            load.n_failed += one.n_failed
            load.n_degraded += one.n_degraded
            load.wall_s += one.wall_s
    return loads


def share_of(found: dict[str, list[float]], names: Sequence[str]) -> list[float]:
    """What these stages take together of each request's total."""
    parts = [found[name] for name in names if name in found]
    return [sum(values) / total for *values, total in zip(*parts, found["total"], strict=True)]


def stage_table(kind: str, found: dict[str, list[float]], load: Load) -> Table:
    """Stages in their order, then what the timer does not see."""
    rows = []
    for name, values in found.items():
        share = "" if name == "total" else f"{100 * float(np.median(share_of(found, (name,)))):.1f} %"
        rows.append([name, Spread.of([1000 * value for value in values]).shown(), share])
    between = [total - sum(parts) for *parts, total in zip(*found.values(), strict=True)]
    rows.append(["of which in no stage", Spread.of([1000 * value for value in between]).shown(), ""])
    client = Spread.of([1e6 * value for value in load.seconds])
    rows.append(["seen by the client", client.shown(), ""])
    counts = f"{len(load.seconds)} answers, {load.n_degraded} of them degraded, {load.n_failed} failed"
    caption = f"Pages of the kind *{kind}*: {counts}."
    return Table(caption, ["stage", "median (quartiles), µs", "share of the total"], rows)


def encoding_table(scene: Scene, sizes: Sequence[int], n_rounds: int) -> tuple[Table, dict[str, list[float]]]:
    """What the stage `encode` is made of, in this process: here all is in the caches, in the service often not."""
    page = scene.batch([max(sizes)], max(sizes), NOW_MS)
    subjects: dict[str, Callable[[], object]] = {
        "the request's side: ids to rows, history, related history": lambda: scene.encoder.encode_request(page),
        "of it the search for related history": related_search(scene, page),
    }
    for n in sizes:
        subjects[f"the candidates' side, N = {n}"] = _candidates(scene, scene.batch([n], n, NOW_MS))
    found = in_turns({what: seconds_of(call) for what, call in subjects.items()}, n_rounds, n_warm_up=2)
    rows = [[what, Spread.of([1e6 * one for one in seconds]).shown()] for what, seconds in found.items()]
    caption = f"What encoding is made of; {scene.n_behaviours} behaviours, in this process alone."
    return Table(caption, ["part", "median (quartiles), µs"], rows), found


def related_search(scene: Scene, page: RequestBatch) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The search among one page's behaviours as the encoder makes it; all of a scene's are inside the window."""
    catalogue, rules = scene.encoder.catalogue, scene.encoder.rules
    trigger, rows = int(catalogue.rows(page.trigger.tolist())[0]), catalogue.rows(page.behaviour_item.tolist())
    searched = catalogue.codes, catalogue.norms, trigger, rows, rules.related_threshold, rules.related_max
    return lambda: search_related(*searched)


def _candidates(scene: Scene, page: RequestBatch) -> Callable[[], object]:
    inputs = scene.encoder.encode_request(page)
    return lambda: scene.encoder.encode_candidates(inputs, page)
