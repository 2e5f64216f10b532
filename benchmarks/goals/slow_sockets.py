"""G12: sockets that say nothing, drip, stall or do not read; everyone else is served as if they were not there.

They come from loopback addresses of their own, each with fewer connections than one address may have. Whether the
server closed one is read from the kernel's table of its side: one that does not read its answers is not told. Called by
`__main__.py`.
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from benchmarks.goals.lab import PATIENT, Lab
from benchmarks.goals.outcome import Outcome, all_200, at_least, at_most, percentile_ms
from benchmarks.goals.overload import patient_stream
from tests.chaos.open_loop import Sent, get, load_client, open_loop
from tests.chaos.service_process import ServiceProcess

PER_S = 100.0
PER_ADDRESS = 200
LIMIT_S, SLACK_S = 5.0, 0.5  # when they are to be closed, and how late we may see it
LOOK_EVERY_S = 0.2
NOT_READING = "does not read"
ESTABLISHED = "01"
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: service\r\ncontent-type: application/json\r\n"
READERS_EACH = 200  # one socket in so many does not read: each makes the server write megabytes first


@dataclass
class Slow:
    """One slow socket; `drip` is sent byte by byte."""

    kind: str
    socket: socket.socket
    opened_s: float
    drip: Iterator[bytes]
    peer: str  # as the kernel's table of connections names it


@dataclass
class Crowd:
    """The slow sockets: those open, and how long each of those that were closed had lived."""

    n: int
    address: tuple[str, int]
    open: list[Slow] = field(default_factory=list)
    lived_s: list[tuple[str, float]] = field(default_factory=list)
    is_over: bool = False
    _number: Iterator[int] = field(default_factory=count)

    def fill(self) -> None:
        """Opens as many as are missing."""
        for _ in range(self.n - len(self.open)):
            self.open.append(slow_socket(next(self._number), self.address))

    def look(self) -> None:
        """Sends the next byte of each, and sorts out what the server has closed."""
        now_s, still, there = time.monotonic(), [], established(self.address[1])
        for one in self.open:
            if one.peer in there:
                with contextlib.suppress(OSError):
                    one.socket.send(next(one.drip, b""))
                still.append(one)
            else:
                self.lived_s.append((one.kind, now_s - one.opened_s))
                one.socket.close()
        self.open = still

    async def live(self) -> None:
        """Keeps the crowd complete until it is over."""
        while not self.is_over:
            self.look()
            self.fill()
            await asyncio.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        for one in self.open:
            one.socket.close()

    def oldest_s(self) -> float:
        """The longest life of any, over or not; who does not read is waited for only once buffers are full."""
        alive = [time.monotonic() - one.opened_s for one in self.open if one.kind != NOT_READING]
        return max([*alive, *(seconds for kind, seconds in self.lived_s if kind != NOT_READING)], default=0.0)


def established(port: int) -> set[str]:
    """The peers of all connections to a port of this machine that the server has open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[2] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED}


def table_name(address: tuple[str, int]) -> str:
    """`127.0.0.1`, 80 -> `0100007F:0050`."""
    return f"{socket.inet_aton(address[0])[::-1].hex().upper()}:{address[1]:04X}"


def slow_socket(number: int, address: tuple[str, int]) -> Slow:
    """One of four kinds, from one of the addresses 127.0.1.1 and on."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.bind((f"127.0.1.{1 + number // PER_ADDRESS % 250}", 0))
    if number % READERS_EACH == 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        kind, first, drip = NOT_READING, get("/openapi.json") * 200, b""
    else:
        kinds = {"silent": (b"", b""), "drips a header": (HEAD, b"x" * 10_000), "stalls": (HEAD + stalled(), b"")}
        kind = list(kinds)[number % 3]
        first, drip = kinds[kind]
    opened_s = time.monotonic()
    found.connect(address)
    found.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        found.send(first)
    return Slow(kind, found, opened_s, (bytes([byte]) for byte in drip), table_name(found.getsockname()))


def stalled() -> bytes:
    return b"content-length: 50\r\n\r\n{"


async def rounds(
    lab: Lab, service: ServiceProcess, crowd: Crowd, limit_s: float
) -> list[tuple[list[Sent], list[Sent]]]:
    """(without, with) the crowd, in turn."""
    found, seconds = [], max(lab.sizes.overload_s, limit_s + 2)
    with load_client(service.host, service.port) as client:
        stream = await patient_stream(lab, client, PER_S)
        for number in range(lab.sizes.n_rounds):
            without = await open_loop(client, [stream], lab.sizes.overload_s, seed=number)
            found.append((without, await beside(crowd, open_loop(client, [stream], seconds, seed=number))))
    return found


async def beside(crowd: Crowd, load: Awaitable[list[Sent]]) -> list[Sent]:
    """The load, with the crowd there from before it begins."""
    crowd.is_over = False
    crowd.fill()
    living = asyncio.create_task(crowd.live())
    answers = await load
    crowd.is_over = True
    await living
    return answers


def measure(lab: Lab, limit_s: float = LIMIT_S) -> Outcome:
    """G12; `limit_s` is the receive timeout that is hoped for."""
    with lab.service("g12", PATIENT) as service:
        crowd = Crowd(lab.sizes.n_slow, (service.host, service.port))
        try:
            found = asyncio.run(rounds(lab, service, crowd, limit_s))
            oldest_s = crowd.oldest_s()
            crowd.fill()
            stopped_s = service.stop()
        finally:
            crowd.close()
    without = [one.seconds for quiet, _ in found for one in quiet]
    beside_them = [one for _, loud in found for one in loud]
    ratio = percentile_ms([one.seconds for one in beside_them], 99) / percentile_ms(without, 99)
    kinds = Counter(kind for kind, _ in crowd.lived_s)
    how = (
        f"{crowd.n:,} slow sockets, opened again when closed, beside at most {PER_S:g} requests a second; "
        f"{len(found)} pairs without and with; closed: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
    )
    return Outcome(
        how,
        [
            all_200("requests of the others not answered 200", beside_them),
            at_most("the others' p99, of that without slow sockets", ratio, 1.1, "times"),
            at_least("slow sockets that were closed", len(crowd.lived_s), crowd.n, "", "count"),
            at_most(
                f"longest life of one that does not send (seen within {SLACK_S:g} s)", oldest_s, limit_s + SLACK_S, "s"
            ),
            at_most("SIGTERM to the end with all of them open", stopped_s, 10, "s"),
        ],
    )
