"""Calls to the behaviour store over one pool of connections: counted, within a budget, behind a breaker.

A call that is given up is not cancelled. It runs on until its reply lands or its time-out ends it: cancelling would
throw its connection away, and opening the next one takes longer than the reply would have, which makes a slow server
slower. Used by `user_store.py`, once for each operation. Never retries, never says what was asked for.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from service.breaker import Attempt, Breaker
from service.redis_client import failure_advice, failure_kind

Replies = list[object]

# A budget that ends this much too late, as a share of itself, was not used up by the store but by an event loop that
# was busy elsewhere. The store then gets the same share on top: most replies are waiting in the socket by then.
STALL_SHARE = 0.25

_log = logging.getLogger("daian.store")


class NoAnswerError(Exception):
    """The store did not answer (in time). `kind`: `open`, `late`, or a word of `redis_client.failure_kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@runtime_checkable
class StoreObserver(Protocol):
    """Who wants to count what the store goes through. `operation`: as of `GuardedCalls`. No call may fail or block."""

    def answered(self, operation: str, seconds: float) -> None: ...
    def failed(self, operation: str, kind: str) -> None: ...
    def late(self, operation: str) -> None: ...
    def corrupt(self, what: str, n: int) -> None: ...
    def breaker(self, operation: str, is_open: bool) -> None: ...
    def memory(self, share: float) -> None: ...


@dataclass
class StoreCounts:
    """The observer that counts in memory, by (event, operation or what, kind)."""

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    memory_share: float = 0.0

    def answered(self, operation: str, seconds: float) -> None:  # noqa: ARG002  (the port has it)
        self.counts["answered", operation] += 1

    def failed(self, operation: str, kind: str) -> None:
        self.counts["failed", operation, kind] += 1

    def late(self, operation: str) -> None:
        self.counts["late", operation] += 1

    def corrupt(self, what: str, n: int) -> None:
        self.counts["corrupt", what] += n

    def breaker(self, operation: str, is_open: bool) -> None:
        self.counts["breaker", operation, "open" if is_open else "closed"] += 1

    def memory(self, share: float) -> None:
        self.memory_share = share


class GuardedCalls:
    """The calls over one pool.

    Args:
        operation: a word of `label_values.STORE_OPERATIONS`, for counts and log lines.
        max_failures: failures in a row that open the breaker.
        open_s: how long it then refuses.
        budget_s: how long `run` waits for a reply; None = as long as the connection's own time-outs let it.
        observer: told of every outcome.
    """

    def __init__(
        self, operation: str, max_failures: int, open_s: float, budget_s: float | None, observer: StoreObserver
    ) -> None:
        self.breaker = Breaker(max_failures, open_s, time.monotonic, self._tell)
        self._operation = operation
        self._budget_s = budget_s
        self._observer = observer
        self._under_way: set[asyncio.Task[Replies]] = set()

    async def run(self, work: Callable[[], Coroutine[object, object, Replies]]) -> Replies:
        """What `work` returns.

        Raises:
            NoAnswerError: the breaker is open, the budget is over, or the store failed.
        """
        attempt = self.breaker.admit()
        if attempt is None:
            raise NoAnswerError("open")
        task = asyncio.create_task(work())
        self._under_way.add(task)
        if not await self._settled(task, attempt):
            self._fail(attempt, "late")
            raise NoAnswerError("late")
        try:
            return task.result()
        except Exception as error:  # Whatever a client makes of a broken reply, it costs the history, not the request.
            raise NoAnswerError(failure_kind(error)) from error

    async def drain(self) -> None:
        """Returns when every call under way has ended, which the connections' time-outs see to."""
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _settled(self, task: asyncio.Task[Replies], attempt: Attempt) -> bool:
        """Whether the task ended within the budget. Its outcome counts even if the caller is cancelled meanwhile."""
        started, in_time = time.perf_counter(), True

        def settle(ended: asyncio.Task[Replies]) -> None:
            self._under_way.discard(ended)
            error = None if ended.cancelled() else ended.exception()
            if not in_time:
                self._observer.late(self._operation)
            elif ended.cancelled() or error is not None:
                self._fail(attempt, failure_kind(error) if error else "cancelled")
            else:
                self._observer.answered(self._operation, time.perf_counter() - started)
                self.breaker.succeeded(attempt)

        task.add_done_callback(settle)
        await asyncio.wait({task}, timeout=self._budget_s)
        if self._budget_s is not None and not task.done():
            share_s = self._budget_s * STALL_SHARE
            if time.perf_counter() - started > self._budget_s + share_s:
                await asyncio.wait({task}, timeout=share_s)
        in_time = task.done()
        return in_time

    def _fail(self, attempt: Attempt, kind: str) -> None:
        self._observer.failed(self._operation, kind)
        # One key of the wrong type says nothing about the server.
        if kind == "wrong_type":
            self.breaker.succeeded(attempt)
        else:
            self.breaker.failed(attempt, kind)

    def _tell(self, is_open: bool, kind: str) -> None:
        self._observer.breaker(self._operation, is_open)
        if is_open:
            advice = failure_advice(kind)
            said = f": {advice}" if advice else ""
            _log.warning("store %ss: no answer (%s), doing without%s", self._operation, kind, said)
        else:
            _log.warning("store %ss: answering again", self._operation)


class CallsByShard:
    """`GuardedCalls` per shard, each with a breaker: one node of a cluster that is away is nobody else's trouble."""

    def __init__(self, make: Callable[[], GuardedCalls]) -> None:
        self._make = make
        self._by_shard: dict[str, GuardedCalls] = {}

    async def run(self, shard: str, work: Callable[[], Coroutine[object, object, Replies]]) -> Replies:
        """As `GuardedCalls.run`. `shard`: any name, always "" where there is one server."""
        if shard not in self._by_shard:
            self._by_shard[shard] = self._make()
        return await self._by_shard[shard].run(work)

    async def drain(self) -> None:
        """Returns when every call under way has ended."""
        await asyncio.gather(*(calls.drain() for calls in self._by_shard.values()))
