"""GuardedProtocol: uvicorn's HTTP protocol with the limits that it lacks.

Used by `serving.py` for every connection. A cap on the bytes of a request's headers and of what frames its body, a time
within which headers and body must arrive and an answer must be taken, and a number of open connections per address.
Refuses what the parser lets through and RFC 9112 does not. Asks the app's doorway, where the lifespan hands one over,
and writes its refusal itself. Works on bytes and timers alone: httptools parses. Never repeats a byte of the input.
"""

import asyncio
import functools
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.deadline import IS_GONE
from service.door import DOORWAY, Door, Refusal
from service.errors import BadRequest, HeadersTooLarge, ServiceError, problem_of
from service.one_write import OneWrite

if TYPE_CHECKING:
    from service.shared_listener import Tally

RESTING = "resting"  # where the connections of one server find each other
UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
FREELY_TURNED_AWAY = 3  # times in a row; who asks on without waiting is made to wait, or its refusals eat the service
PAUSE_S = 0.005  # so that a refusal is still told at once, and four who ask in circles get at most 800 a second
TICK_S = 0.001
FIRST_REQUEST_S = 0.25  # what a connection taken just before a stop has for its first request
MOST_WAITING = 16  # requests behind one that is being answered: a read may hold thousands, which hold up all others
FRAMING_PER_BODY_BYTE = 8  # a body in chunks of one byte each is framed by five


