"""Admission and the worker threads: who may be computed, and where.

Called by the routes (check before any body is read, enter once it is in) and by the ranker (run, one hand-over per
request: encoding, graphs and ordering stay on one thread). The queue is bounded by predicted wait, not by length, and
is looked at again when a worker takes the job: a caller that has given up must not cost the next one its turn. While
several tenants ask, none of them may fill more than half of it; two together may fill it all, unless quotas hold them.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from service.behaviour_codec import MAIN_TENANT
from service.deadline import Deadline
from service.errors import CallerGone, DeadlineExceeded, Overloaded, TenantShare
from service.metrics import Metrics
from service.quotas import TenantShares

Result = TypeVar("Result")
Priority = Literal["interactive", "prefetch"]

NO_ROOM = "the queue is longer than this deadline allows: come back later, or allow more time"
SHARE_IS_TAKEN = "this tenant has its half of the queue, and others ask too: come back later"
SAFETY = 1.2  # predicted wait is a mean; the queue's tail is longer
SHARE_OF_DEADLINE = 0.7  # the rest is for the work itself
SHARE_OF_PREFETCH = 0.1  # a page that nobody waits for yet must leave room for those that somebody does
SHARE_OF_TENANT = 0.5  # of the places, while others ask: room for them is there before they come
SMOOTHING = 0.1  # weight of the newest service time
LOOP_SMOOTHING = 0.3  # weight of the newest look at the event loop
LEAST_ANSWERED = 5  # between two looks that count: fewer say nothing about the cost of one
LOOKS = 10  # after so many without enough answers nobody waits for the loop, and what it once cost is forgotten


class Admission:
    """Bounded worker threads behind a queue that refuses whoever cannot be answered in time."""

    def __init__(
        self,
        n_threads: int,
        metrics: Metrics,
        prepare: Callable[[], None] | None = None,
        usual_deadline_s: float = 0.1,
    ) -> None:
        """`prepare` runs once in each new worker thread: OpenMP keeps its settings per thread. `usual_deadline_s` is
        what interactive requests have: prefetches may not make them wait for a share of it, however long their own is.
        """
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="daian-worker", initializer=prepare)
        self._n_threads = n_threads
        self._usual_deadline_s = usual_deadline_s
        self._metrics = metrics
        self._shares = TenantShares()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._service_s = 0.0
        self._cpu_s = 0.0
        self._loop_s = 0.0
        self._loop_cpu_s = 0.0  # since the last look that counted, as the two below
        self._n_left = 0
        self._n_looks = 0

    def check(self, deadline: Deadline, priority: Priority = "interactive") -> None:
        """Takes no place: a body that is slow to come must not keep others out.

        Raises Overloaded when those before would, by the mean time of a ranking, use up this deadline.
        """
        if retry_after_ms := self.turned_away_ms(deadline, priority):
            raise Overloaded(NO_ROOM, retry_after_ms)

    def turned_away_ms(self, deadline: Deadline, priority: Priority = "interactive") -> int:
        """`check` without an error, for who asks thousands of times a second: 0, or when to come back."""
        wait_s = self.predicted_wait_s()
        if wait_s <= 0 or wait_s * SAFETY <= self._bearable_s(deadline, priority):
            return 0
        self._metrics.count_shed("overload" if priority == "interactive" else "priority")
        return max(100, round(wait_s * 1000))

    def _bearable_s(self, deadline: Deadline, priority: Priority) -> float:
        """How long a request of this deadline and priority may wait for a worker."""
        left_s = deadline.left_s()
        if priority == "interactive":
            return SHARE_OF_DEADLINE * left_s
        return SHARE_OF_PREFETCH * min(left_s, self._usual_deadline_s)

    def check_share(self, deadline: Deadline, tenant: str) -> None:
        """Notes that the tenant asks, and takes no place either.

        Places are those of the queue that a request of this deadline may join, the workers' among them; of a deadline
        above the usual one, those of the usual: patience is no claim to more. Nobody is refused while a worker is free
        or nobody else asks. Raises TenantShare when the tenant would have more than its share.
        """
        self._shares.ask(tenant)
        if self._in_flight < self._n_threads or self._shares.is_alone(tenant):
            return
        n_held, pace_s = self._shares.held(tenant), self._pace_s() * SAFETY
        bearable_s = SHARE_OF_DEADLINE * min(deadline.left_s(), self._usual_deadline_s)
        if n_held and (n_held + 1) * pace_s > SHARE_OF_TENANT * (self._n_threads * pace_s + bearable_s):
            self._metrics.count_shed("share")
            self._metrics.tenant_rejected.labels(tenant).inc()
            raise TenantShare(SHARE_IS_TAKEN, max(100, round(n_held * self._pace_s() * 1000)))

    def enter(self, deadline: Deadline, priority: Priority = "interactive", tenant: str = MAIN_TENANT) -> None:
        """Takes a place for one request, which `leave` gives back. Raises as `check` and `check_share` do."""
        self.check_share(deadline, tenant)
        self.check(deadline, priority)
        self._shares.take(tenant)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)

    def leave(self, tenant: str = MAIN_TENANT) -> None:
        """Gives back the place of a request that was answered, or failed."""
        self._shares.give_back(tenant)
        self._in_flight -= 1
        self._n_left += 1
        self._metrics.in_flight.set(self._in_flight)

    def predicted_wait_s(self) -> float:
        """How long a request that came now would wait: for a worker, and for the loop to get to it."""
        before = self._in_flight - self._n_threads + 1
        return max(0, before) * self._pace_s()

    def _pace_s(self) -> float:
        """Time from one answer to the next while a queue waits.

        Workers and loop may have to share one core, so their processor times add up; a worker's time by the clock may
        be longer still, beside other processes.
        """
        return max(self._service_s / self._n_threads, self._cpu_s / self._n_threads + self._loop_s)

    def observe_loop(self, cpu_s: float) -> None:
        """Takes the time of a processor that the event loop has used since the last call.

        Bodies, answers and refusals are the loop's work, and under load they are a queue of their own: predicted by the
        workers' time alone, waits came out half as long as they were.
        """
        self._loop_cpu_s += cpu_s
        self._n_looks += 1
        if self._n_left >= LEAST_ANSWERED:
            weight = LOOP_SMOOTHING if self._loop_s else 1.0
            self._loop_s += weight * (self._loop_cpu_s / self._n_left - self._loop_s)
        elif self._n_looks >= LOOKS:
            self._loop_s *= 1 - LOOP_SMOOTHING
        else:
            return
        self._loop_cpu_s, self._n_left, self._n_looks = 0.0, 0, 0

    async def run(self, work: Callable[[], Result], deadline: Deadline) -> Result:
        """The result of `work`, run whole in one worker thread.

        Raises DeadlineExceeded when the deadline has passed by the time a worker is free, CallerGone when nobody waits
        any more, then or later, and whatever `work` raises.
        """
        queued_s = time.monotonic()

        def job() -> Result:
            started_s, started_cpu_s = time.monotonic(), time.thread_time()
            self._metrics.queue_seconds.observe(started_s - queued_s)
            if deadline.is_gone():
                self._metrics.count_shed("gone")
                raise CallerGone("the connection was closed in the queue")
            if deadline.passed():
                self._metrics.count_shed("expired")
                raise DeadlineExceeded("no worker was free before the deadline: come back later, or allow more time")
            try:
                return work()
            finally:
                self.observe(time.monotonic() - started_s, time.thread_time() - started_cpu_s)

        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    def observe(self, service_s: float, cpu_s: float | None = None) -> None:
        """Takes one service time into the moving mean; the golden replay gives the first. `cpu_s`: the processor's."""
        with self._lock:
            weight = SMOOTHING if self._service_s else 1.0
            self._service_s += weight * (service_s - self._service_s)
            self._cpu_s += weight * ((service_s if cpu_s is None else cpu_s) - self._cpu_s)
            self._metrics.service_time.set(self._service_s)

    def close(self) -> None:
        """Lets running work end and drops what still waits."""
        self._threads.shutdown(wait=True, cancel_futures=True)
