"""The generator itself: what it is told to stop, it stops."""

import asyncio

import pytest

from tests.chaos.open_loop import Connection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    def write(self, data: object) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def test_a_cancellation_that_meets_the_answer_is_not_lost() -> None:
    async def main() -> None:
        connection = Connection()
        connection.connection_made(Wire())
        asking = asyncio.create_task(connection.ask(b"GET / HTTP/1.1\r\n\r\n"))
        await asyncio.sleep(0)
        connection.data_received(ANSWER)  # the answer is there, who waits for it has not run since
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(main())


def test_an_answer_that_does_not_come_is_given_up() -> None:
    async def main() -> None:
        connection = Connection()
        connection.connection_made(Wire())
        with pytest.raises(TimeoutError):
            await connection.ask(b"GET / HTTP/1.1\r\n\r\n", patience_s=0.01)

    asyncio.run(main())
