"""GuardedProtocol: uvicorn's HTTP protocol with the limits that it lacks.

Used by `serving.py` for every connection. A cap on the bytes of a request's headers, a time within which headers and
body must arrive, and a number of open connections per address. Works on bytes and timers alone: httptools parses.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import HeadersTooLarge, problem_of

# Written before any request exists, so it has no id and no path.
_BODY = orjson.dumps(problem_of(HeadersTooLarge("send less than GET /v1/limits allows"), "", ""))
HEADERS_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"cache-control: no-store\r\ncontent-length: " + str(len(_BODY)).encode() + b"\r\n\r\n" + _BODY
)


@dataclass(frozen=True)
class Guards:
    """The limits of one server."""

    max_header_bytes: int
    receive_timeout_s: float
    max_connections_per_peer: int


class GuardedConfig(uvicorn.Config):
    """uvicorn's configuration with our guards; travels to the workers as a whole."""

    guards: Guards


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A message is *arriving* from its first byte (the first message: from the accept) to its last."""

    _open_by_peer: ClassVar[Counter[str]] = Counter()

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, GuardedConfig)
        self._guards = config.guards
        self._n_header_bytes = 0
        self._in_headers = True
        self._arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection for its address, and closes it when there are too many."""
        super().connection_made(transport)
        peer = self._peer()
        self._open_by_peer[peer] += 1
        if peer and self._open_by_peer[peer] > self._guards.max_connections_per_peer:
            transport.abort()
            return
        self._expect_message()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection and its timer."""
        self._message_arrived()
        peer = self._peer()
        self._open_by_peer[peer] -= 1
        if self._open_by_peer[peer] <= 0:
            del self._open_by_peer[peer]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, but never more header bytes than allowed."""
        if self.transport.is_closing():
            return
        self._expect_message()
        room = self._guards.max_header_bytes - self._n_header_bytes
        if self._in_headers and len(data) > room:
            head, data = data[:room], data[room:]
            super().data_received(head)
            if self.transport.is_closing():
                return
            if self._in_headers:
                self._refuse_headers()
                return
        elif self._in_headers:
            self._n_header_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A new message, maybe behind another in the same bytes: its headers and its time are counted from here."""
        self._in_headers = True
        self._expect_message()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are in: what follows is body, which the routes limit."""
        self._in_headers = False
        self._n_header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of the message is in: the connection may now be idle for as long as keep-alive allows."""
        self._message_arrived()
        self._in_headers = True
        super().on_message_complete()

    def _expect_message(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self._guards.receive_timeout_s, self.transport.abort)

    def _message_arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _refuse_headers(self) -> None:
        self.transport.write(HEADERS_TOO_LARGE)
        self.transport.close()

    def _peer(self) -> str:
        return self.client[0] if self.client else ""
