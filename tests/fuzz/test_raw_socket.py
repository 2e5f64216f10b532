"""Garbage at the socket: every row is a status of docs/api.md or a clean close, and the next request is ranked.

B8 to B10, B14. The server is ours, uvicorn and all, in a thread; its saboteurs are the same bytes with a guard removed.
"""

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import http_guard
from service.contract.bundle import Bundle
from service.http_guard import GuardedConfig, GuardedProtocol
from service.settings import Settings
from tests.fuzz.live_server import Live, live_server
from tests.fuzz.verdicts import CANARY, Record, Tally, check_answer
from tests.fuzz.wire import Talk, head, post, talk

TIMEOUT_S, PATIENT_S = 0.5, 60.0
LESS_S = 30.0
GOOD_BODY = b'{"trigger": "i0", "candidates": ["i7", "i9"], "deadline_ms": 20000}'
GOOD = post(GOOD_BODY)
GET = head("GET", "/livez")
CHUNKED = head("POST", "/v1/rank", "content-type: application/json", "transfer-encoding: chunked")
CHUNK = f"{len(GOOD_BODY):x}\r\n".encode() + GOOD_BODY + b"\r\n"
LENGTH = f"content-length: {len(GOOD_BODY)}"


def settings(bundle: Bundle, receive_timeout_s: float) -> Settings:
    return Settings(
        bundle_root=bundle.path, receive_timeout_s=receive_timeout_s, deadline_ms=20_000, max_deadline_ms=20_000
    )


@pytest.fixture(scope="module")
def live(bundle: Bundle) -> Iterator[Live]:
    """A patient server: what it closes in less time than that it closes for what was said."""
    with live_server(settings(bundle, PATIENT_S)) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(bundle: Bundle) -> Iterator[Live]:
    """One that soon closes what does not arrive, or is not taken."""
    with live_server(settings(bundle, TIMEOUT_S)) as found:
        yield found


def said(live: Live, *parts: bytes, wanted: int = 1, **how: Any) -> Talk:
    return talk((live.host, live.port), parts, wanted, **how)


def with_headers(*lines: str, body: bytes = GOOD_BODY) -> bytes:
    return head("POST", "/v1/rank", "content-type: application/json", *lines) + body


