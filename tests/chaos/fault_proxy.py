"""A TCP proxy in front of a real store that can be told to misbehave: refuse, swallow, delay, reset, corrupt, swap.

Runs in the test's own event loop. `accepted` counts connections, so a test can see whether a client throws them away.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

Mode = Literal["pass", "swallow", "corrupt", "swap"]
SWAP_WAIT_S = 0.05


class FaultProxy:
    """Listens on a port of its own; the port stays the same through `refuse` and `accept`."""

    def __init__(self, unix_socket: str, seed: int = 0) -> None:
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.accepted = 0
        self.port = 0
        self._unix_socket = unix_socket
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Future[bytes] | None = None
        self._held = b""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def accept(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Closes the port and resets what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Every open connection gets a RST."""
        for writer in list(self._open):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family == socket.AF_INET:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def close(self) -> None:
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        up_reader, up_writer = await asyncio.open_unix_connection(self._unix_socket)
        self._open |= {writer, up_writer}
        for source, target, is_reply in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, target, is_reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                if self.mode == "swallow":
                    continue
                if is_reply:
                    await asyncio.sleep(self.delay_s)
                    chunk = await self._spoiled(chunk)
                target.write(chunk)
        self._open.discard(target)
        target.close()

    async def _spoiled(self, chunk: bytes) -> bytes:
        if self.mode == "corrupt":
            place = self._random.randrange(len(chunk))
            return chunk[:place] + bytes([chunk[place] ^ 1 << self._random.randrange(8)]) + chunk[place + 1 :]
        return await self._swapped(chunk) if self.mode == "swap" else chunk

    async def _swapped(self, chunk: bytes) -> bytes:
        """The reply that another connection is waiting for, if there is one within a moment."""
        if self._waiting is not None:
            self._waiting.set_result(chunk)
            self._waiting = None
            return self._held
        self._held, self._waiting = chunk, asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({self._waiting}, timeout=SWAP_WAIT_S)
        if done:
            return done.pop().result()
        self._waiting = None
        return chunk


@contextlib.asynccontextmanager
async def fault_proxy(store_url: str, seed: int = 0) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the store at a `unix://` URL, open and passing."""
    proxy = FaultProxy(store_url.removeprefix("unix://"), seed)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.close()
