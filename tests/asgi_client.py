"""A service without a socket: its app, opened, and a blocking client in the event loop that the app lives in."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from service.app import create_app, running
from service.settings import Settings
from service.user_store import UserStore


class Client:
    """A blocking client of one app, in the event loop that the app lives in."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self.app, self._loop = app, loop
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    def __call__(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.request(method, path, **rest))

    def wait(self, seconds: float) -> None:
        """Lets the app's own tasks run for so long."""
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def catch_up(self) -> None:
        """The loop stands still between calls, which its heartbeat takes for a stuck loop until it has beaten again."""
        self.wait(0.3)
        for _ in range(100):  # a busy machine is late with one beat or another
            if not self.app.state.parts.health.is_stuck:
                return
            self.wait(0.3)

    def rank(self, **body: Any) -> httpx.Response:
        return self("POST", "/v1/rank", json=body)


@contextmanager
def opened(settings: Settings, store: UserStore | None = None) -> Iterator[Client]:
    """A client of an app with these settings; `store` replaces the one that they name."""
    app = create_app(settings, store)
    thresholds = gc.get_threshold()
    try:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            parts = running(app.state.parts)
            loop.run_until_complete(parts.__aenter__())
            yield Client(app, loop)
            loop.run_until_complete(parts.__aexit__(None, None, None))
    finally:  # what a service tells its process holds for all tests behind it
        gc.unfreeze()
        gc.set_threshold(*thresholds)
