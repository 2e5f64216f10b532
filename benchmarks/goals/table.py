"""The goals in words, and which measure proves each. Read by `__main__.py` and `page.py`."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.goals import (
    acknowledged,
    bit_flips,
    canaries,
    overload,
    restarts,
    retry_storm,
    slow_sockets,
    soak,
    store_faults,
)
from benchmarks.goals.lab import Lab
from benchmarks.goals.outcome import Outcome
from benchmarks.goals.suites import SUITES

Measure = Callable[[Lab], Outcome]


@dataclass(frozen=True)
class Goal:
    """One promise, and what measures it."""

    name: str
    promise: str
    measure: Measure


GOALS = {
    goal.name: goal
    for goal in (
        Goal("G1", "3 times the capacity: whoever is accepted is answered in time, the others are told at once",
             overload.three_times),
        Goal("G2", "6 times the capacity: the same, and back to normal a second after", overload.six_times),
        Goal("G3", "ten times as many prefetches as people: people do not notice", overload.prefetches),
        Goal("G4", "the store refuses, is silent, slow, or cuts connections: every page is filled, in time",
             store_faults.measure),
        Goal("G5", "the store's master fails over: no errors, whole answers again in 3 s", SUITES["G5"].measure),
        Goal("G6", "whatever bytes are sent: a documented refusal, never a 5xx", SUITES["G6"].measure),
        Goal("G7", "bundles are swapped under load: nobody notices, memory stays flat", restarts.swaps),
        Goal("G8", "rolling restarts under load, clients without retries: nobody notices", restarts.rolling_restarts),
        Goal("G9", "workers killed with -9: only what was in flight is cut off, one retry mends it",
             restarts.workers_killed),
        Goal("G10", "service and store killed with -9: no acknowledged event is lost, none doubled",
             acknowledged.measure),
        Goal("G11", "a million requests: memory and descriptors stay", soak.measure),
        Goal("G12", "a thousand slow sockets: others do not notice, they are closed, SIGTERM works",
             slow_sockets.measure),
        Goal("G13", "broken bundles are refused, and no worker dies of one", SUITES["G13"].measure),
        Goal("G14", "ids are in no log, metric or refusal", canaries.measure),
        Goal("G15", "a flipped bit in a file of requests is found", bit_flips.measure),
        Goal("G16", "one tenant at ten times its quota: the others do not notice", overload.greedy_tenant),
        Goal("G17", "ready 3 s after the start, and never before the golden requests passed", restarts.starts),
        Goal("G18", "an erased user leaves no trace", SUITES["G18"].measure),
        Goal("G19", "clients that ask again at once whatever they are told: the others get their answers",
             retry_storm.measure),
    )
}  # fmt: skip
