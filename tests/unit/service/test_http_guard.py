"""A stop gives connections that were just taken time for their first request; a full house turns rankings away."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

import httptools
import pytest
import uvicorn
from uvicorn.server import ServerState

from service import http_guard as module
from service.door import DOORWAY, Refusal
from service.http_guard import GuardedConfig, GuardedProtocol, Guards

PATIENCE_S = 60.0
REQUEST = b"GET / HTTP/1.1\r\nhost: service\r\nconnection: close\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Reads no body, but of `/read`."""
    while scope["path"] == "/read" and (await receive())["more_body"]:
        pass
    await asyncio.sleep(0.3 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def read_after_a_stop(asks_after_s: float | None) -> bytes:
    """What a connection reads that was taken just before the server stopped, and asks so much later."""
    config = GuardedConfig(answer, http=GuardedProtocol, lifespan="off", log_config=None, access_log=False)
    config.guards = Guards(8_192, 5.0, 100)
    config.load()
    state = ServerState()

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        made: list[GuardedProtocol] = []

        def protocol() -> GuardedProtocol:
            made.append(GuardedProtocol(config, state, {}, loop))
            return made[-1]

        server = await loop.create_server(protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not made or made[0].transport is None:
            await asyncio.sleep(0.001)
        made[0].shutdown()
        if asks_after_s is not None:
            await asyncio.sleep(asks_after_s)
            writer.write(REQUEST)
        found = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        server.close()
        return found

    return asyncio.run(main())


def test_a_connection_just_taken_is_still_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REQUEST_S", 2.0)  # a busy machine's 0.25 s
    assert read_after_a_stop(0.01).endswith(b"ok")


def test_without_the_wait_it_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "shutdown", uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.shutdown)
    with pytest.raises((ConnectionError, AssertionError)):
        assert read_after_a_stop(0.01).endswith(b"ok")


def test_one_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REQUEST_S", 0.05)
    assert read_after_a_stop(None) == b""


class FullHouse:
    """A door that turns every ranking away, and remembers who came."""

    def __init__(self, lines: bytes = b"", is_last: bool = False) -> None:
        self.asked: list[tuple[bytes, bytes, int | None]] = []
        self._refusal = Refusal(503, b"content-length: 4\r\nretry-after: 1\r\n" + lines, b"full", is_last)

    def turn_away(
        self,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],  # noqa: ARG002
        port: int | None,
    ) -> Refusal | None:
        self.asked.append((method, target, port))
        return self._refusal if target == b"/rank" else None


def posted(target: str, body: bytes = b"{}", *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST {target} HTTP/{version}", "host: service", *lines, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def conversation(
    door: FullHouse, *pieces: bytes, keep_alive_s: float = 5.0, until: bytes = b"", max_header_bytes: int = 8_192
) -> bytes:
    """What a connection reads that sends these pieces, 10 ms apart: all until the end, or until it ends so."""
    config = GuardedConfig(
        answer, http=GuardedProtocol, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=1
    )
    config.guards = Guards(max_header_bytes, 5.0, 100)
    config.load()
    config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]
    state = ServerState()

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        made = await loop.create_server(
            lambda: GuardedProtocol(config, state, {DOORWAY: door}, loop), "127.0.0.1", 0
        )  # fmt: skip
        reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname())
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)
            async with asyncio.timeout(PATIENCE_S):
                return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()
            made.close()
            await asyncio.sleep(0.01)  # the server's side of it closes too

    return asyncio.run(main())


REFUSED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\nretry-after: 1\r\n\r\nfull"


def test_who_is_turned_away_gets_the_whole_answer_and_may_stay() -> None:
    door = FullHouse()
    found = conversation(door, posted("/rank") * 2, posted("/else"), until=b"ok")
    assert found.startswith(REFUSED * 2 + b"HTTP/1.1 200 OK\r\n")
    assert [(method, target) for method, target, _ in door.asked] == [
        (b"POST", b"/rank"), (b"POST", b"/rank"), (b"POST", b"/else"),
    ]  # fmt: skip


