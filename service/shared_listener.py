"""Several workers behind one listening socket: a new connection goes to the worker that has the fewest.

Left alone, whoever wakes first accepts all there is: of four kept connections from a gateway, all four may be one
worker's for good, and the other core stands idle. Here a worker takes one connection at a time, and one that has more
than another lets it go first for a moment. Nobody waits for a worker that is gone or stuck: after that moment the
connection is taken. Made by `http_guard.GuardedConfig`, which counts the connections; used by `serving.py`. Never
moves a connection that was taken.
"""

import asyncio
import contextlib
import errno
import mmap
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

STEP_S = 0.001  # how long a worker holds back for each connection it has more than another
MOST_STEPS = 5
LOOK_AROUND_S = 1.0  # how often workers that came or went are noticed
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
REST_S = 1.0  # without file handles left, as asyncio's own server does
COUNT_BYTES = 8


class Tally:
    """The open connections of this process, where the other workers read them: a mapped file named by the process id.

    Before `publish` it counts for itself alone.
    """

    def __init__(self, folder: Path, pid: int | None = None) -> None:
        self.n_open = 0
        self._folder = folder
        self._path = folder / str(os.getpid() if pid is None else pid)
        self._own: mmap.mmap | None = None
        self._others: dict[str, mmap.mmap] = {}
        self._looked_at = -LOOK_AROUND_S

    def add(self, n: int) -> None:
        """`n` connections more."""
        self.n_open += n
        if self._own is not None:
            self._own[:COUNT_BYTES] = self.n_open.to_bytes(COUNT_BYTES, "little")

    def publish(self) -> None:
        """From now on the others count this process in."""
        if self._own is not None:
            return
        unready = self._path.with_suffix(".new")
        unready.write_bytes(bytes(COUNT_BYTES))
        with unready.open("r+b") as file:
            self._own = mmap.mmap(file.fileno(), COUNT_BYTES)
        self.add(0)
        unready.replace(self._path)

    def withdraw(self) -> None:
        """The others need not wait for this process any more."""
        self._path.unlink(missing_ok=True)
        self._own = None

    def others(self) -> tuple[int, ...]:
        """How many connections each other worker has open."""
        if time.monotonic() - self._looked_at >= LOOK_AROUND_S:
            self._look_around()
        return tuple(int.from_bytes(count[:COUNT_BYTES], "little") for count in self._others.values())

    def _look_around(self) -> None:
        self._looked_at = time.monotonic()
        names = {path.name for path in self._folder.iterdir() if path.name.isdigit() and path != self._path}
        for gone in self._others.keys() - names:
            del self._others[gone]
        for name in names:
            if not _is_alive(int(name)):
                self._others.pop(name, None)
                (self._folder / name).unlink(missing_ok=True)
            elif name not in self._others:
                with contextlib.suppress(OSError), (self._folder / name).open("rb") as file:
                    self._others[name] = mmap.mmap(file.fileno(), COUNT_BYTES, access=mmap.ACCESS_READ)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


class SharedListener:
    """Takes connections from a listening socket that other processes listen to as well, one by one.

    What uvicorn asks of an asyncio server: `sockets`, `close` and `wait_closed`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        protocol_of: Callable[[], asyncio.Protocol],
        tally: Tally,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._protocol_of = protocol_of
        self._tally = tally
        self._held_back: asyncio.TimerHandle | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._is_closed = False
        listening.setblocking(False)
        self._wait()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """What it listens to; nothing once it is closed."""
        return () if self._is_closed else (self._listening,)

    def close(self) -> None:
        """Takes no further connection; what waits at the socket is the other workers'."""
        if self._is_closed:
            return
        self._is_closed = True
        self._tally.withdraw()
        if self._held_back is not None:
            self._held_back.cancel()
        else:
            self._loop.remove_reader(self._listening)
        self._listening.close()

    async def wait_closed(self) -> None:
        """Returns when every connection that was accepted has its protocol."""
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _wait(self) -> None:
        self._held_back = None
        self._loop.add_reader(self._listening, self._on_connection)

    def _on_connection(self) -> None:
        others = self._tally.others()
        ahead = self._ahead_of(others)
        if ahead > 0:
            self._pause(STEP_S * min(ahead, MOST_STEPS), lambda: self._take_late(others))
        else:
            self._take()

    def _ahead_of(self, others: tuple[int, ...]) -> int:
        """How many connections more than the emptiest other worker this one has."""
        return self._tally.n_open + len(self._arriving) - min(others, default=self._tally.n_open)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listening)
        self._held_back = self._loop.call_later(seconds, then)

    def _take_late(self, others: tuple[int, ...]) -> None:
        """Takes what the others left, unless they were at it: what waits now has only just come."""
        self._wait()
        if self._tally.others() == others:
            self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._pause(REST_S, self._wait)
            return  # another worker was quicker, or the peer is gone again
        connection.setblocking(False)
        task = self._loop.create_task(self._hand_over(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol_of, connection)
        except OSError:  # it was closed by its peer meanwhile
            connection.close()


class SharingLoop(uvloop.Loop):
    """uvloop, whose servers on an inherited socket share its connections with the other workers by `tally`."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """A SharedListener where a socket is given and speaks no TLS, uvloop's own server elsewhere."""
        listening = options.get("sock")
        if listening is None or options.get("ssl") is not None:
            return await super().create_server(protocol_factory, *args, **options)
        listening.listen(options.get("backlog", 100))
        self._tally.publish()
        return SharedListener(self, listening, protocol_factory, self._tally)
