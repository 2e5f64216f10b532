"""A whole server in a thread: the protocol, limits and app of `daian serve` on a free port, its users in memory."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.http_guard import GuardedConfig
from service.serving import server_config
from service.settings import Settings


@dataclass(frozen=True)
class Live:
    """Where it listens, and the app behind."""

    host: str
    port: int
    app: FastAPI
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def live_server(settings: Settings, change: Callable[[GuardedConfig], None] = lambda _: None) -> Iterator[Live]:
    """Starts it, waits until it answers, stops it. `change` may take a protection away."""
    app, config = create_app(settings), server_config(settings)
    config.app, config.factory = app, False
    change(config)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()[:2]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server ended before it answered"
            assert time.monotonic() < until, "the server never started"
            time.sleep(0.02)
        try:
            yield Live(host, port, app, server)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive(), "the server did not stop"
