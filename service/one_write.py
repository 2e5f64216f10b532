"""OneWrite: what an answer is written through, so that its head and its body leave in one system call.

Made by `http_guard.py` for every request. uvicorn writes the head as soon as it is told of it, and on a socket of this
machine each write wakes the peer and costs as much as all the JSON. Changes no byte and no order: the head waits for
what comes next, which is the body, the end of the answer, or the end of the connection.
"""

import asyncio

_HEAD = b"HTTP/1.1 "
_INFORMATIONAL = b"HTTP/1.1 1"  # a peer that was told to wait for `100 Continue` sends nothing before it


class OneWrite:
    """One answer's way to the transport."""

    __slots__ = ("_head", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Writes, or keeps what begins an answer until there is more of it."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, data))
        elif data.startswith(_HEAD) and not data.startswith(_INFORMATIONAL):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Writes a head that nothing followed: the answer to HEAD has no body."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def close(self) -> None:
        """Writes what is left, then closes."""
        self.flush()
        self._transport.close()