# name, bytes, statuses in order, whether the connection is closed behind them
TABLE: list[tuple[str, bytes, list[int], bool]] = [
    # what is good must pass
    ("good", GOOD, [200], False),
    ("good in chunks", CHUNKED + CHUNK + b"0\r\n\r\n", [200], False),
    ("a chunk for each byte",
     CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD_BODY) + b"0\r\n\r\n", [200], False),
    ("a blank line before the request", b"\r\n" + GOOD, [200], False),
    ("HTTP/1.0", GET.replace(b"1.1", b"1.0"), [200], True),
    ("HTTP/1.0 without a host", b"GET /livez HTTP/1.0\r\n\r\n", [200], True),
    ("an address in full", head("GET", "http://x/livez"), [200], False),
    ("three in a row", GET * 3, [200, 200, 200], False),
    ("an upgrade that we do not know", head("GET", "/livez", "connection: upgrade", "upgrade: h2c") * 2,
     [200, 200], False),
    ("an upgrade with a body",
     with_headers("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk", LENGTH) * 2,
     [200, 200], False),
    ("websocket", head("GET", "/livez", "connection: Upgrade", "upgrade: websocket", "sec-websocket-key: eA=="),
     [200], False),
    ("expect", post(GOOD_BODY, "/v1/rank", "expect: 100-continue"), [200], False),
    ("after close nothing counts", head("GET", "/livez", "connection: close") + GET, [200], True),
    # request line
    ("no method", b" /livez HTTP/1.1\r\nhost: x\r\n\r\n", [400], True),
    ("a made-up method", head(CANARY.upper(), "/livez"), [400], True),
    ("a method in lower case", head("get", "/livez"), [400], True),
    ("a very long method", head("A" * 5000, "/livez"), [400], True),
    ("a method of WebDAV", head("PROPFIND", "/livez"), [405], False),
    ("a method of elsewhere", head("PATCH", "/v1/rank"), [405], False),
    ("options", head("OPTIONS", "/v1/rank"), [405], False),
    ("options of everything", head("OPTIONS", "*"), [404], False),
    ("connect", head("CONNECT", "x:80"), [400], True),
    ("trace", head("TRACE", "/livez", f"x-{CANARY}: {CANARY}"), [405], False),
    ("HTTP/2.0", GET.replace(b"1.1", b"2.0"), [400], True),
    ("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], True),
    ("HTTP/0.9", b"GET /livez\r\n\r\n", [400], True),
    ("HTTP/0.9 in words", GET.replace(b"1.1", b"0.9"), [400], True),
    ("HTTP/9.9", GET.replace(b"1.1", b"9.9"), [400], True),
    ("another protocol", GET.replace(b"HTTP", b"HTCP"), [400], True),
    ("a protocol of the same family", b"PLAY /livez RTSP/1.0\r\nhost: x\r\n\r\n", [405], True),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 50, [400], True),
    ("bytes", bytes(range(256)), [400], True),
    ("no slash", head("GET", "livez"), [400], True),
    ("an address without a path", head("GET", "http://x"), [400], True),
    ("NUL in the path", head("GET", f"/{CANARY}\x00"), [400], True),
    ("latin-1 in the path", head("GET", f"/{CANARY}\xff"), [400], True),
    ("a line break in the path", head("GET", f"/{CANARY}\nx"), [400], True),
    ("no such path", head("GET", f"/{CANARY}"), [404], False),
    ("dots", head("GET", f"/../../{CANARY}"), [404], False),
    ("a path of 10,000 bytes", head("GET", "/" + CANARY * 2500), [404], False),
    ("half an escape", head("GET", f"/{CANARY}%"), [404], False),
    # ids in a path
    ("half an escape in an id", head("DELETE", f"/v1/users/{CANARY}%"), [200], False),
    ("NUL in an id", head("DELETE", f"/v1/users/{CANARY}%00"), [422], False),
    ("a line break in an id", head("DELETE", f"/v1/users/{CANARY}%0d%0ax"), [404], False),
    ("a line break behind an id", head("DELETE", f"/v1/users/{CANARY}%0a"), [422], False),
    ("no UTF-8 in an id", head("DELETE", f"/v1/users/{CANARY}%ff%fe"), [422], False),
    ("a surrogate in an id", head("DELETE", f"/v1/users/{CANARY}%ed%a0%80"), [422], False),
    ("an overlong slash", head("DELETE", f"/v1/users/{CANARY}%c0%af"), [422], False),
    ("no id", head("DELETE", "/v1/users/"), [422], False),
    ("an id of 129 bytes", head("DELETE", "/v1/users/" + CANARY[:1] * 129), [422], False),
    ("an id that looks like a key", head("DELETE", "/v1/users/%7B%7D:*%20x%25"), [200], False),
    ("an escape where the route was", head("DELETE", f"/v1/%75sers/v1/users/{CANARY}"), [422], False),
    # query
    ("a query of bytes", head("GET", f"/readyz?{CANARY}=%ff%00&&&==;"), [200], False),
    ("latin-1 in the query", head("GET", f"/v1/limits?{CANARY}=\xff"), [400], True),
    # headers
    ("one header too long", head("GET", "/livez", "x: " + CANARY * 5000), [431], True),
    ("a header of 3 MB", head("GET", "/livez", "x: " + CANARY * 750_000), [431], True),
    ("10,000 headers", head("GET", "/livez", *["x: y"] * 10_000), [431], True),
    ("a path of 20,000 bytes", head("GET", "/" + CANARY * 5000), [431], True),
    ("blank lines without an end", b"\r\n" * 20_000, [431], True),
    ("NUL in a header", head("GET", "/livez", f"x: {CANARY}\x00"), [400], True),
    ("NUL in a header's name", head("GET", "/livez", f"{CANARY}\x00: x"), [400], True),
    ("a space before the colon", head("GET", "/livez", f"{CANARY} : x"), [400], True),
    ("no colon", head("GET", "/livez", CANARY), [400], True),
    ("a folded header", head("GET", "/livez", "x: y", f" {CANARY}"), [400], True),
    ("a bare CR in a header", head("GET", "/livez", f"x: y\r{CANARY}: z"), [400], True),
    ("bare LF everywhere", GET.replace(b"\r\n", b"\n"), [400], True),
    ("no host", b"GET /livez HTTP/1.1\r\n\r\n", [400], True),
    ("two hosts", head("GET", "/livez", f"host: {CANARY}"), [400], True),
    ("a host that is no host", GET.replace(b"host: x", b"host: [" + CANARY.encode()), [200], False),
    ("a host that is no host, and an error", GOOD.replace(b"host: x", b"host: [").replace(b"{", b"x"), [400], False),
    ("latin-1 in a header", head("GET", "/livez", f"x-request-id: {CANARY}\xff"), [200], False),
    ("a deadline that is none", post(GOOD_BODY, "/v1/rank", f"x-timeout-ms: {CANARY}"), [400], False),
    ("a priority that is none", post(GOOD_BODY, "/v1/rank", f"x-priority: {CANARY}"), [400], False),
    # framing
    ("two lengths", with_headers(LENGTH, LENGTH), [400], True),
    ("two lengths that differ", with_headers(LENGTH, "content-length: 5"), [400], True),
    ("two lengths in one", with_headers(f"{LENGTH}, 5"), [400], True),
    ("a negative length", with_headers("content-length: -1"), [400], True),
    ("a length with a sign", with_headers("content-length: +5"), [400], True),
    ("a length in hexadecimal", with_headers("content-length: 0x42"), [400], True),
    ("a length beyond 64 bits", with_headers("content-length: " + "9" * 30), [400], True),
    ("length and chunks", with_headers(LENGTH, "transfer-encoding: chunked", body=b"0\r\n\r\n"), [400], True),
    ("chunks and length", with_headers("transfer-encoding: chunked", LENGTH, body=b"0\r\n\r\n"), [400], True),
    ("chunks twice", with_headers("transfer-encoding: chunked", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
     [400], True),
    ("chunks, then not", with_headers("transfer-encoding: chunked, identity", body=b"0\r\n\r\n"), [400], True),
    ("no chunks", with_headers(f"transfer-encoding: {CANARY}", body=b"0\r\n\r\n"), [400], True),
    ("chunks behind a vertical tab", with_headers("transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"), [400], True),
    ("a chunk size that is none", CHUNKED + CANARY.encode() + b"\r\n", [400], True),
    ("a chunk size beyond 64 bits", CHUNKED + b"f" * 17 + b"\r\n", [400], True),
    ("a chunk longer than said", CHUNKED + b"1\r\n" + GOOD_BODY + b"\r\n", [400], True),
    ("a request inside a body", post(GET), [400], False),
    ("no length", with_headers(), [400], True),  # no body; what follows is no request
    # bodies
    ("a body that says it is too large", with_headers("content-length: 9000000000", body=b"{"), [413], True),
    ("a body that is too large", post(b" " * 1_048_577), [413], True),
    ("chunks that are too large", CHUNKED + b"100000\r\n" + b" " * (1 << 20) + b"\r\n2\r\n{}", [413], True),
    ("gzip", post(GOOD_BODY, "/v1/rank", "content-encoding: gzip"), [415], False),
    ("XML", GOOD.replace(b"application/json", b"application/xml"), [415], False),
    ("a form with files", GOOD.replace(b"application/json", b"multipart/form-data; boundary=x"), [415], False),
    ("a media type of NULs", GOOD.replace(b"application/json", b"\x80\x80/\xff"), [415], False),
    # trailers and extensions
    ("a trailer", CHUNKED + CHUNK + f"0\r\nx-priority: {CANARY}\r\n\r\n".encode(), [200], False),
    ("extensions", CHUNKED + CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"0\r\n\r\n", [200], False),
]  # fmt: skip


