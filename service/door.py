"""Door: who knows from a request's headers that it has no chance, and the whole of the answer to it.

`http_guard.py` asks it before anything is made of a request; `api/doorway.py` is one. Knows bytes alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

DOORWAY = "doorway"  # where a `Door` stands, among what the app's lifespan hands over
CLOSES = (b"connection", b"close")
STATUS_LINES = {429: b"429 Too Many Requests", 503: b"503 Service Unavailable"}
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Refusal:
    """The whole of an answer, with one of STATUS_LINES."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    status: int = 503

    def written(self, default_headers: Headers, may_stay: bool) -> tuple[bytes, bool]:
        """(the bytes of the answer, whether it is the last of its connection)."""
        is_last = not may_stay or CLOSES in self.headers
        headers = [*default_headers, *self.headers]
        if is_last and CLOSES not in headers:
            headers.append(CLOSES)
        lines = [b"%s: %s\r\n" % header for header in headers]
        return b"".join((b"HTTP/1.1 %s\r\n" % STATUS_LINES[self.status], *lines, b"\r\n", self.body)), is_last


class Door(Protocol):
    """Lets a request in, or turns it away."""

    def turn_away(self, method: bytes, target: bytes, headers: Headers, port: int | None) -> Refusal | None:
        """`target`: path and query as they came; `port`: where the server listens. None: let it in."""
