"""A stop gives connections that were just taken time for their first request."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service import http_guard as module
from service.http_guard import GuardedConfig, GuardedProtocol, Guards

REQUEST = b"GET / HTTP/1.1\r\nhost: service\r\nconnection: close\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
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
