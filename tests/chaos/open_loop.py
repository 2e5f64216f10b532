"""An open-loop generator: requests are sent when they are due, whatever became of those before.

Arrivals are Poisson. The time of an answer counts from the moment its request was due, so a server that makes the
client wait cannot hide it. One asyncio protocol per connection, kept alive and used again, the youngest first. Used by
the tests of this folder and by `benchmarks.goals`. Never repeats a request unless it was told to.
"""

import asyncio
import contextlib
import gc
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

BROKEN = 0  # the status of a request that got no answer: connection refused, cut off, or given up after PATIENCE_S
PATIENCE_S = 15.0
MOST_CONNECTIONS = 200  # below what a service allows one address


@dataclass(frozen=True)
class Sent:
    """One request: when it was due (seconds since the start of the load), how long it took from then, what came."""

    due_s: float
    seconds: float
    status: int
    has_retry_after: bool = False
    degraded: str = ""
    n_broken: int = 0  # tries that got no answer
    group: str = ""


@dataclass(frozen=True)
class Reply:
    """What a connection read."""

    status: int
    headers: bytes  # in lower case
    body: bytes

    def header(self, name: bytes) -> str:
        found = self.headers.partition(b"\r\n" + name + b": ")[2]
        return found.partition(b"\r\n")[0].decode("latin-1")


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiter: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        top, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        headers = top.lower() + b"\r\n"
        size = int(headers.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        if headers.find(b"\r\nconnection: close\r\n") >= 0:
            self.is_open = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Reply(int(top[9:12]), headers, rest[:size]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionResetError("closed before an answer"))

    async def ask(self, request: bytes, patience_s: float = PATIENCE_S) -> Reply:
        """Raises OSError when the connection ends before the answer does, TimeoutError when none comes."""
        if not self.is_open or self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("closed already")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(patience_s):  # wait_for of Python 3.11 loses a cancellation that meets the answer
            return await self._waiter

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()


class LoadClient:
    """Connections to one address, made when needed and used again."""

    def __init__(self, host: str, port: int, n_retries: int = 0, most: int = MOST_CONNECTIONS) -> None:
        self.n_in_flight = 0
        self.n_begun = 0
        self._address = (host, port)
        self._n_retries = n_retries
        self._free: list[Connection] = []
        self._places = asyncio.Semaphore(most)

    async def ask(self, request: bytes, patience_s: float = PATIENCE_S, is_retry: bool = False) -> Reply:
        """One request, one try; a retry on a new connection, for those at hand may lead to the same dead worker.

        Raises OSError or TimeoutError when no answer comes.
        """
        async with self._places:
            connection = await (self._new() if is_retry else self._connection())
            try:
                reply = await connection.ask(request, patience_s)
            except BaseException:
                connection.close()
                raise
            if connection.is_open:
                self._free.append(connection)
            else:
                connection.close()
            return reply

    async def send(self, request: bytes, due_s: float, started_s: float, group: str = "") -> Sent:
        """One request of a load, tried again after a broken connection as often as this client may."""
        self.n_in_flight += 1
        self.n_begun += 1
        n_broken, reply = 0, None
        try:
            while reply is None and n_broken <= self._n_retries:
                try:
                    reply = await self.ask(request, is_retry=n_broken > 0)
                except (OSError, TimeoutError):
                    n_broken += 1
        finally:
            self.n_in_flight -= 1
        seconds = time.perf_counter() - started_s - due_s
        if reply is None:
            return Sent(due_s, seconds, BROKEN, n_broken=n_broken, group=group)
        return Sent(
            due_s, seconds, reply.status, bool(reply.header(b"retry-after")), reply.header(b"daian-degraded"),
            n_broken, group,
        )  # fmt: skip

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        return await self._new()

    async def _new(self) -> Connection:
        _, made = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return made


@contextlib.contextmanager
def load_client(host: str, port: int, n_retries: int = 0) -> Iterator[LoadClient]:
    """A client whose connections are closed at the end of the block."""
    client = LoadClient(host, port, n_retries)
    try:
        yield client
    finally:
        client.close()


@dataclass(frozen=True)
class Stream:
    """One kind of request in a load: its rate, and the requests that are sent in turn."""

    per_s: float
    requests: Sequence[bytes]
    group: str = ""


def arrivals(streams: Iterable[Stream], seconds: float, seed: int) -> list[tuple[float, bytes, str]]:
    """(due, request, group) of every request of a load, in the order of time."""
    found: list[tuple[float, bytes, str]] = []
    for number, stream in enumerate(streams):
        draw, due_s = random.Random(seed * 1009 + number), 0.0
        for request in itertools.cycle(stream.requests):
            due_s += draw.expovariate(stream.per_s)
            if due_s >= seconds:
                break
            found.append((due_s, request, stream.group))
    return sorted(found, key=lambda one: one[0])


async def open_loop(client: LoadClient, streams: Iterable[Stream], seconds: float, seed: int = 0) -> list[Sent]:
    """Sends for `seconds`, waits for the last answer, and gives all in the order in which they were due."""
    plan, tasks = arrivals(streams, seconds, seed), []
    with _no_collector():
        started_s = time.perf_counter()
        for due_s, request, group in plan:
            ahead_s = due_s - (time.perf_counter() - started_s)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.append(asyncio.create_task(client.send(request, due_s, started_s, group)))
        return list(await asyncio.gather(*tasks))


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """A generator that stands still to collect its garbage sends all that came due meanwhile at once."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


async def closed_loop(client: LoadClient, requests: Sequence[bytes], seconds: float, n_clients: int) -> list[Sent]:
    """`n_clients` that each ask again as soon as they are answered: what a server can do at most."""
    started_s, answers = time.perf_counter(), []
    turns = itertools.cycle(requests)

    async def one() -> None:
        while (now_s := time.perf_counter() - started_s) < seconds:
            answers.append(await client.send(next(turns), now_s, started_s))

    await asyncio.gather(*(one() for _ in range(n_clients)))
    return answers


def post(path: str, content: object, *lines: str) -> bytes:
    """A POST of JSON as it goes over the wire."""
    body = orjson.dumps(content)
    head = [f"POST {path} HTTP/1.1", "host: service", "content-type: application/json", *lines]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


def get(path: str, *lines: str) -> bytes:
    """A GET as it goes over the wire."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: service", *lines, "", ""]).encode("latin-1")
