"""Budget, breaker and counting of calls, with coroutines in place of a store."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from redis.exceptions import ResponseError

from service import guarded_calls
from service.guarded_calls import GuardedCalls, NoAnswerError, Replies, StoreCounts

BUDGET_S = 0.02


def calls(
    counts: StoreCounts, max_failures: int = 3, budget_s: float | None = BUDGET_S, open_s: float = 60.0
) -> GuardedCalls:
    return GuardedCalls("read", max_failures, open_s, budget_s, counts)


async def reply(after: asyncio.Event | None = None, error: Exception | None = None) -> Replies:
    if after is not None:
        await after.wait()
    if error is not None:
        raise error
    return ["reply"]


async def kind_of(guard: GuardedCalls, work: Callable[[], Awaitable[Replies]]) -> str:
    try:
        await guard.run(work)  # type: ignore[arg-type]
    except NoAnswerError as error:
        return error.kind
    return "answer"


def test_an_answer_is_passed_on_and_counted() -> None:
    async def main() -> None:
        counts = StoreCounts()
        assert await calls(counts).run(reply) == ["reply"]
        assert counts.counts == {("answered", "read"): 1}

    asyncio.run(main())


def test_a_late_reply_is_not_waited_for_but_lands_and_is_counted_once() -> None:
    async def main() -> None:
        counts = StoreCounts()
        guard, may_land = calls(counts), asyncio.Event()
        assert await kind_of(guard, lambda: reply(may_land)) == "late"
        may_land.set()
        await guard.drain()
        assert counts.counts == {("failed", "read", "late"): 1, ("late", "read"): 1}

    asyncio.run(main())


def test_a_late_call_is_one_failure_to_the_breaker_however_it_ends() -> None:
    async def main() -> None:
        guard = calls(StoreCounts(), max_failures=3)

        async def late() -> None:
            may_end = asyncio.Event()
            assert await kind_of(guard, lambda: reply(may_end, OSError())) == "late"
            may_end.set()
            await guard.drain()

        for _ in range(2):
            await late()
        assert guard.breaker.state == "closed"
        await late()
        assert guard.breaker.state == "open"

    asyncio.run(main())


@pytest.mark.parametrize("error", [OSError(), ValueError("what a client makes of garbage"), RecursionError()])
def test_whatever_a_client_raises_is_no_answer(error: Exception) -> None:
    async def main() -> None:
        guard = calls(StoreCounts())
        assert [await kind_of(guard, lambda: reply(error=error)) for _ in range(4)][3] == "open"

    asyncio.run(main())


def test_a_caller_that_leaves_does_not_take_the_call_with_it() -> None:
    async def main() -> None:
        counts, ended = StoreCounts(), []
        guard = calls(counts, budget_s=None)

        async def work() -> Replies:
            await asyncio.sleep(0.02)
            ended.append(True)
            return []

        caller = asyncio.create_task(guard.run(work))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await guard.drain()
        assert ended == [True]
        assert counts.counts == {("answered", "read"): 1}

    asyncio.run(main())


class Replier(threading.Thread):
    """A server on a thread of its own, so that it replies however busy the event loop is. Serves one connection."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as connection:
            connection.recv(100)
            connection.sendall(b"reply\n")


async def through_a_busy_loop() -> str:
    """A call to a quick server, on a loop that something else holds for twice the budget before the call is sent."""
    server, budget_s = Replier(), 0.6
    server.start()
    reader, writer = await asyncio.open_connection(*server.listener.getsockname())

    async def ask() -> Replies:
        asyncio.get_running_loop().call_soon(time.sleep, 2 * budget_s)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer.write(b"question\n")
        return [await reader.readline()]

    guard = calls(StoreCounts(), budget_s=budget_s)
    kind = await kind_of(guard, ask)
    await guard.drain()
    writer.close()
    await writer.wait_closed()
    server.join()
    return kind


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_busy_loop_is_not_the_stores_fault(run: Callable[[Awaitable[str]], str]) -> None:
    assert run(through_a_busy_loop()) == "answer"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_saboteur_a_budget_on_the_clock_alone_blames_the_store(
    run: Callable[[Awaitable[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_calls, "STALL_SHARE", 1e9)
    assert run(through_a_busy_loop()) == "late"


def test_one_line_per_change_of_state(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        guard = calls(StoreCounts(), open_s=0.2)
        for _ in range(30):
            await kind_of(guard, lambda: reply(error=OSError()))
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.21)
        for _ in range(5):
            assert await kind_of(guard, reply) == "answer"

    with caplog.at_level(logging.DEBUG, logger="daian.store"):
        asyncio.run(main())
    assert caplog.messages == [
        "store reads: no answer (connection), doing without",
        "store reads: answering again",
    ]


def test_a_key_of_the_wrong_type_is_a_failure_but_not_the_servers() -> None:
    async def main() -> None:
        guard = calls(StoreCounts())
        for _ in range(5):
            assert await kind_of(guard, lambda: reply(error=ResponseError("WRONGTYPE ..."))) == "wrong_type"
        assert guard.breaker.state == "closed"

    asyncio.run(main())