def _last_answer(status_line: bytes, error: ServiceError) -> bytes:
    """An answer written before any request exists, so it has no id and no path, and the last of its connection."""
    body = orjson.dumps(problem_of(error, "", ""))
    return (
        b"HTTP/1.1 " + status_line + b"\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
        b"cache-control: no-store\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


HEADERS_TOO_LARGE = _last_answer(
    b"431 Request Header Fields Too Large", HeadersTooLarge("send less than GET /v1/limits allows")
)
NOT_HTTP = _last_answer(b"400 Bad Request", BadRequest("this is not a request of HTTP/1.1 as RFC 9112 has it"))


class NotHttpError(ValueError):
    """A message that the parser lets through and RFC 9112 does not, or that comes too soon."""


@dataclass(frozen=True)
class Guards:
    """The limits of one server."""

    max_header_bytes: int
    receive_timeout_s: float
    max_connections_per_peer: int


class GuardedConfig(uvicorn.Config):
    """uvicorn's configuration with our guards; travels to the workers as a whole.

    `tally_folder`: where several workers tell each other how many connections they have.
    """

    guards: Guards
    tally_folder: Path | None = None
    tally: "Tally | None" = None

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """The event loop of this process: one that shares connections out, where there are several workers."""
        if self.tally_folder is None or sys.platform == "win32":
            return super().get_loop_factory()
        from service.shared_listener import SharingLoop, Tally  # needs uvloop, which Windows has not

        self.tally = Tally(self.tally_folder)
        return functools.partial(SharingLoop, self.tally)


class Resting:
    """Connections that are made to wait PAUSE_S each, by one timer: one for each would be most of a refusal's cost.

    It ends the rest of those whose time is over, and is set for the next no sooner than TICK_S later: so few at once
    that all else the loop has to do gets its turn between them.
    """

    def __init__(self) -> None:
        self._there: deque[tuple[float, GuardedProtocol]] = deque()

    def add(self, one: "GuardedProtocol") -> None:
        """Reads from this connection again when its time is over."""
        if not self._there:
            one.loop.call_later(PAUSE_S, self._tick, one.loop)
        self._there.append((one.loop.time() + PAUSE_S, one))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        try:
            while self._there and self._there[0][0] <= now_s:
                self._there.popleft()[1].read_on()
        finally:  # whatever befalls one, the others are read again
            if self._there:
                loop.call_later(max(TICK_S, self._there[0][0] - now_s), self._tick, loop)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A message is *arriving* from its first byte (the first message: from the accept) to its last.

    Timers cost as much as a refusal: one is set only for what does not come in one piece, and that of an idle
    connection is left to run while the connection is busy.
    """

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
        self._tally = config.tally
        self._n_whole = 0  # messages
        self._n_header_bytes = 0
        self._n_body_bytes = 0
        self._n_framing_bytes = 0
        self._in_headers = True
        self._is_refused = False
        self._is_turned_away = False
        self._n_turned_away = 0  # in a row
        self._resting: Resting = app_state.setdefault(RESTING, Resting())
        self._is_resting = False
        self._door: Door | None = app_state.get(DOORWAY)
        self._is_arriving = True
        self._arrival: asyncio.TimerHandle | None = None
        self._idle_since_s: float | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection for its address, and closes it when there are too many."""
        super().connection_made(transport)
        peer = self._peer()
        self._open_by_peer[peer] += 1
        if self._tally is not None:
            self._tally.add(1)
        if peer and self._open_by_peer[peer] > self._guards.max_connections_per_peer:
            transport.abort()
            return
        self._expect_message()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection and its timers."""
        self._message_arrived()
        self._answer_taken()
        if self._idle is not None:
            self._idle.cancel()
        if self._tally is not None:
            self._tally.add(-1)
        peer = self._peer()
        self._open_by_peer[peer] -= 1
        if self._open_by_peer[peer] <= 0:
            del self._open_by_peer[peer]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; what it has not the end of yet must come in time."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_arriving = True
        self._take(data)
        if self._is_arriving and not self.transport.is_closing():
            self._expect_message()

    def _take(self, data: bytes) -> None:
        """Never more header bytes than allowed; twice as many for a message that began behind another in one read.

        In pieces of that size, so that what comes behind a last answer in one read is not looked at to its end.
        """
        most, at = self._guards.max_header_bytes, 0
        while at < len(data):
            room = most - (self._n_header_bytes if self._in_headers else 0)
            if room <= 0:
                self._refuse(HEADERS_TOO_LARGE)
                return
            piece = data[at : at + room]
            at += room
            was_in_headers, n_whole = self._in_headers, self._n_whole
            self._n_framing_bytes += len(piece)
            self._feed(piece)
            if self._is_refused or self.transport.is_closing():
                return
            if not self._in_headers and self._n_framing_bytes > most + FRAMING_PER_BODY_BYTE * self._n_body_bytes:
                self._refuse(HEADERS_TOO_LARGE)  # chunk extensions and trailers have no other end
                return
            if was_in_headers and self._in_headers and self._n_whole == n_whole:
                self._n_header_bytes += len(piece)

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._refuse(NOT_HTTP)

    def _stay(self, rest: bytes) -> None:
        """Goes on as if nobody had asked for another protocol: HTTP/2 clients do, and the parser drops their body."""
        if self._is_refused or self.transport.is_closing():
            return
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] not in UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(first + b"".join(kept) + b"\r\n" + rest)

    def on_message_begin(self) -> None:
        """A new message, maybe behind another in the same bytes: its headers and its time are counted from here."""
        self._in_headers = self._is_arriving = True
        self._unset_keepalive_if_required()  # one turned away in front of it, in the same bytes, has set it
        super().on_message_begin()
        self.scope[IS_GONE] = self.transport.is_closing  # type: ignore[literal-required]

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, but not a trailer: nothing that comes behind the body may pass for what stood before it."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are in: what follows is body, which the routes limit. Raises NotHttpError; it becomes a 400."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise NotHttpError("another version of HTTP")
        n_hosts = sum(name == b"host" for name, _ in self.headers)
        if n_hosts > 1 or (n_hosts == 0 and version == "1.1"):
            raise NotHttpError("no host, or several")
        if self.parser.get_method() == b"CONNECT":
            raise NotHttpError("a tunnel")
        if self.parser.should_upgrade():
            return  # `_stay` begins once more
        if self.transport.is_closing():
            self._is_turned_away = True  # behind the last answer of this connection
        elif refusal := self._refusal():
            self._turn_away(refusal)
        elif len(self.pipeline) >= MOST_WAITING:
            raise NotHttpError("more requests in one breath than are kept")
        else:
            self._n_turned_away = 0
            super().on_headers_complete()
            answer = OneWrite(self.transport)
            self.cycle.transport = answer  # type: ignore[assignment]
            self.cycle.on_response = functools.partial(self._answered, answer)
        self._in_headers = False
        self._n_header_bytes = self._n_framing_bytes = self._n_body_bytes = 0

    def _refusal(self) -> Refusal | None:
        """What the doorway says, where it is this request's turn to be answered."""
        cycle: object = self.cycle  # None until a request begins, whatever its type says
        if self._door is None or not (cycle is None or self.cycle.response_complete) or self.flow.write_paused:
            return None
        port = self.server[1] if self.server else None
        return self._door.turn_away(self.parser.get_method(), self.url, self.headers, port)

    def _turn_away(self, refusal: Refusal) -> None:
        """Writes the whole answer at once; what is still to come of the request is read and dropped.

        It is the last of the connection where request or refusal say so, and where more requests came in the bytes that
        were read before it was made to wait.
        """
        self._is_turned_away = True
        may_stay = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive() and not self._is_resting
        answer, is_last = refusal.written(self.server_state.default_headers, may_stay)
        self.transport.write(answer)
        if is_last:
            self._message_arrived()
            if self.transport.get_write_buffer_size():
                self._answer_taken()
                self._expect_taking()
            self.transport.close()

    def _slow_down(self) -> None:
        """Reads no more for a moment from one that was turned away again and again."""
        self._n_turned_away += 1
        if self._n_turned_away > FREELY_TURNED_AWAY and not self._is_resting and not self.transport.is_closing():
            self._is_resting = True
            self.flow.pause_reading()
            self._resting.add(self)

    def read_on(self) -> None:
        """The wait is over."""
        self._is_resting = False
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of the body: what is not body is framing."""
        self._n_body_bytes += len(body)
        self._n_framing_bytes = max(0, self._n_framing_bytes - len(body))
        if not self._is_turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the message is in: the connection may now be idle for as long as keep-alive allows."""
        if self._in_headers:
            return  # of a message that asked for another protocol, and comes once more
        self._message_arrived()
        self._in_headers = True
        self._n_whole += 1
        if self._is_turned_away:
            self._is_turned_away = False
            self.on_response_complete()
            self._slow_down()
        else:
            super().on_message_complete()
            if self.cycle.response_complete:  # answered before its body was in
                self._be_idle()

    def _answered(self, answer: OneWrite) -> None:
        answer.flush()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """The answer is written; what the peer has not taken yet it must take in time. As uvicorn's, but for timers."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._be_idle()
        self._answer_taken()
        if self.transport.get_write_buffer_size():
            self._expect_taking()

    def _be_idle(self) -> None:
        self._idle_since_s = self.loop.time()
        if self._idle is None and not self.transport.is_closing():
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since_s = None

    def _look_idle(self) -> None:
        """Closes who has been idle for long enough; who was busy meanwhile is looked at again."""
        self._idle = None
        if self._idle_since_s is None or self.transport.is_closing():
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._idle = self.loop.call_later(left_s, self._look_idle)
        else:
            self.timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """The peer does not take its answers: it has as long as a request may take to arrive."""
        super().pause_writing()
        self._answer_taken()
        self._expect_taking()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._answer_taken()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops. A connection that has asked nothing yet was just taken, and its request is on its way."""
        cycle: object = self.cycle  # None until a request begins, whatever its type says
        if cycle is None and not self.transport.is_closing():
            self.loop.call_later(FIRST_REQUEST_S, self._end)
        else:
            super().shutdown()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _expect_taking(self) -> None:
        self._taking = self.loop.call_later(self._guards.receive_timeout_s, self._abort_if_not_taken)

    def _abort_if_not_taken(self) -> None:
        self._taking = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _answer_taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _refuse(self, answer: bytes) -> None:
        """Reads no more, and says why where it is this message's turn: answers keep the order of their requests."""
        self._is_refused = True
        self._message_arrived()
        cycle = self.cycle
        is_answered = cycle is None or cycle.response_complete
        if self._in_headers and not is_answered:  # requests in front of this message are still being answered
            cycle.keep_alive = False
            return
        if self._in_headers or not (self._is_turned_away or cycle.response_started or self.pipeline):
            self.transport.write(answer)
        self.transport.close()

    def _expect_message(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self._guards.receive_timeout_s, self.transport.abort)

    def _message_arrived(self) -> None:
        self._is_arriving = False
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _peer(self) -> str:
        return self.client[0] if self.client else ""
