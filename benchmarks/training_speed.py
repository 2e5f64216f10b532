"""Part `training`: candidates a second through a training step, our DIN and DAIAN beside FuxiCTR's DIN.

The same rows, widths, layers, optimiser (Adam), candidates a batch, one thread on one core each; processes that train
in turns. FuxiCTR takes one row per candidate, its history with it; ours takes whole requests. So the more candidates a
request has, the further apart they are: that is the table. FuxiCTR comes in the environment of `make peers`. It runs
as its users have it, and once more with what `daian train` tells the C library (`training.allocator`), given through
the environment: what that alone does is not to be taken for ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.page import Found, Goal, Table
from benchmarks.peers.convert import heights, rows_of
from benchmarks.peers.environment import FUXICTR, peers_python
from benchmarks.peers.terms import Terms
from benchmarks.plan import Plan
from benchmarks.scene import SCHEMA, Scene
from service.bench.served import STOP_S, BenchError
from service.bench.turns import Spread, in_turns, ratio
from training.data.batches import Batches, BatchPlan
from training.data.request_files import write_requests

TERMS = Terms(width=16, top=(512, 256, 128), attention=(80, 40), history=50, batch_candidates=1000)
OURS = ("din", "daian")
PEER, PEER_KEEPS = "FuxiCTR's DIN", "FuxiCTR's DIN, freed memory kept"
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
NAMES = {"din": "our DIN", "daian": "our DAIAN"}
GOAL_AT, GOAL = 20, 2.0
MOST_REQUESTS = 4000
NOW_MS = 1_790_000_000_000
TORCH = "torch==2.13.0"
ENVIRONMENT = Path("artifacts/peers-venv")


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Every number of candidates a request. Raises CalledProcessError when the peer cannot be installed."""
    python = peers_python(ENVIRONMENT.absolute(), TORCH)
    scene = Scene(n_items=plan.training_items)
    rows, raw, goals = [], {}, []
    for n in plan.training_candidates:
        folder = plan.folder / "training" / f"{plan.training_items}-{n}"
        prepare(scene, n, plan.training_rows, folder)
        found = _turns(folder, python, plan)
        gains = {name: ratio(found[NAMES[name]], found[PEER]) for name in OURS}
        shown = [Spread.of(per_s).shown() for per_s in found.values()]
        rows.append([str(n), *shown, *(gain.shown() for gain in gains.values())])
        raw[str(n)] = found
        if n == GOAL_AT:
            what = f"DAIAN's training, candidates a second against {PEER}, {n} candidates a request (times)"
            goals.append(Goal(what, GOAL, gains["daian"].median))
        tell(f"{n} candidates a request: {', '.join(f'{name} {gain.shown()}' for name, gain in gains.items())}")
    speeds = [*(NAMES[name] for name in OURS), PEER, PEER_KEEPS]
    head = ["candidates a request", *(f"{name}, candidates/s" for name in speeds),
            *(f"{NAMES[name]} / {PEER}" for name in OURS)]  # fmt: skip
    caption = (
        f"{plan.training_rounds} turns of {plan.training_s:g} s each, medians (quartiles); "
        f"{plan.training_items:,} items, 50 behaviours, batches of {TERMS.batch_candidates:,}, one core each."
    )
    notes = [f"Peer: {FUXICTR} with {TORCH}", f"Terms: {TERMS}", "DAIAN: its last stage, in which everything learns",
             "Ours keeps the memory that a step frees, as `daian train` does"]  # fmt: skip
    return Found("training", "Training", [Table(caption, head, rows)], goals, notes, raw)


def prepare(scene: Scene, n_candidates: int, n_rows: int, folder: Path) -> None:
    """The same pages as a request file for ours and as rows for the peer; the clicks are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    TERMS.save(folder / "terms.json")
    encoder = scene.encoder
    encoder.save(folder / "encoder")
    encoder.catalogue.save(folder / "catalogue")
    n_requests = max(2, min(MOST_REQUESTS, n_rows // n_candidates))
    requests = scene.batch(range(n_requests), n_candidates, NOW_MS)
    clicks = (np.random.default_rng(5).random(requests.n_candidates) < max(0.1, 1 / n_candidates)).astype(np.int8)
    with write_requests(folder / "train.parquet", SCHEMA) as file:
        file.write(requests, clicks)
    heights(encoder.sizes, TERMS.similarity_bins).save(folder / "heights.json")
    batches = Batches([folder / "train.parquet"], encoder, BatchPlan(batch_candidates=8192, shuffle=False))
    rows_of(batches.epoch(), encoder.sizes, TERMS.similarity_bins, TERMS.history).save(folder / "train.npz")


def _turns(folder: Path, peers: Path, plan: Plan) -> dict[str, list[float]]:
    """Candidates a second by who trains, round by round."""
    peer = [str(peers), "-m", "benchmarks.training_turns.theirs", str(folder)]
    with ExitStack() as stack:
        trainers = {NAMES[name]: stack.enter_context(our_trainer(folder, name)) for name in OURS}
        trainers[PEER] = stack.enter_context(_trainer(peer))
        trainers[PEER_KEEPS] = stack.enter_context(_trainer(peer, KEEP_FREED))
        subjects = {name: told(trainer, str(plan.training_s)) for name, trainer in trainers.items()}
        found = in_turns(subjects, plan.training_rounds)
    return {name: [turn["candidates"] / turn["seconds"] for turn in turns] for name, turns in found.items()}


def our_trainer(folder: Path, name: str, module: str = "ours") -> AbstractContextManager["subprocess.Popen[str]"]:
    """A process that trains one of our models over a prepared folder."""
    return _trainer([sys.executable, "-m", f"benchmarks.training_turns.{module}", str(folder), name])


def told(trainer: "subprocess.Popen[str]", line: str) -> Callable[[], dict[str, Any]]:
    """A subject of `in_turns`: what the process says to a line."""

    def turn() -> dict[str, Any]:
        assert trainer.stdin is not None
        trainer.stdin.write(f"{line}\n")
        trainer.stdin.flush()
        return _said(trainer)

    return turn


@contextmanager
def _trainer(
    command: list[str], settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator["subprocess.Popen[str]"]:
    """A process that trains when it is told to. `settings`: further variables of its environment."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), **settings}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        _said(process)
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _said(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next line that is ours: the peer's library prints as it likes. Raises BenchError when the process ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise BenchError(f"{process.args!r} ended with {process.wait()} before it had trained: see above")