def test_the_answer_does_not_wait_for_the_body() -> None:
    whole = posted("/rank", b"x" * 100)
    assert conversation(FullHouse(), whole[:-50], until=b"full") == REFUSED


def test_a_body_that_comes_later_belongs_to_nobody() -> None:
    whole = posted("/rank", posted("/else"))  # as if it were a request of its own
    found = conversation(FullHouse(), whole[:-40], whole[-40:], posted("/rank"), until=b"full" + REFUSED)
    assert found == REFUSED * 2


def test_behind_a_request_that_is_still_answered_nobody_is_turned_away() -> None:
    door = FullHouse()
    found = conversation(door, posted("/else") + posted("/rank", b"{}", "connection: close"))
    assert found.count(b"200 OK") == 2  # in the order of the requests, by the app
    assert [target for _, target, _ in door.asked] == [b"/else"]


@pytest.mark.parametrize(
    ("door", "request_bytes"),
    [
        (FullHouse(), posted("/rank", b"{}", "connection: close")),
        (FullHouse(), posted("/rank", b"{}", version="1.0")),
        (FullHouse(is_last=True), posted("/rank")),
    ],
)
def test_the_last_answer_of_a_connection_says_so_and_ends_it(door: FullHouse, request_bytes: bytes) -> None:
    found = conversation(door, request_bytes + posted("/else"))
    assert found.lower().count(b"connection: close") == 1
    assert found.endswith(b"full")


def test_a_connection_that_was_turned_away_is_closed_when_it_stays_idle() -> None:
    started_s = time.monotonic()
    assert conversation(FullHouse(), posted("/rank"), keep_alive_s=0.1) == REFUSED
    assert time.monotonic() - started_s >= 0.1


BUSY_TILL_S, IDLE_S = 0.5, 0.3


def busy_then_idle() -> float:
    """Seconds until a connection is closed that asks as long as BUSY_TILL_S, with pauses shorter than its idle time."""
    started_s, pieces = time.monotonic(), [posted("/else"), b""] * 25  # 10 ms apart
    conversation(FullHouse(), *pieces, keep_alive_s=IDLE_S)
    return time.monotonic() - started_s


def test_the_idle_time_is_that_since_the_last_answer() -> None:
    assert busy_then_idle() >= BUSY_TILL_S + 0.9 * IDLE_S


def test_without_a_second_look_the_first_idle_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "_look_idle", lambda one: one.transport.close())
    with pytest.raises((AssertionError, ConnectionError)):
        assert busy_then_idle() >= BUSY_TILL_S + 0.9 * IDLE_S


def test_one_answered_before_its_body_was_in_is_closed_when_it_stays_idle() -> None:
    whole = posted("/else", b"x" * 100)
    assert conversation(NoDoor(), whole[:-50], whole[-50:], keep_alive_s=0.1).endswith(b"ok")


def test_without_a_look_behind_the_body_it_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "on_message_complete", end_without_a_look)
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE_S", 1.0)
    whole = posted("/else", b"x" * 100)
    with pytest.raises(TimeoutError):
        conversation(NoDoor(), whole[:-50], whole[-50:], keep_alive_s=0.1)


def end_without_a_look(protocol: GuardedProtocol) -> None:
    protocol._message_arrived()
    protocol._in_headers = True
    super(GuardedProtocol, protocol).on_message_complete()


def test_the_idle_time_ends_with_the_next_request_in_the_same_bytes() -> None:
    found = conversation(FullHouse(), posted("/rank") + posted("/slow"), keep_alive_s=0.05, until=b"ok")
    assert found.endswith(b"ok")


def test_without_forgetting_the_idle_time_the_next_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "on_message_begin", begin_without_forgetting)
    with pytest.raises(asyncio.IncompleteReadError):
        conversation(FullHouse(), posted("/rank") + posted("/slow"), keep_alive_s=0.05, until=b"ok")


def begin_without_forgetting(protocol: GuardedProtocol) -> None:
    protocol._in_headers = protocol._is_arriving = True
    super(GuardedProtocol, protocol).on_message_begin()


AT_ONCE = 200


