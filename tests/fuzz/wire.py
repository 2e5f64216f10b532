"""HTTP/1.1 as bytes: what a bare socket sends, and the answers in what it gets back. No more than a client knows.

A connection that ends inside an answer, or bytes that are none, are errors here: the server must frame what it says.
"""

import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


class NotAnAnswerError(AssertionError):
    """Bytes that no client could read."""


def head(method: str = "POST", path: str = "/v1/rank", *lines: str, n_body: int | None = None) -> bytes:
    """Request line and headers, down to the blank line."""
    every = [f"{method} {path} HTTP/1.1", "host: x", *lines]
    if n_body is not None:
        every += ["content-type: application/json", f"content-length: {n_body}"]
    return "\r\n".join([*every, "", ""]).encode("latin-1")


def post(body: bytes, path: str = "/v1/rank", *lines: str) -> bytes:
    """A whole request with a JSON body."""
    return head("POST", path, *lines, n_body=len(body)) + body


def answers_in(data: bytes, no_body: bool = False) -> tuple[list[Answer], bytes]:
    """The answers in `data`, 100 Continue left out, and what is left of an unfinished one."""
    found = []
    while data:
        top, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            break
        first, *lines = top.decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if version != "HTTP/1.1" or not status[:3].isdigit():
            raise NotAnAnswerError(f"no answer begins with {data[:60]!r}")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = 0 if no_body or status.startswith("100") else int(headers["content-length"])
        if len(rest) < size:
            break
        if not status.startswith("100"):
            found.append(Answer(int(status[:3]), headers, rest[:size]))
        data = rest[size:]
    return found, data


@dataclass(frozen=True)
class Talk:
    """What came back, and whether the server closed the connection."""

    answers: list[Answer]
    is_closed: bool
    seconds: float

    @property
    def statuses(self) -> list[int]:
        return [one.status for one in self.answers]


def talk(
    address: tuple[str, int],
    parts: Sequence[bytes],
    wanted: int = 1,
    pause_s: float = 0.0,
    no_body: bool = False,
    silent_s: float = 60.0,
    closes_within_s: float = 0.05,
) -> Talk:
    """Sends the parts and reads until the server closes, or is silent for too long.

    That is `closes_within_s` once `wanted` answers are in, and `silent_s` before.
    """
    began_s = time.monotonic()
    with socket.create_connection(address, timeout=60) as connection:
        with suppress(OSError):  # it may close before it has read everything
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
        data, is_closed = b"", False
        while not is_closed:
            is_enough = len(answers_in(data, no_body)[0]) >= wanted
            connection.settimeout(closes_within_s if is_enough else silent_s)
            try:
                piece = connection.recv(1 << 16)
            except TimeoutError:
                break
            except OSError:
                piece = b""
            data, is_closed = data + piece, not piece
    answers, rest = answers_in(data, no_body)
    if rest:
        raise NotAnAnswerError(f"the connection ended inside an answer: {rest[:60]!r}")
    return Talk(answers, is_closed, time.monotonic() - began_s)