@pytest.fixture
def row(record_property: Record) -> Iterator[Tally]:
    """One row, broken until the test has come to its end."""
    found = Tally(n_sent=1, n_broken=1)
    yield found
    found.tell(record_property, "rows of the raw-socket table")


@pytest.mark.parametrize(("data", "statuses", "is_closed"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_b14_bytes_at_the_socket(
    live: Live, row: Tally, caplog: pytest.LogCaptureFixture, data: bytes, statuses: Sequence[int], is_closed: bool
) -> None:
    found = said(live, data, wanted=len(statuses), closes_within_s=LESS_S if is_closed else 0.05)
    row.statuses.update(found.statuses)
    assert (found.statuses, found.is_closed) == (statuses, is_closed)
    for answer in found.answers:
        check_answer(answer.status, answer.headers, answer.body)
    assert found.seconds < LESS_S
    assert said(live, GOOD).statuses == [200]
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []
    assert CANARY not in caplog.text
    row.n_broken = 0


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row[0] for row in TABLE}) == len(TABLE) >= 40


ENDLESS = [
    ("trailers", CHUNKED + CHUNK + b"0\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
    ("one trailer", CHUNKED + CHUNK + b"0\r\nx: ", b"y" * 1000),
    ("an extension", CHUNKED + b"1;x=", b"y" * 1000),
    ("extensions", CHUNKED, b"1;x=" + b"y" * 1000 + b"\r\n \r\n"),
]


@pytest.mark.parametrize(("first", "more"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
def test_b10_what_frames_a_body_has_an_end(live: Live, first: bytes, more: bytes) -> None:
    found = said(live, first, *[more * 10] * 30, closes_within_s=LESS_S)
    assert (found.statuses, found.is_closed) == ([431], True)
    check_answer(431, found.answers[0].headers, found.answers[0].body)
    assert found.seconds < LESS_S


@pytest.mark.parametrize(("first", "more"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
def test_b10_without_the_count_it_has_none(
    hasty: Live, monkeypatch: pytest.MonkeyPatch, first: bytes, more: bytes
) -> None:
    monkeypatch.setattr(http_guard, "FRAMING_PER_BODY_BYTE", 1 << 40)
    monkeypatch.setattr(GuardedProtocol, "on_body", lambda self, body: HttpToolsProtocol.on_body(self, body))
    monkeypatch.setattr(
        GuardedProtocol, "_n_framing_bytes", property(lambda _: -1, lambda *_: None), raising=False
    )  # fmt: skip
    assert 431 not in said(hasty, first, *[more * 10] * 30, wanted=9).statuses


def test_b14_a_trailer_is_no_header(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    smuggled = CHUNKED + CHUNK + b"0\r\nx-priority: nonsense\r\n\r\n"
    assert said(live, smuggled).statuses == [200]
    monkeypatch.setattr(GuardedProtocol, "on_header", HttpToolsProtocol.on_header)
    assert said(live, smuggled).statuses == [400]


@pytest.mark.parametrize("behind", [b"garbage\r\n\r\n", b"x" * 30_000, head("GET", "/livez", "x: " + "y" * 40_000)])
def test_b14_answers_keep_the_order_of_their_requests(live: Live, behind: bytes) -> None:
    found = said(live, GOOD + GOOD + behind, wanted=3)
    assert (found.statuses, found.is_closed) == ([200, 200], True)


def test_b14_without_the_order_the_last_one_is_answered_first(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: GuardedProtocol, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()

    monkeypatch.setattr(GuardedProtocol, "_refuse", at_once)
    assert said(live, GOOD + GOOD + b"garbage\r\n\r\n", wanted=3).statuses != [200, 200]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/v1/models", "/v1/limits", "/openapi.json"])
def test_head_is_get_without_the_body(live: Live, path: str) -> None:
    found = said(live, head("HEAD", path) + head("HEAD", path), wanted=2, no_body=True)
    assert (found.statuses, found.is_closed) == ([200, 200], False)
    got = said(live, head("GET", path)).answers[0]
    assert found.answers[0].headers["content-length"] == str(len(got.body)) or path == "/readyz"
    assert said(live, head("HEAD", "/v1/rank"), no_body=True).statuses == [405]


SLOW = [
    ("nothing", []),
    ("half a request line", [b"GET /li"]),
    ("a header, byte by byte", [b"GET /livez HTTP/1.1\r\nx: ", *[b"y"] * 20]),
    ("half a body", [head(n_body=50) + b"{"]),
    ("a body, byte by byte", [head(n_body=50), *[b" "] * 20]),
    ("half a chunk", [CHUNKED + b"50\r\n{"]),
    ("half a message behind a whole one", [GET + b"GET /li"]),
]


@pytest.mark.parametrize("parts", [row[1] for row in SLOW], ids=[row[0] for row in SLOW])
def test_b9_what_does_not_arrive_is_closed(hasty: Live, parts: list[bytes]) -> None:
    found = said(hasty, *parts, wanted=9, pause_s=0.04 if len(parts) > 2 else 0)
    assert found.is_closed  # the client would wait for much longer
    assert found.seconds < LESS_S
    assert found.statuses in ([], [200])


def unread(live: Live, patience_s: float) -> float | None:
    """Seconds until the server gives up on a peer that asks and never reads; None when it does not."""
    address = (live.host, live.port)
    ids = ",".join(f'"{CANARY}{n:090d}"' for n in range(900)).encode()
    asked = post(b'{"trigger": "i0", "deadline_ms": 20000, "candidates": [' + ids + b"]}")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        connection.connect(address)
        began_s = time.monotonic()
        while time.monotonic() - began_s < patience_s:
            try:
                connection.send(asked)
            except TimeoutError:
                pass
            except OSError:
                return time.monotonic() - began_s
            time.sleep(0.05)
    return None


def test_b9_a_peer_that_never_reads_is_closed(hasty: Live) -> None:
    assert unread(hasty, 60) is not None
    assert said(hasty, GOOD).statuses == [200]


def test_b9_uvicorn_alone_waits_for_it(hasty: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "_expect_taking", lambda _: None)
    monkeypatch.setattr(GuardedProtocol, "_expect_message", lambda _: None)
    assert unread(hasty, 5) is None


def test_b14_plain_uvicorn_fails_this_table(bundle: Bundle) -> None:
    def plain(config: GuardedConfig) -> None:
        config.http = HttpToolsProtocol

    with live_server(settings(bundle, PATIENT_S), plain) as weak:
        for name in ("two hosts", "HTTP/2.0", "one header too long", "an upgrade with a body"):
            data, statuses, _ = next(row[1:] for row in TABLE if row[0] == name)
            assert said(weak, data, silent_s=5.0).statuses != statuses
