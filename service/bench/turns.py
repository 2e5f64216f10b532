"""Things measured in turns, A B A B, and their ratios: what a neighbour on the machine does then hits all alike.

Used by `daian bench` and by `benchmarks/`. A figure is the median over the rounds with its quartiles; a ratio is taken
round by round, never between two medians of different minutes. Knows nothing of what is measured.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

SHORTEST_S = 0.004  # what is quicker is repeated until it takes so long: the clock itself costs a microsecond

Found = TypeVar("Found")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError for no value: a figure that nobody measured is not written."""
        if not len(values):
            raise ValueError("no round was measured: give at least one")
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))

    def shown(self, digits: int = 3) -> str:
        """`median (low-high)` with as many significant digits."""
        median, low, high = (significant(value, digits) for value in (self.median, self.low, self.high))
        return f"{median} ({low}-{high})"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else str(value)
    places = digits - 1 - int(np.floor(np.log10(abs(value))))
    return f"{round(value, places):,.{max(0, places)}f}"


def in_turns(subjects: Mapping[str, Callable[[], Found]], n_rounds: int, n_warm_up: int = 1) -> dict[str, list[Found]]:
    """What each subject gave in each round. All are asked once before any is asked again.

    The order is turned around after every round, so that none always runs behind the same other one.
    """
    found: dict[str, list[Found]] = {name: [] for name in subjects}
    for turn in range(n_warm_up + n_rounds):
        order = list(subjects)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            value = subjects[name]()
            if turn >= n_warm_up:
                found[name].append(value)
    return found


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A subject of `in_turns`: the seconds of one call, repeated when it is too short to be timed alone.

    `clock`: time.thread_time counts the processor's time alone, to be compared with that of other processes.
    """
    repeats = 0

    def measured() -> float:
        nonlocal repeats
        if not repeats:
            started_s = time.perf_counter()
            call()
            repeats = max(1, round(SHORTEST_S / max(time.perf_counter() - started_s, 1e-7)))
        started_s = clock()
        for _ in range(repeats):
            call()
        return (clock() - started_s) / repeats

    return measured


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Of two series measured in turns, round by round. Raises ValueError when they have different rounds."""
    if len(over) != len(under):
        raise ValueError(f"{len(over)} and {len(under)} rounds: a ratio is taken between the two of each round")
    return Spread.of([left / right for left, right in zip(over, under, strict=True)])
