"""Door: who knows from a request's headers that it has no chance, and the whole of the answer to it.

`http_guard.py` asks it before anything is made of a request; `api/doorway.py` is one. Knows bytes alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

DOORWAY = "doorway"  # where a `Door` stands, among what the app's lifespan hands over
CLOSE = b"connection: close\r\n"
STATUS_LINES = {
    429: b"HTTP/1.1 429 Too Many Requests\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
}
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)  # frozen ones are slower to make
class Refusal:
    """The whole of an answer: one of STATUS_LINES, header lines that each end with CRLF, a body."""

    status: int
    lines: bytes
    body: bytes
    is_last: bool = False  # of its connection

    def written(self, default_headers: Headers, may_stay: bool) -> tuple[bytes, bool]:
        """(the bytes of the answer, whether it is the last of its connection)."""
        is_last = self.is_last or not may_stay
        defaults = [b"%s: %s\r\n" % header for header in default_headers]
        end = CLOSE + b"\r\n" if is_last else b"\r\n"
        return b"".join((STATUS_LINES[self.status], *defaults, self.lines, end, self.body)), is_last

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same for a server that writes them itself."""
        lines = (self.lines + (CLOSE if self.is_last else b"")).splitlines()
        return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


class Door(Protocol):
    """Lets a request in, or turns it away."""

    def turn_away(self, method: bytes, target: bytes, headers: Headers, port: int | None) -> Refusal | None:
        """`target`: path and query as they came; `port`: where the server listens. None: let it in."""
