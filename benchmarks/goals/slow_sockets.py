"""G12: sockets that say nothing, drip, stall or do not read; everyone else is served as if they were not there.

They come from loopback addresses of their own, each with fewer connections than one address may have. That the server
closed one is told to the socket itself: who does not read has sent more than the server read, so its end is a reset.
They live in a process of their own, which takes what nobody else wants of its core, and come and go and drip one after
the other, as slowhttptest's do: what is asked is what it costs that they are there, and a thousand that move within one
millisecond are a load test. Called by `__main__.py`.
"""

import asyncio
import contextlib
import multiprocessing
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from itertools import count, repeat
from multiprocessing.connection import Connection
from typing import Literal

from benchmarks.goals.lab import PATIENT, Lab
from benchmarks.goals.outcome import Outcome, all_200, at_least, at_most, none_of, percentile_ms
from benchmarks.goals.overload import patient_stream
from service.http_guard import MOST_WAITING
from tests.chaos.open_loop import Sent, get, load_client, open_loop
from tests.chaos.service_process import ServiceProcess

PER_S = 100.0
PER_ADDRESS = 200
LIMIT_S, SLACK_S = 5.0, 0.5  # when they are to be closed, and how late we may see it
TICK_S = 0.02  # in each a part of them is looked at, and a few are opened
LOOK_EVERY = 10  # ticks, for each of them
DRIP_EVERY = 5  # looks
NOT_READING = "does not read"
KINDS = ("silent", "drips a header", "stalls", NOT_READING)
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: service\r\ncontent-type: application/json\r\n"
READERS_EACH = 500  # one socket in so many does not read: each makes the server write megabytes first
ASKED = get("/openapi.json") * MOST_WAITING  # as many as may wait; what they answer, the kernel takes seven times


@dataclass
class Slow:
    """One slow socket; `drip` is what it sends bit by bit."""

    number: int
    kind: str
    socket: socket.socket
    opened_s: float
    drip: Iterator[bytes]

    def is_open(self) -> bool:
        """Whether the other side has not ended it."""
        if self.kind != NOT_READING:
            return has_no_end(self.socket)
        hung_up = select.poll()
        hung_up.register(self.socket, 0)
        return not hung_up.poll(0)


@dataclass
class Crowd:
    """The slow sockets: those open, and how long each of those that were closed had lived."""

    n: int
    address: tuple[str, int]
    limit_s: float = LIMIT_S  # how long they are hoped to be left alone
    open: list[Slow] = field(default_factory=list)
    lived_s: list[tuple[str, float]] = field(default_factory=list)
    _number: Iterator[int] = field(default_factory=count)
    _tick: int = 0
    _filled_s: float = field(default_factory=time.monotonic)
    _fewest: int | None = None
    _outlived_s: float = 0.0  # of those that were still there when the crowd left

    def fill(self) -> None:
        """Opens as many as are missing and due: a little faster than they are closed."""
        n_due = int((time.monotonic() - self._filled_s) * self.n / self._all_within_s)
        self._filled_s += n_due * self._all_within_s / self.n
        self.open += [slow_socket(next(self._number), self.address) for _ in range(min(n_due, self.n_missing))]

    def gather(self) -> None:
        """Returns once they are all there, or all have been."""
        self._filled_s, begun_s = time.monotonic(), time.monotonic()
        while self.n_missing and self._filled_s - begun_s < self._all_within_s:
            time.sleep(TICK_S)
            self.look()
            self.fill()

    def live(self) -> None:
        """One tick of a crowd that is there."""
        self.look()
        self.fill()
        self._fewest = min(len(self.open), self.n if self._fewest is None else self._fewest)

    @property
    def _all_within_s(self) -> float:
        return 0.8 * self.limit_s

    @property
    def n_missing(self) -> int:
        """How many are not there."""
        return self.n - len(self.open)

    def look(self) -> None:
        """Sends the next byte of some whose turn it is, and sorts out which of them the server has closed."""
        now_s, gone = time.monotonic(), []
        self._tick += 1
        for one in self.open:
            if (one.number + self._tick) % LOOK_EVERY:
                continue
            if one.is_open():
                turn = (one.number + self._tick) // LOOK_EVERY
                if turn % DRIP_EVERY == 0 or one.kind == NOT_READING:
                    with contextlib.suppress(OSError):
                        one.socket.send(next(one.drip, b""))
            else:
                self.lived_s.append((one.kind, now_s - one.opened_s))
                one.socket.close()
                gone.append(one.number)
        if gone:
            self.open = [one for one in self.open if one.number not in gone]

    def leave(self) -> None:
        """Opens no more, watches until the server has closed those that do not send, and closes the others itself."""
        until_s = time.monotonic() + self.limit_s + 2 * SLACK_S
        while time.monotonic() < until_s and any(one.kind != NOT_READING for one in self.open):
            time.sleep(TICK_S)
            self.look()
        self._outlived_s = max(self._outlived_s, self._oldest_s())
        self.close()
        self.open = []

    def _oldest_s(self) -> float:
        """The longest life so far of those open that do not send."""
        now_s = time.monotonic()
        return max((now_s - one.opened_s for one in self.open if one.kind != NOT_READING), default=0.0)

    def close(self) -> None:
        """Ends all that are open."""
        for one in self.open:
            one.socket.close()

    def told(self) -> "Told":
        """The longest life is that of any, over or not; who does not read is waited for only once buffers are full."""
        over = (seconds for kind, seconds in self.lived_s if kind != NOT_READING)
        oldest_s = max(self._oldest_s(), self._outlived_s, *over)
        return Told(Counter(kind for kind, _ in self.lived_s), oldest_s, self._fewest or 0)


