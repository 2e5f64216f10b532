"""How much of training is the loader. Started by `loader_profile` with a folder and the model's name.

Two sources of batches for one model take turns: `loaded`, as `daian train` has them (row groups read, decoded and
encoded at each use by the thread that reads ahead), and `ready`, the same batches made before the clock starts. By so
much as the second is faster the loader holds training up.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.peers.terms import Terms
from benchmarks.training_turns.ours import TrainingSteps
from training.allocator import keep_freed_memory
from training.data.batches import Batch, Batches, BatchPlan, Position
from training.data.pools import FreshPools

N_READY = 40  # batches that are made beforehand: enough that no cache holds them all


class Profile(TypedDict):
    """One turn. Processor seconds of the thread that takes the steps, and of all others: those are the loader's."""

    candidates: int
    seconds: float
    waited_s: float
    step_cpu_s: float
    loader_cpu_s: float


def endless(batches: Batches) -> Iterator[Batch]:
    """Epoch after epoch, read ahead in a thread."""
    position = Position()
    while True:
        for batch in batches.epoch(position):
            position = batch.after
            yield batch


def profile(steps: TrainingSteps, source: Iterator[Batch], seconds: float) -> Profile:
    """Whole steps until the time is over. The loader's processor time is the process's less this thread's."""
    started_s, process_s, thread_s = time.perf_counter(), time.process_time(), time.thread_time()
    candidates, waited_s = 0, 0.0
    while time.perf_counter() - started_s < seconds or not candidates:
        asked_s = time.perf_counter()
        batch = next(source)
        waited_s += time.perf_counter() - asked_s
        candidates += steps.take(batch)
    own_s = time.thread_time() - thread_s
    return {
        "candidates": candidates,
        "seconds": time.perf_counter() - started_s,
        "waited_s": waited_s,
        "step_cpu_s": own_s,
        "loader_cpu_s": max(0.0, time.process_time() - process_s - own_s),
    }


def sources(folder: Path, steps: TrainingSteps, n_ready: int = N_READY) -> dict[str, Iterator[Batch]]:
    """Both sources over the same file."""
    plan = BatchPlan(batch_candidates=Terms.open(folder / "terms.json").batch_candidates)
    batches = Batches([folder / "train.parquet"], steps.encoder, plan, FreshPools(steps.encoder))
    return {"loaded": endless(batches), "ready": cycle(list(islice(endless(batches), n_ready)))}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    keep_freed_memory()
    steps = TrainingSteps(folder, name)
    by_name = sources(folder, steps)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        source, seconds = line.split()
        print(json.dumps(profile(steps, by_name[source], float(seconds))), flush=True)


if __name__ == "__main__":
    main()
