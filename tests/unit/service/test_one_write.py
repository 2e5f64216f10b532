"""An answer leaves in one system call, with the bytes and the order that uvicorn gave it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service import http_guard
from service.http_guard import GuardedConfig, GuardedProtocol, Guards
from service.one_write import OneWrite

GET = b"GET / HTTP/1.1\r\nhost: service\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: service\r\n\r\n"
EXPECTING = b"POST / HTTP/1.1\r\nhost: service\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that remembers each call that would have been a system call."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.calls: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["method"] == "POST":
        await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"ok"})


def said(*pieces: bytes) -> Wire:
    """What goes out when these bytes come in, each after the service has come to rest."""
    config = GuardedConfig(answer, http=GuardedProtocol, lifespan="off", log_config=None, access_log=False)
    config.guards = Guards(8_192, 5.0, 100)
    config.load()

    async def main() -> Wire:
        protocol, wire = GuardedProtocol(config, ServerState(), {}, asyncio.get_running_loop()), Wire()
        protocol.connection_made(wire)
        for piece in pieces:
            protocol.data_received(piece)
            for _ in range(10):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return wire

    return asyncio.run(main())


def ends(calls: Sequence[bytes]) -> list[bytes]:
    return [call[-2:] for call in calls]


def test_head_and_body_leave_together() -> None:
    wire = said(GET, GET)
    assert ends(wire.calls) == [b"ok", b"ok"]
    assert all(call.startswith(b"HTTP/1.1 200 OK\r\n") for call in wire.calls)


def test_without_it_they_are_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard.GuardedProtocol, "on_headers_complete", HttpToolsProtocol.on_headers_complete)
    assert ends(said(GET).calls) == [b"\r\n", b"ok"]


def test_no_byte_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [GET + HEAD + GET, HEAD, EXPECTING, b"ab", GET.replace(b"1.1", b"1.0")]
    ours = said(*asked)
    monkeypatch.setattr(http_guard, "OneWrite", lambda transport: transport)
    monkeypatch.setattr(GuardedProtocol, "_answered", lambda self, _: self.on_response_complete())
    plain = said(*asked)
    assert b"".join(ours.calls) == b"".join(plain.calls)
    assert ours.is_closed == plain.is_closed is True
    assert len(ours.calls) < len(plain.calls)


def test_an_answer_without_a_body_does_not_wait() -> None:
    assert ends(said(HEAD).calls) == [b"\r\n"]


def test_who_waits_to_be_told_to_continue_is_told_at_once() -> None:
    wire = said(EXPECTING)
    assert wire.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]


def test_a_head_is_not_lost_when_the_connection_ends() -> None:
    wire = Wire()
    answer = OneWrite(wire)
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert wire.calls == []
    answer.close()
    assert wire.calls == [b"HTTP/1.1 200 OK\r\n\r\n"]
    assert wire.is_closed
