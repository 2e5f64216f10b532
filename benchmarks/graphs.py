"""Part `graphs`: both graphs of a bundle against the same weights as one graph with one row per pair.

In this process, one ONNX Runtime thread, as the service's scorer runs them (in its chunks). The tiled graph gets its
repeated inputs ready-made: only running it is timed. Scores of both must agree before anything is timed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bundles import bundle_of, drawn_model
from benchmarks.page import Found, Goal, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.tiled import TILED_GRAPH, export_tiled, tiled_inputs
from service.bench.served import BenchError
from service.bench.turns import Spread, in_turns, ratio, seconds_of
from service.contract.bundle import current_path, read_bundle
from service.contract.encoder import ModelInputs
from service.deadline import Deadline
from service.runtime import open_scorer
from service.scorer import Graph, Scorer
from service.settings import Settings

TOLERANCE = 1e-5
NOW_MS = 1_790_000_000_000
WANTED = {("daian", 500): 12.0, ("daian", 100): 7.0}
NAMES = {"daian": "DAIAN", "din": "DIN"}


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Time at every number of candidates, model by model. Raises BenchError when the scores differ."""
    scene = Scene(n_items=plan.n_items)
    rows, goals, raw, worst = [], [], {}, 0.0
    for name in plan.models:
        root = bundle_of(scene, name, plan.bundles, tell)
        scorer, tiled = open_pair(root), open_tiled(scene, name, root, tell)
        for n in plan.candidates:
            inputs = scene.encoder.encode(scene.batch([n], n, NOW_MS))
            worst = max(worst, check_same(scorer, tiled, inputs))
            found = _times(scorer, tiled, inputs, plan.n_rounds)
            gain = ratio(found["tiled"], found["request-shaped"])
            milliseconds = {what: Spread.of([1000 * s for s in seconds]) for what, seconds in found.items()}
            rows.append([NAMES.get(name, name), str(n), *(milliseconds[what].shown() for what in found), gain.shown()])
            raw[f"{name} {n}"] = {**found, "ratio": vars(gain)}
            if (name, n) in WANTED:
                what = f"request-shaped against tiled, {NAMES[name]}, N = {n}, one thread (times faster)"
                goals.append(Goal(what, WANTED[name, n], gain.median))
            tell(f"{name}, N = {n}: tiled / request-shaped {gain.shown()}")
    head = ["model", "N", "request-shaped, ms", "tiled, ms", "tiled / request-shaped"]
    caption = (
        f"Medians of {plan.n_rounds} rounds in turn, quartiles in brackets; 50 behaviours, {plan.n_items:,} items, one "
        "thread."
    )
    note = f"Scores of both agree within {worst:.1e} in every line (allowed: {TOLERANCE:g})"
    return Found("graphs", "Two graphs against one row per pair", [Table(caption, head, rows)], goals, [note], raw)


def open_pair(root: Path) -> Scorer:
    """The bundle's two graphs as the service opens them."""
    settings = Settings()
    return open_scorer(read_bundle(current_path(root)), settings.chunk, settings.ort_threads)


def tiled_path(scene: Scene, name: str, root: Path, tell: Callable[[str], None] = print) -> Path:
    """The tiled graph of the bundle's weights, made once and kept beside the bundle."""
    path = root.with_name(f"{root.name}.{TILED_GRAPH}")
    if not path.is_file():
        tell(f"exporting {name} with one row per pair")
        partial = path.with_suffix(".partial")
        export_tiled(drawn_model(name, scene.encoder.sizes), scene.encoder.sizes, partial)
        partial.rename(path)
    return path


def open_tiled(scene: Scene, name: str, root: Path, tell: Callable[[str], None] = print) -> Graph:
    """The tiled graph in the same kind of session."""
    return Graph(TILED_GRAPH, tiled_path(scene, name, root, tell).read_bytes(), {})


def scores_of_pair(scorer: Scorer, inputs: ModelInputs) -> np.ndarray:
    """Logits [N] of one request, both graphs."""
    return scorer.score(scorer.encode_request(inputs), inputs, Deadline.after_ms(600_000)).logits


def check_same(scorer: Scorer, tiled: Graph, inputs: ModelInputs) -> float:
    """The largest difference of logits. Raises BenchError above TOLERANCE, or when all logits are alike."""
    ours, theirs = scores_of_pair(scorer, inputs), tiled.run(tiled_inputs(inputs))["logits"]
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE:
        raise BenchError(f"tiled and request-shaped scores differ by {difference:.3g}: not the same model")
    if len(ours) > 1 and float(ours.std()) < 100 * TOLERANCE:
        raise BenchError("all candidates score alike: such weights cannot tell two computations apart")
    return difference


def _times(scorer: Scorer, tiled: Graph, inputs: ModelInputs, n_rounds: int) -> dict[str, list[float]]:
    repeated = tiled_inputs(inputs)
    subjects = {
        "request-shaped": seconds_of(lambda: scores_of_pair(scorer, inputs)),
        "tiled": seconds_of(lambda: tiled.run(repeated)),
    }
    return in_turns(subjects, n_rounds, n_warm_up=2)
