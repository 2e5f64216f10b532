"""Valid requests changed byte by byte, at every endpoint: whatever comes, an answer of docs/api.md; ranking goes on.

B6 to B8, B10 to B12, G6, G14. 10,000 cases; `DAIAN_TEST_FUZZ_CASES` asks for more (`make soak`: a million), of the seed
`DAIAN_TEST_FUZZ_SEED`. A failure names its seed and case; `DAIAN_TEST_FUZZ_CASE` sends that one alone. Most cases call
the app, one in twenty goes through the server as bytes. The saboteurs run the same cases on a service with a bug.
"""

import asyncio
import json
import logging
import os
import random
import resource
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import pytest
from fastapi import FastAPI

from service.api import bodies, routes
from service.app import create_admin_app
from service.contract.bundle import Bundle
from service.http_guard import GuardedProtocol
from service.settings import Settings
from service.user_store import MemoryUserStore
from tests.asgi_client import Client, opened
from tests.chaos.service_process import errors_in, service_process
from tests.fuzz.live_server import live_server
from tests.fuzz.mutations import ADMIN, Case, case_of, mutated
from tests.fuzz.verdicts import CANARY, DOCUMENTED, BrokenPromiseError, Record, Tally, check_answer
from tests.fuzz.wire import NotAnAnswerError, answers_in

N_CASES = int(os.environ.get("DAIAN_TEST_FUZZ_CASES", "10000"))
SEED = int(os.environ.get("DAIAN_TEST_FUZZ_SEED", "20261122"))
ONLY = os.environ.get("DAIAN_TEST_FUZZ_CASE")
RAW_SHARE, ADMIN_SHARE = 20, 50  # one in so many
GOLDEN_EVERY = 1000
SLOWEST_S = 20
AT_ONCE = 64
MB = 1 << 20
MOST_MB = 10
GOLDEN = {
    "user": "golden",
    "trigger": "i0",
    "candidates": [f"i{n}" for n in range(50)],
    "deadline_ms": 2000,
    "behaviours": [{"item": "i8", "type": "click", "time": 1_790_000_000_000}],
}


class Address(Protocol):
    """Where a server listens."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


class FoundError(AssertionError):
    """A broken promise, and how to see it again."""

    def __init__(self, number: int, case: object, why: object, test: str) -> None:
        super().__init__(
            f"{why!r} at case {number} of seed {SEED}: {case!r}\n"
            f"again: DAIAN_TEST_FUZZ_SEED={SEED} DAIAN_TEST_FUZZ_CASE={number} pytest tests/fuzz -k {test}"
        )


def check_line(record: logging.LogRecord) -> None:
    """Fails the run at a line that holds an id or reports a bug; a request id is the caller's own text."""
    fields = {name: value for name, value in vars(record).get("fields", {}).items() if name != "request_id"}
    if record.exc_info or CANARY in record.getMessage() + str(fields):
        raise BrokenPromiseError(f"in the log: {record.getMessage()} {fields}")


@pytest.fixture
def loud_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every line is looked at and none kept: pytest would keep them all, which would pass for memory of the service."""
    log = logging.getLogger("daian")
    before = log.level
    log.setLevel(logging.INFO)
    pass_on = logging.Logger.callHandlers

    def look(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "daian":
            check_line(record)
        else:
            pass_on(logger, record)

    monkeypatch.setattr(logging.Logger, "callHandlers", look)
    yield
    log.setLevel(before)


@pytest.mark.usefixtures("loud_log")
def test_b14_a_line_with_an_id_or_a_bug_is_heard() -> None:
    log = logging.getLogger("daian.http")
    log.info("request", extra={"fields": {"request_id": CANARY}})
    with pytest.raises(BrokenPromiseError, match="in the log"):
        log.info("request", extra={"fields": {"user": CANARY}})
    with pytest.raises(BrokenPromiseError, match="bug"):
        log.error("bug", exc_info=ValueError("x"))


def settings(bundle: Bundle) -> Settings:
    return Settings(
        bundle_root=bundle.path, max_body_bytes=100_000, deadline_ms=2000, receive_timeout_s=0.3, bundle_poll_s=0
    )


def numbers(every: Callable[[int], bool], n_cases: int = N_CASES) -> Iterable[int]:
    return [int(ONLY)] if ONLY else (number for number in range(n_cases) if every(number))


# --- in process -------------------------------------------------------------------------------------------------------


async def answer_of(app: FastAPI, case: Case) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one case, as the server would hand it to the app."""
    path, _, query = case.path.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": case.method, "scheme": "http",
        "path": unquote(path.decode()), "raw_path": path, "query_string": query, "root_path": "",
        "headers": [(b"host", b"x"), *((name.lower(), value) for name, value in case.headers)],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    cuts = [0, *case.pieces, len(case.body)]
    coming = [
        {"type": "http.request", "body": case.body[start:end], "more_body": end != cuts[-1] or place < len(cuts) - 2}
        for place, (start, end) in enumerate(pairwise(cuts))
    ]
    coming[-1]["more_body"] = False
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(dict(message))

    await app(scope, receive, send)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in said[0]["headers"]}
    return said[0]["status"], headers, b"".join(one["body"] for one in said[1:])


