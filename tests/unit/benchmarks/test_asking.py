"""The load client against a server that we know everything of: what it counts, and when its clock starts."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.bench.asking import Answer, Load, LoadError, ask_once, closed_loop, open_loop, post, run

Handler = Callable[[bytes], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: total;dur=1.000\r\n\r\n{}"


async def with_server(handle: Handler, load: Callable[[int], Awaitable[Load | Answer]]) -> Load | Answer:
    """Runs a load against a server that answers each request with what `handle` makes of its body."""
    writers = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                writer.write(await handle(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        return await load(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def at_once(_: bytes) -> bytes:
    return OK


def test_a_closed_loop_takes_every_request_and_counts_every_answer() -> None:
    seen: list[bytes] = []

    async def handle(body: bytes) -> bytes:
        seen.append(body)
        await asyncio.sleep(0.006)
        return OK

    load = run(with_server(handle, lambda port: closed_loop(port, [post("/", b"a"), post("/", b"bb")], 2, 2.5)))
    assert isinstance(load, Load)
    assert len(load.seconds) == len(seen) == len(load.stages) > 4
    assert set(seen) == {b"a", b"bb"}
    assert load.n_failed == load.n_degraded == 0
    assert min(load.seconds) > 0.003  # uvloop's timers go by whole milliseconds of a clock read once a turn
    assert load.per_s == pytest.approx(len(seen) / load.wall_s)


def test_refusals_and_degraded_answers_are_counted_apart() -> None:
    answers = [
        b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy",
        OK.replace(b"Server-Timing", b"Daian-Degraded: recall\r\nServer-Timing"),
    ]

    async def handle(_: bytes) -> bytes:
        answers.append(answers.pop(0))
        return answers[-1]

    load = run(with_server(handle, lambda port: closed_loop(port, [post("/", b"")], 1, 2.5)))
    assert isinstance(load, Load)
    assert load.n_failed > 0
    assert load.n_degraded == load.degraded["recall"] == len(load.seconds) > 0
    assert load.first_failure == "503 busy"


async def stalls_once(handled: list[bytes]) -> bytes:
    handled.append(b"")
    if len(handled) == 1:
        await asyncio.sleep(0.3)
    return OK


def test_a_stall_is_seen_by_all_that_were_due_in_it() -> None:
    """One server that answers one at a time and stalls once: in the open loop the queue behind the stall is counted."""
    handled: list[bytes] = []
    turn = asyncio.Lock

    async def load(port: int) -> Load:
        return await open_loop(port, [post("/", b"")], per_s=100, seconds=0.6)

    async def measured() -> Load | Answer:
        lock = turn()

        async def handle(_: bytes) -> bytes:
            async with lock:
                return await stalls_once(handled)

        return await with_server(handle, load)

    found = run(measured())
    assert isinstance(found, Load)
    late = [seconds for seconds in found.seconds if seconds > 0.1]
    assert len(late) > 5, "arrivals during the stall waited for it"
    assert found.n_failed == 0


def test_a_closed_loop_sees_the_same_stall_once() -> None:
    """What the open loop is for: a visitor who waits does not ask, and so hides the queue."""
    handled: list[bytes] = []
    load = run(with_server(lambda _: stalls_once(handled), lambda port: closed_loop(port, [post("/", b"")], 1, 0.6)))
    assert isinstance(load, Load)
    assert 1 <= len([seconds for seconds in load.seconds if seconds > 0.25]) <= 2  # the machine may stall as well


def test_chunked_answers_are_read() -> None:
    async def handle(_: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"

    answer = run(with_server(handle, lambda port: ask_once(port, post("/", b""))))
    assert isinstance(answer, Answer)
    assert answer.body == b"abcde"


def test_a_server_that_hangs_up_is_a_failure_and_no_figure() -> None:
    async def handle(_: bytes) -> bytes:
        raise ConnectionError

    load = run(with_server(handle, lambda port: closed_loop(port, [post("/", b"")], 1, 0.2)))
    assert isinstance(load, Load)
    assert load.n_failed == 1
    with pytest.raises(LoadError, match="no answer was good"):
        load.ms(50)