def test_of_many_requests_in_one_breath_the_first_are_answered_and_the_connection_ends() -> None:
    found = conversation(NoDoor(), posted("/else") * AT_ONCE)
    assert found.count(b"200 OK") == 1 + module.MOST_WAITING
    assert found.count(b"connection: close") == 1
    assert found.rpartition(b"HTTP/1.1 ")[2].count(b"connection: close") == 1, "the last one says so"


def test_as_many_as_may_wait_are_all_answered() -> None:
    n = 1 + module.MOST_WAITING
    found = conversation(NoDoor(), posted("/else") * n, posted("/else", b"{}", "connection: close"))
    assert found.count(b"200 OK") == n + 1


def test_without_a_limit_all_of_them_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10_000)
    found = conversation(NoDoor(), posted("/else") * AT_ONCE + posted("/else", b"{}", "connection: close"))
    assert found.count(b"200 OK") == AT_ONCE + 1


@pytest.mark.parametrize("at", range(8_150, 8_250, 7))
def test_a_header_behind_much_else_in_one_read_is_not_too_large(at: int) -> None:
    """Wherever the bytes are cut that one message's headers may have."""
    first = posted("/else", b"x" * (at - 60))
    found = conversation(NoDoor(), first + posted("/else") + posted("/else", b"{}", "connection: close"))
    assert found.count(b"200 OK") == 3


@pytest.mark.parametrize(
    ("first", "n_answered", "n_refused"),
    [
        (b"", 0, 1),
        (posted("/else"), 1, 0),
        (posted("/read", b"x" * 9_000), 1, 0),
        (posted("/read", b"x" * 90_000), 1, 0),
    ],
)
def test_a_header_that_has_no_end_is_too_large(first: bytes, n_answered: int, n_refused: int) -> None:
    found = conversation(NoDoor(), first + b"GET /else HTTP/1.1\r\nhost: service\r\nx-a: " + b"x" * 20_000)
    assert (found.count(b"200 OK"), found.count(b"431 ")) == (n_answered, n_refused)
    assert b"connection: close" in found


def upgrades_behind_a_last_answer() -> bytes:
    """Each would begin the parser anew inside the one before."""
    other = b"GET / HTTP/1.1\r\nhost:a\r\nconnection:upgrade\r\nupgrade:h\r\n\r\n"
    n_free = module.FREELY_TURNED_AWAY + 2
    return conversation(FullHouse(), posted("/rank") * n_free + other * 800, until=REFUSED, max_header_bytes=1 << 16)


def test_behind_a_last_answer_no_other_protocol_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert upgrades_behind_a_last_answer() == REFUSED
    assert not caplog.records


def test_otherwise_they_would_have_no_bottom(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(GuardedProtocol, "_stay", stay_anyhow)
    upgrades_behind_a_last_answer()
    assert "RecursionError" in caplog.text


def stay_anyhow(protocol: GuardedProtocol, rest: bytes) -> None:
    protocol.parser = httptools.HttpRequestParser(protocol)
    protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)
    protocol._feed(b"GET / HTTP/1.1\r\nhost:a\r\n\r\n" + rest)


def test_without_a_door_everyone_comes_in() -> None:
    assert b"200 OK" in conversation(NoDoor(), posted("/rank"), until=b"ok")


class NoDoor(FullHouse):
    """Saboteur of the doorway: lets everyone in."""

    def turn_away(self, *_: object) -> None:
        return None


def refusals_heard(n: int, let_in_at: int | None = None, waits: bool = False) -> int:
    """How many answers one gets that asks again as soon as it was turned away, until nobody reads what it asks.

    `let_in_at`: a request that is let in. `waits`: it goes on asking, and is read again later.
    """
    config = GuardedConfig(answer, http=GuardedProtocol, lifespan="off", log_config=None, access_log=False)
    config.guards = Guards(8_192, 5.0, 100)
    config.load()
    state = ServerState()

    async def main() -> int:
        loop, taken = asyncio.get_running_loop(), list[GuardedProtocol]()

        def protocol() -> GuardedProtocol:
            taken.append(GuardedProtocol(config, state, {DOORWAY: FullHouse()}, loop))
            return taken[-1]

        made = await loop.create_server(protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname())
        try:
            for number in range(n):
                is_let_in = number == let_in_at
                writer.write(posted("/else" if is_let_in else "/rank"))
                await reader.readuntil(b"ok" if is_let_in else b"full")
                if taken[0].flow.read_paused and not waits:
                    return number + 1
            return n
        finally:
            writer.close()
            made.close()
            for one in taken:
                one.transport.abort()  # one that does not read sees no end
            await asyncio.sleep(0.01)

    return asyncio.run(main())