def check_case(client: Client, app: FastAPI, number: int, case: Case, test: str, tally: Tally) -> None:
    """Sends one case and counts what it got. Raises FoundError."""
    tally.n_sent += 1
    try:
        asked = asyncio.wait_for(answer_of(app, case), SLOWEST_S)
        status, headers, body = client._loop.run_until_complete(asked)
        tally.statuses[status] += 1
        check_answer(status, headers, body)
    except Exception as error:  # one that leaves the app is what we look for
        tally.n_broken += 1
        raise FoundError(number, case, error, test) from error


def golden(client: Client) -> object:
    answer = client.rank(**GOLDEN)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"], answer.json()["intent"], answer.json()["behaviours"]["used"]


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fuzz_in_process(client: Client, test: str, tally: Tally, n_cases: int = N_CASES) -> float:
    """All cases that need no socket; by how many MB the process grew over the second half of them."""
    admin = create_admin_app(client.app.state.parts)
    store = client.app.state.parts.store
    before, at_first = golden(client), 0
    for number in numbers(lambda number: number % RAW_SHARE != 0, n_cases):
        is_admin = number % ADMIN_SHARE == 1
        case = case_of(SEED, number, ADMIN) if is_admin else case_of(SEED, number)
        check_case(client, admin if is_admin else client.app, number, case, test, tally)
        if number % GOLDEN_EVERY == 1:
            assert golden(client) == before, f"ranking changed at case {number} of seed {SEED}"
            store._members.clear()  # what was stored on purpose is no leak
        at_first = at_first or (memory() if number > n_cases // 2 else 0)  # every cache is warm by then
    assert golden(client) == before, f"ranking changed at the end of seed {SEED}"
    grown = memory() - at_first if at_first else 0
    print(f"\n{tally.n_sent} cases of seed {SEED}: {dict(sorted(tally.statuses.items()))}, {grown / MB:+.1f} MB")
    return grown / MB


@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("loud_log")
def test_b6_g6_g14_no_bytes_break_the_app(bundle: Bundle, record_property: Record) -> None:
    tally = Tally()
    try:
        with opened(settings(bundle), MemoryUserStore()) as client:
            grown_mb = fuzz_in_process(client, "break_the_app", tally)
    finally:
        tally.tell(record_property, "mutated requests to the app")
    record_property("G6", f"memory of the app's process over the second half: {grown_mb:.1f} MB, at most {MOST_MB}")
    assert grown_mb <= MOST_MB
    if N_CASES >= 5000 and not ONLY:  # it looked into every corner, not at one door
        assert {200, 400, 404, 405, 413, 415, 422} <= set(tally.statuses)
        assert 0.1 < tally.statuses[200] / tally.n_sent < 0.7


def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "service_error", lambda error, _: bodies.ValidationFailed(str(error)))


def _raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_check_limits", lambda asked, _: asked.user.encode())


def _plain_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(shape: Any, body: bytes) -> Any:
        return shape.model_validate(json.loads(body))

    monkeypatch.setattr(routes, "parse", parse)


@pytest.mark.parametrize("sabotage", [_echo, _raise, _plain_json])
def test_b6_a_service_with_a_bug_is_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    sabotage(monkeypatch)
    with (
        opened(settings(bundle), MemoryUserStore()) as client,
        pytest.raises(FoundError, match=rf"case \d+ of seed {SEED}"),
    ):
        fuzz_in_process(client, "is_found", Tally(), 10_000)


# --- through the server -----------------------------------------------------------------------------------------------


async def _sent(live: Address, number: int, tally: Tally) -> None:
    """Sends one case as bytes, changed once more as a whole; counts the first status, 0 for a clean close."""
    dice = random.Random(f"{SEED}/{number}/raw")
    data = case_of(SEED, number).as_bytes()
    if dice.random() < 0.8:
        data = mutated(data, dice)
    is_head = data.lstrip(b"\r\n").startswith(b"HEAD ")
    tally.n_sent += 1
    try:
        async with asyncio.timeout(SLOWEST_S):
            await _first_status(live, data, is_head, tally)
    except (BrokenPromiseError, NotAnAnswerError, TimeoutError, ValueError, KeyError) as error:
        tally.n_broken += 1
        raise FoundError(number, data, error, "break_the_server") from error


