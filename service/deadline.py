"""Deadline: the one clock that a request carries with it, from the first byte to the last chunk.

Made by the routes when a request arrives, read by admission, ranker and scorer. Monotonic, so that a jump of the wall
clock neither kills nor revives a request. It knows too whether anybody still waits. Nobody below makes a second one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

IS_GONE = "daian.is_gone"  # where a request's scope has a function that says so, if the server put one there


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Deadline:
    """The moment at which an answer loses its worth, on the monotonic clock, in seconds.

    `is_gone`: whether the caller has left, and its answer lost its worth before; may be asked from any thread.
    """

    at_s: float
    clock: Callable[[], float] = time.monotonic
    is_gone: Callable[[], bool] = _never

    @staticmethod
    def after_ms(budget_ms: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        """The deadline that is `budget_ms` away from now."""
        return Deadline(clock() + budget_ms / 1000, clock)

    def left_s(self) -> float:
        """Seconds that are left, negative once it has passed."""
        return self.at_s - self.clock()

    def passed(self) -> bool:
        """True once nothing is left."""
        return self.left_s() <= 0
