"""Writes that count only once replicas have them too: a transaction, then WAIT on the same connection.

Used by `user_store.py` where `DAIAN_REDIS_WAIT_REPLICAS` asks for it. WAIT is no consensus: it says how many replicas
have received what this connection wrote, in their memory, and takes nothing back when they are too few. Never here:
which replica is promoted when the primary dies, which sentinels or the cluster decide by themselves.
"""

from typing import Any

import redis.asyncio
from redis import exceptions
from redis.asyncio.client import Pipeline


class UnconfirmedError(exceptions.RedisError):
    """The primary has the write, and too few replicas said in time that they have it."""


def transaction(client: "redis.asyncio.Redis", wait_replicas: int, wait_ms: int) -> Pipeline:
    """A pipeline whose `execute` is one transaction, and with `wait_replicas` ends when so many replicas have it.

    `execute` then raises UnconfirmedError if they do not within `wait_ms`; the write stays where it is.
    """
    return ConfirmedPipeline(client, wait_replicas, wait_ms) if wait_replicas else client.pipeline(transaction=True)


class ConfirmedPipeline(Pipeline):
    """WAIT asks about its own connection's writes, and a pipeline gives that back once it has executed."""

    def __init__(self, client: "redis.asyncio.Redis", wait_replicas: int, wait_ms: int) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction=True, shard_hint=None)
        self._wait_replicas, self._wait_ms = wait_replicas, wait_ms

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: Any) -> list[object]:
        replies: list[object] = await super()._execute_transaction(connection, commands, raise_on_error)
        await connection.send_command("WAIT", self._wait_replicas, self._wait_ms)
        n_confirmed = await self.parse_response(connection, "WAIT")
        if n_confirmed < self._wait_replicas:
            raise UnconfirmedError(f"{n_confirmed} of {self._wait_replicas} replicas")
        return replies
