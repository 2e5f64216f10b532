"""How a process that trains takes turns with others: told for how many seconds, it says how far it got.

Read by both environments: imports the standard library alone.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TypedDict


class Turn(TypedDict):
    """What one turn did."""

    candidates: int
    steps: int
    seconds: float


def stay_on_one_core() -> None:
    """All threads of this process, a loader's included, share one core: one core each is what is compared."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def take_turns(steps: Iterator[int], name: str) -> None:
    """Trains when told to, until standard input ends. `steps` takes one step each and gives its candidates."""
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(one_turn(steps, float(line))), flush=True)


def one_turn(steps: Iterator[int], seconds: float) -> Turn:
    """Whole steps until the time is over."""
    started_s, candidates, n_steps = time.perf_counter(), 0, 0
    while (spent_s := time.perf_counter() - started_s) < seconds or not n_steps:
        candidates += next(steps)
        n_steps += 1
    return {"candidates": candidates, "steps": n_steps, "seconds": max(spent_s, time.perf_counter() - started_s)}
