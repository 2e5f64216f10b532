"""A new connection goes to the worker with the fewest; nobody waits for one that is gone or stuck.

Two listeners of one loop stand for two workers; the second's id is that of a process that lives, our parent.
"""

import asyncio
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from service import shared_listener as module
from service.shared_listener import SharedListener, SharingLoop, Tally

PATIENCE_S = 10.0


class Counted(asyncio.Protocol):
    """A connection that counts itself, as the service's protocol does."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tally.add(1)
        cast("asyncio.Transport", transport).write(b"?")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._tally.add(-1)


class Site:
    """A listening socket and those who listen to it."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.listeners: list[SharedListener] = []
        self.writers: list[asyncio.StreamWriter] = []

    def listen(self, tally: Tally) -> SharedListener:
        tally.publish()
        own = self.socket.dup()
        loop = asyncio.get_running_loop()
        self.listeners.append(SharedListener(loop, own, lambda: Counted(tally), tally))
        return self.listeners[-1]

    async def connect(self) -> None:
        """One connection that somebody has taken."""
        reader, writer = await asyncio.open_connection(*self.socket.getsockname())
        self.writers.append(writer)
        async with asyncio.timeout(PATIENCE_S):
            await reader.readexactly(1)

    async def close(self) -> None:
        self.socket.close()
        for listener in self.listeners:
            listener.close()
            await listener.wait_closed()
        for writer in self.writers:
            writer.close()
            await writer.wait_closed()


def run(main: Callable[[Site], Awaitable[None]]) -> None:
    async def whole() -> None:
        site = Site()
        try:
            await main(site)
        finally:
            await site.close()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(whole())


def taken_by_the_fuller(folder: Path, other_folder: Path) -> int:
    """How many of 40 new connections a worker takes that has a hundred, beside one that has none."""
    full, empty = Tally(folder), Tally(other_folder, os.getppid())
    found: list[int] = []

    async def main(site: Site) -> None:
        site.listen(empty)
        site.listen(full)  # who came last is woken first
        full.add(100)
        for _ in range(40):
            await site.connect()
        found.append(full.n_open - 100)

    run(main)
    return found[0]


def test_new_connections_go_where_the_fewest_are(tmp_path: Path) -> None:
    assert taken_by_the_fuller(tmp_path, tmp_path) == 0


def test_without_the_tally_whoever_wakes_first_takes_them(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert taken_by_the_fuller(tmp_path, tmp_path / "other") > 0


def test_nobody_waits_for_a_worker_that_takes_none(tmp_path: Path) -> None:
    stuck, tally = Tally(tmp_path, os.getppid()), Tally(tmp_path)
    stuck.publish()

    async def main(site: Site) -> None:
        site.listen(tally)
        tally.add(1_000)
        await site.connect()
        assert tally.n_open == 1_001

    run(main)


def test_a_worker_that_died_is_forgotten(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Tally(tmp_path, gone.pid).publish()
    tally = Tally(tmp_path)
    tally.publish()
    assert tally.others() == ()
    assert not (tmp_path / str(gone.pid)).exists()


def test_a_worker_that_lives_is_not_forgotten(tmp_path: Path) -> None:
    other, tally = Tally(tmp_path, os.getppid()), Tally(tmp_path)
    other.publish()
    other.add(2)
    assert tally.others() == (2,)


def test_what_a_closed_listener_leaves_is_taken_by_the_other(tmp_path: Path) -> None:
    first, second = Tally(tmp_path), Tally(tmp_path, os.getppid())

    async def main(site: Site) -> None:
        leaver = site.listen(first)
        site.listen(second)
        second.add(50)
        leaver.close()
        assert leaver.sockets == ()
        await site.connect()
        assert (first.n_open, second.n_open) == (0, 51)

    run(main)


def test_closing_while_it_holds_back_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_S", PATIENCE_S)
    other, tally = Tally(tmp_path, os.getppid()), Tally(tmp_path)
    other.publish()

    async def main(site: Site) -> None:
        listener = site.listen(tally)
        tally.add(1)
        _, writer = await asyncio.open_connection(*site.socket.getsockname())
        await asyncio.sleep(0.05)
        listener.close()
        writer.close()
        assert tally.n_open == 1

    run(main)


def test_without_file_handles_it_rests_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_S", 0.01)
    tally = Tally(tmp_path)
    refusals = [OSError(errno.EMFILE, "too many open files")] * 3

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if refusals:
                raise refusals.pop()
            return super().accept()

    async def main(site: Site) -> None:
        fd = os.dup(site.socket.fileno())
        site.listeners.append(
            SharedListener(asyncio.get_running_loop(), Exhausted(fileno=fd), lambda: Counted(tally), tally)
        )
        await site.connect()
        assert (refusals, tally.n_open) == ([], 1)

    run(main)


def test_the_loop_of_a_worker_shares_the_socket_it_is_given(tmp_path: Path) -> None:
    tally = Tally(tmp_path)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = await asyncio.get_running_loop().create_server(lambda: Counted(tally), sock=listening)
            assert isinstance(server, SharedListener)
            assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.readexactly(1)
            assert tally.n_open == 1
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
        assert list(tmp_path.iterdir()) == []

    with asyncio.Runner(loop_factory=lambda: SharingLoop(tally)) as runner:
        runner.run(main())