@dataclass(frozen=True)
class Told:
    """How many of each kind were closed, the longest life of one that does not send, and how many were there always."""

    closed: Counter[str]
    oldest_s: float
    fewest: int


Order = Literal["live", "stay", "leave", "end"]


def _serve(orders: Connection, crowd: Crowd) -> None:
    """Keeps the crowd complete after `live`, as it is after `stay`; answers each order when it is done."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    order: Order = "stay"
    while order != "end":
        if not orders.poll(TICK_S if order == "live" else None):
            crowd.live()
            continue
        order = orders.recv()
        if order == "live":
            crowd.gather()
        if order == "leave":
            crowd.leave()
        orders.send(crowd.told())
    crowd.close()


class CrowdApart:
    """A crowd in another process."""

    def __init__(self, crowd: Crowd) -> None:
        self.n = crowd.n
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, crowd), daemon=True)
        self._process.start()
        theirs.close()

    def order(self, order: Order) -> Told:
        """Raises EOFError when the other process has died."""
        self._orders.send(order)
        told: Told = self._orders.recv()
        return told

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.order("end")
        self._process.join(10)
        self._process.kill()
        self._orders.close()


def has_no_end(one: socket.socket) -> bool:
    """Whether the other side has not ended it, by reading; what it wrote is dropped."""
    try:
        while one.recv(65_536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def slow_socket(number: int, address: tuple[str, int]) -> Slow:
    """One of four kinds, from one of the addresses 127.0.1.1 and on."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.bind((f"127.0.1.{1 + number // PER_ADDRESS % 250}", 0))
    if number % READERS_EACH == 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        kind, first, drip = NOT_READING, ASKED, repeat(ASKED, 12)
    else:
        kind = KINDS[number % 3]
        first = {"silent": b"", "drips a header": HEAD, "stalls": HEAD + stalled()}[kind]
        drip = repeat(b"x", 10_000 if kind == "drips a header" else 0)
    opened_s = time.monotonic()
    found.connect(address)
    found.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        found.send(first)
    return Slow(number, kind, found, opened_s, drip)


def stalled() -> bytes:
    return b"content-length: 50\r\n\r\n{"


async def rounds(
    lab: Lab, service: ServiceProcess, crowd: CrowdApart, limit_s: float
) -> list[tuple[list[Sent], list[Sent]]]:
    """(without, with) the crowd, in turn."""
    found, seconds = [], max(lab.sizes.overload_s, limit_s + 2)
    with load_client(service.host, service.port) as client:
        stream = await patient_stream(lab, client, PER_S)
        for number in range(lab.sizes.n_rounds):
            without = await open_loop(client, [stream], lab.sizes.overload_s, seed=number)
            found.append((without, await beside(crowd, open_loop(client, [stream], seconds, seed=number))))
    return found


async def beside(crowd: CrowdApart, load: Awaitable[list[Sent]]) -> list[Sent]:
    """The load, with the crowd there from before it begins."""
    crowd.order("live")
    answers = await load
    crowd.order("leave")  # what comes next is measured without them
    return answers


def measure(lab: Lab, limit_s: float = LIMIT_S) -> Outcome:
    """G12; `limit_s` is the receive timeout that is hoped for."""
    with lab.service("g12", PATIENT) as service:
        crowd = CrowdApart(Crowd(lab.sizes.n_slow, (service.host, service.port), limit_s))
        try:
            found = asyncio.run(rounds(lab, service, crowd, limit_s))
            crowd.order("live")  # complete once more
            told = crowd.order("stay")
            stopped_s = service.stop()
        finally:
            crowd.close()
    without = [one.seconds for quiet, _ in found for one in quiet]
    beside_them = [one for _, loud in found for one in loud]
    ratio = percentile_ms([one.seconds for one in beside_them], 99) / percentile_ms(without, 99)
    closed = ", ".join(f"{n} {kind}" for kind, n in sorted(told.closed.items()))
    how = (
        f"{crowd.n:,} slow sockets, opened again when closed, beside at most {PER_S:g} requests a second; "
        f"{len(found)} pairs without and with, never fewer than {told.fewest:,} of them there; closed: {closed}"
    )
    return Outcome(
        how,
        [
            all_200("requests of the others not answered 200", beside_them),
            at_most("the others' p99, of that without slow sockets", ratio, 1.1, "times"),
            at_least("slow sockets that were closed", told.closed.total(), crowd.n, "", "count"),
            none_of("kinds of them of which none was closed", len({*KINDS} - {*told.closed}), len(KINDS)),
            at_most(
                f"longest life of one that does not send (seen within {SLACK_S:g} s)",
                told.oldest_s,
                limit_s + SLACK_S,
                "s",
            ),
            at_most("SIGTERM to the end with all of them open", stopped_s, 10, "s"),
        ],
    )
