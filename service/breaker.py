"""A circuit breaker: after some failures in a row it refuses for a while, then lets one attempt through to look.

So a dead store costs its time-out once per pause and not once per request. Used by `user_store.py`, one for reads and
one for writes. Never sleeps, has no tasks and no locks (one event loop uses it), and never retries anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

State = Literal["closed", "open", "probing"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Leave to try once. Whoever holds it says how it went, by `Breaker.succeeded` or `Breaker.failed`."""

    era: int


@dataclass
class Breaker:
    """Closed (all may try) -> open (none may, for `open_s`) -> probing (one may) -> closed or open again.

    Attempts that began before the last change of state are no longer asked: a straggler that fails late does not
    prolong a pause, one that succeeds late does not end it. A probe that never reports is replaced after `open_s`.

    Args:
        max_failures: failures in a row that open it, at least 1.
        open_s: the pause, seconds.
        clock: monotonic seconds.
        on_change: called with True and the last failure's kind when it opens, with False and "" when it closes again;
            not for the probes in between.
    """

    max_failures: int
    open_s: float
    clock: Callable[[], float]
    on_change: Callable[[bool, str], None]
    state: State = field(default="closed", init=False)
    _n_failures: int = field(default=0, init=False)
    _era: int = field(default=0, init=False)
    _changed_at: float = field(default=0.0, init=False)

    def admit(self) -> Attempt | None:
        """Leave to try now, or None: do without."""
        if self.state != "closed":
            if self.clock() - self._changed_at < self.open_s:
                return None
            self._enter("probing")
        return Attempt(self._era)

    def succeeded(self, attempt: Attempt) -> None:
        """The attempt was answered in time."""
        if attempt.era != self._era:
            return
        self._n_failures = 0
        if self.state == "probing":
            self._enter("closed")
            self.on_change(False, "")

    def failed(self, attempt: Attempt, kind: str) -> None:
        """The attempt failed or was late; `kind` says how, in a word."""
        if attempt.era != self._era:
            return
        self._n_failures += 1
        if self.state == "probing":
            self._enter("open")
        elif self._n_failures >= self.max_failures:
            self._enter("open")
            self.on_change(True, kind)

    def _enter(self, state: State) -> None:
        self.state = state
        self._era += 1
        self._n_failures = 0
        self._changed_at = self.clock()