async def _first_status(live: Address, data: bytes, is_head: bool, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection(live.host, live.port)
    try:
        writer.write(data)
        found = b""
        while True:
            try:
                piece = await reader.read(1 << 16)
            except ConnectionError:
                piece = b""
            found += piece
            answers, rest = answers_in(found, is_head)
            if answers:
                tally.statuses[answers[0].status] += 1
                if not is_head:  # whose answers have no body to look at
                    check_answer(answers[0].status, answers[0].headers, answers[0].body)
                elif answers[0].status not in {200, *(status for status, _ in DOCUMENTED)}:
                    raise BrokenPromiseError(f"{answers[0].status} is not documented")
                return
            if not piece:
                if rest:
                    raise NotAnAnswerError(f"half an answer: {rest[:80]!r}")
                tally.statuses[0] += 1
                return
    finally:
        writer.transport.abort()


async def fuzz_by_socket(live: Address, tally: Tally, n_cases: int = N_CASES, turn: int = 0) -> None:
    """All cases whose number leaves `turn` when it is divided by RAW_SHARE, some at once."""
    left = iter(numbers(lambda number: number % RAW_SHARE == turn, n_cases))
    while some := list(islice(left, AT_ONCE)):
        await asyncio.gather(*(_sent(live, number, tally) for number in some))


def is_alive(live: Address) -> bool:
    tally = Tally()
    asyncio.run(_first_status(live, Case("GET", b"/livez", (), b"").as_bytes(), False, tally))
    return tally.statuses[200] == 1


@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("loud_log")
def test_b8_b10_b14_no_bytes_break_the_server(bundle: Bundle, record_property: Record) -> None:
    tally = Tally()
    try:
        with live_server(settings(bundle)) as live:
            asyncio.run(fuzz_by_socket(live, tally))
            assert is_alive(live)
    finally:
        tally.tell(record_property, "mutated bytes at the socket")
    print(f"\n{tally.n_sent} cases at the socket of seed {SEED}: {dict(sorted(tally.statuses.items()))}")
    if N_CASES >= 5000 and not ONLY:
        assert {0, 200, 400, 422} <= set(tally.statuses)


def test_b14_a_server_with_a_bug_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def plainly(self: GuardedProtocol, _: bytes) -> None:
        text = b"you sent garbage"
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        self.transport.close()

    monkeypatch.setattr(GuardedProtocol, "_refuse", plainly)
    with live_server(settings(bundle)) as live, pytest.raises(FoundError, match=rf"case \d+ of seed {SEED}"):
        asyncio.run(fuzz_by_socket(live, Tally(), 10_000))


# --- in a process of its own ------------------------------------------------------------------------------------------


def grown_by(bundle: Bundle, folder: Path, tally: Tally, n_cases: int = N_CASES, prelude: str = "") -> float:
    """MB by which `daian serve` grows over as many cases at its socket as it has seen before; 0.0 if it shrinks."""
    given = {"DAIAN_MAX_BODY_BYTES": "100000", "DAIAN_DEADLINE_MS": "2000", "DAIAN_RECEIVE_TIMEOUT_S": "0.3"}
    with service_process(bundle.path, folder, (), prelude, **given) as service:
        asyncio.run(fuzz_by_socket(service, tally, n_cases, turn=2))
        before = service.resident_bytes()
        asyncio.run(fuzz_by_socket(service, tally, n_cases, turn=12))
        assert is_alive(service)
        assert errors_in(service.log) == []
        return max(0.0, (service.resident_bytes() - before) / MB)


@pytest.mark.timeout(7200)
@pytest.mark.e2e
def test_g6_the_servers_memory_does_not_grow(bundle: Bundle, tmp_path: Path, record_property: Record) -> None:
    tally = Tally()
    try:
        grown_mb = grown_by(bundle, tmp_path, tally)
    finally:
        tally.tell(record_property, "mutated bytes at `daian serve`")
    what = f"memory of `daian serve` over {tally.n_sent // 2:,} cases"
    record_property("G6", f"{what}: {grown_mb:.1f} MB, at most {MOST_MB}")
    assert grown_mb <= MOST_MB


LEAK = """
import service.http_guard as module
_asked, _kept = module.GuardedProtocol.data_received, []
def _keeping(self, data):
    _kept.append(b"x" * 100_000)
    _asked(self, data)
module.GuardedProtocol.data_received = _keeping
"""


@pytest.mark.e2e
def test_g6_a_server_that_leaks_is_found(bundle: Bundle, tmp_path: Path) -> None:
    assert grown_by(bundle, tmp_path, Tally(), 10_000, LEAK) > MOST_MB
