"""The load of the benchmarks: HTTP requests sent by closed loops or by a schedule, and how long their answers took.

Used by `daian bench` and by `benchmarks/`, against addresses of this machine. Bodies are made beforehand, so that the
client costs as little of the machine as it can: one thread, keep-alive connections, no parsing but the head's. In the
open loop time counts from the moment a request was due, late or not; a server that stalls cannot make the client wait
and so hide it. Never here: what is asked, what an answer means.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

MAX_IN_FLIGHT = 256
ANSWER_WITHIN_S = 60.0

Found = TypeVar("Found")


class LoadError(Exception):
    """The other side closed the connection, or sent what is no HTTP."""


@dataclass(frozen=True)
class Answer:
    """One answer; `head` in lower case."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """A header's value."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


@dataclass
class Load:
    """What came of some load: seconds by answer, in no order, and how many answers were not whole."""

    seconds: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)  # Server-Timing of each answer, where there is one
    n_failed: int = 0
    n_degraded: int = 0
    degraded: Counter[str] = field(default_factory=Counter)  # answers by what was said to be missing
    first_failure: str = ""
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Good answers a second."""
        return len(self.seconds) / self.wall_s if self.wall_s else 0.0

    def ms(self, percentile: float) -> float:
        """A percentile of the answers' times. Raises LoadError when there is no answer."""
        if not self.seconds:
            raise LoadError(f"no answer was good: {self.first_failure or 'none came'}")
        return 1000 * float(np.percentile(self.seconds, percentile))

    def take(self, answer: Answer, seconds: float) -> None:
        """Counts one answer."""
        if answer.status != 200:
            self.fail(f"{answer.status} {answer.body[:200].decode('utf-8', 'replace')}")
            return
        self.seconds.append(seconds)
        if (reasons := answer.header("daian-degraded")) is not None:
            self.n_degraded += 1
            self.degraded[reasons] += 1
        timing = answer.header("server-timing")
        if timing is not None:
            self.stages.append(timing)

    def fail(self, why: str) -> None:
        """Counts a request without a good answer."""
        self.n_failed += 1
        self.first_failure = self.first_failure or why


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """To a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def ask(self, request: bytes) -> Answer:
        """One answer. Raises LoadError, OSError or TimeoutError."""
        self._writer.write(request)
        async with asyncio.timeout(ANSWER_WITHIN_S):
            try:
                return await self._answer()
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
                raise LoadError(f"the answer broke off or is no HTTP ({type(error).__name__})") from error

    async def _answer(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        answer = Answer(int(head[9:12]), head, b"")
        if (answer.header("transfer-encoding") or "") == "chunked":
            return Answer(answer.status, head, await self._chunks())
        return Answer(answer.status, head, await self._reader.readexactly(int(answer.header("content-length") or 0)))

    async def _chunks(self) -> bytes:
        parts = []
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")
        return b"".join(parts)

    def close(self) -> None:
        """Lets go of the socket."""
        self._writer.close()


def post(path: str, body: bytes, media_type: str = "application/json") -> bytes:
    """A request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def run(load: Coroutine[Any, Any, Found]) -> Found:
    """Runs one load to its end, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


async def ask_once(port: int, request: bytes) -> Answer:
    """One request on a connection of its own."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


async def closed_loop(port: int, requests: Sequence[bytes], n_connections: int, seconds: float) -> Load:
    """`n_connections` visitors, each of whom asks again as soon as it has its answer, for `seconds`."""
    load, until_s = Load(), time.perf_counter() + seconds

    async def visitor(place: int) -> None:
        connection = await Connection.open(port)
        number = place
        try:
            while (started_s := time.perf_counter()) < until_s:
                answer = await connection.ask(requests[number % len(requests)])
                load.take(answer, time.perf_counter() - started_s)
                number += n_connections
        except (LoadError, OSError, TimeoutError) as error:
            load.fail(repr(error))
        finally:
            connection.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(visitor(place) for place in range(n_connections)))
    load.wall_s = time.perf_counter() - started_s
    return load


async def open_loop(port: int, requests: Sequence[bytes], per_s: float, seconds: float, seed: int = 1) -> Load:
    """Poisson arrivals at `per_s` for `seconds`, sent when due, on as many connections as it takes."""
    load, chance, idle = Load(), random.Random(seed), list[Connection]()
    room = asyncio.Semaphore(MAX_IN_FLIGHT)
    arrivals: list[asyncio.Task[None]] = []

    async def arrive(number: int, due_s: float) -> None:
        async with room:
            try:
                connection = idle.pop() if idle else await Connection.open(port)
                answer = await connection.ask(requests[number % len(requests)])
            except (LoadError, OSError, TimeoutError) as error:
                load.fail(repr(error))
                return
            load.take(answer, time.perf_counter() - due_s)
            idle.append(connection)

    started_s = due_s = time.perf_counter()
    while (due_s := due_s + chance.expovariate(per_s)) < started_s + seconds:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        arrivals.append(asyncio.create_task(arrive(len(arrivals), due_s)))
    await asyncio.gather(*arrivals)
    load.wall_s = time.perf_counter() - started_s
    for connection in idle:
        connection.close()
    return load