def test_who_asks_on_and_on_is_made_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600.0)
    assert refusals_heard(20) == module.FREELY_TURNED_AWAY + 1


def test_one_answer_makes_up_for_all_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600.0)
    assert refusals_heard(20, let_in_at=2) == 2 + 1 + module.FREELY_TURNED_AWAY + 1


def test_the_wait_ends() -> None:
    assert refusals_heard(20, waits=True) == 20


def test_everyone_rests_as_long_and_by_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.05)
    rested_s, timers = list[float](), list[float]()

    async def main() -> None:
        loop, resting = asyncio.get_running_loop(), module.Resting()
        call_later = loop.call_later

        def counted(seconds: float, *what: Any) -> asyncio.TimerHandle:
            timers.append(seconds)
            return call_later(seconds, *what)

        monkeypatch.setattr(loop, "call_later", counted)

        class Tired:
            def __init__(self) -> None:
                self.loop, self.since_s = loop, loop.time()

            def read_on(self) -> None:
                rested_s.append(loop.time() - self.since_s)

        for _ in range(3):
            for _ in range(50):
                resting.add(Tired())  # type: ignore[arg-type]
            time.sleep(0.01)
        while len(rested_s) < 150:
            await asyncio.sleep(0.005)

    asyncio.run(main())
    assert min(rested_s) >= 0.05
    assert len([seconds for seconds in timers if seconds != 0.005]) <= 6


def test_without_the_wait_it_gets_all_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600.0)
    monkeypatch.setattr(GuardedProtocol, "_slow_down", lambda _: None)
    assert refusals_heard(20) == 20


def test_who_asks_on_in_one_breath_is_sent_away_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600.0)
    found = conversation(FullHouse(), posted("/rank") * 20)
    assert found.count(b"503 Service Unavailable") == module.FREELY_TURNED_AWAY + 2
    assert found.count(b"connection: close") == 1


def test_without_the_wait_one_breath_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "_slow_down", lambda _: None)
    assert conversation(FullHouse(), posted("/rank") * 20, until=REFUSED * 20) == REFUSED * 20


def last_answer_stays_open_s(receive_timeout_s: float) -> float:
    """How long a connection stays whose client takes nothing of a large last answer, and sends its body later."""
    config = GuardedConfig(answer, http=GuardedProtocol, lifespan="off", log_config=None, access_log=False)
    config.guards = Guards(8_192, receive_timeout_s, 100)
    config.load()
    state, door = ServerState(), FullHouse(b"x-large: %s\r\n" % (b"x" * 4_000_000), is_last=True)

    async def main() -> float:
        loop, taken = asyncio.get_running_loop(), list[GuardedProtocol]()
        ended = loop.create_future()

        class Watched(GuardedProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                ended.set_result(time.monotonic())

        def protocol() -> GuardedProtocol:
            taken.append(Watched(config, state, {DOORWAY: door}, loop))
            return taken[-1]

        made = await loop.create_server(protocol, "127.0.0.1", 0)
        client = socket.create_connection(made.sockets[0].getsockname())
        started_s = time.monotonic()
        try:
            client.sendall(posted("/rank", b"x" * 100)[:-50])
            async with asyncio.timeout(3):
                return float(await ended) - started_s
        finally:
            made.close()
            for one in taken:
                one.transport.abort()
            client.close()
            await asyncio.sleep(0.01)

    return asyncio.run(main())


def test_a_last_answer_that_nobody_takes_has_an_end() -> None:
    assert last_answer_stays_open_s(0.2) >= 0.2


def test_without_a_limit_for_taking_it_the_connection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "_expect_taking", lambda _: None)
    with pytest.raises(TimeoutError):
        last_answer_stays_open_s(0.2)
