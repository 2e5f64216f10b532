"""A cluster's nodes, each with a client of ours, and the map of which node has which keys.

What lives here: `ClusterClient` for a running service and `CommandClients` for commands in a terminal. All keys of a
user lie in one hash slot, so every call has one node, and a transaction is that node's. redis-py's own asyncio cluster
client (8.1) starts a thread and an event loop for every command queued in a transaction, and has pools that raise
instead of waiting: it is not used. Called by `user_store.py`, `store_load.py` and `store_tools.py`. Never retries, but
for a key that a node says has moved: it did nothing, and names another one.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import redis
import redis.asyncio
from redis import exceptions
from redis.crc import key_slot

from service.redis_client import STORE_ERRORS, StoreSettings, async_client, command_client, tls_files
from service.store_address import Node, StoreAddress, parse_address

# After these a node is not, or no longer, the one to ask.
_ELSEWHERE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.AskError,
    exceptions.ClusterDownError,
    exceptions.ReadOnlyError,
    OSError,
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class SlotMap:
    """Ranges of hash slots in their order, and the primary of each."""

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()
    primaries: tuple[Node, ...] = ()

    def node_of(self, key: str) -> Node | None:
        """The primary that has the key; None where nobody has its slot."""
        place = self._place_of(key)
        return None if place is None else self.primaries[place]

    def range_of(self, key: str) -> str:
        """The name of the range with the key's slot; "" where there is none."""
        place = self._place_of(key)
        return "" if place is None else f"{self.firsts[place]}-{self.lasts[place]}"

    def _place_of(self, key: str) -> int | None:
        slot = key_slot(key.encode())
        place = bisect_right(self.firsts, slot) - 1
        return place if place >= 0 and slot <= self.lasts[place] else None


def read_slots(reply: object, asked: Node) -> SlotMap:
    """The map in a reply to CLUSTER SLOTS. A node that does not know its own address is the one that was asked.

    Raises:
        redis.exceptions.InvalidResponse: a reply of another shape.
    """
    try:
        rows = sorted(_row(one, asked) for one in _list(reply))
    except (TypeError, ValueError) as error:
        raise exceptions.InvalidResponse("CLUSTER SLOTS has an unknown shape") from error
    return SlotMap(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows))


class ClusterClient:
    """Calls on the node that has the key. Connects at first use.

    When a node fails the others are asked, in the background, who has its slots now: keys of healthy nodes never wait
    for that.

    Args:
        url: `redis+cluster://` or `rediss+cluster://`.
        settings: limits; the pool's size is each node's.
    """

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self._address, self._settings = parse_address(url), settings
        self._clients: dict[Node, redis.asyncio.Redis] = {}
        self._slots = SlotMap()
        self._asking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def shard_of(self, key: str) -> str:
        """The name of the slots that are one node's, the key's among them; "" as long as nothing is known.

        It stays the same when another node takes them over.
        """
        return self._slots.range_of(key)

    async def run(self, key: str, work: Callable[["redis.asyncio.Redis"], Awaitable[Result]]) -> Result:
        """What `work` makes of the client of the key's node, which must raise a refusal and not return it.

        Raises whatever `work` raises, STORE_ERRORS if there is no such node.
        """
        try:
            return await work(await self._client_of(key))
        except exceptions.MovedError:
            await self._asked()
            return await work(await self._client_of(key))
        except _ELSEWHERE as error:
            node = self._slots.node_of(key)
            self._ask_soon(last=node if isinstance(error, (OSError, exceptions.ConnectionError)) else None)
            raise

    async def aclose(self) -> None:
        """Lets go of all connections."""
        if self._asking is not None:
            await asyncio.wait({self._asking})
        await asyncio.gather(*self._closing, *(client.aclose() for client in self._clients.values()))
        self._clients.clear()

    async def _client_of(self, key: str) -> "redis.asyncio.Redis":
        if not self._slots.primaries:
            await self._asked()
        node = self._slots.node_of(key)
        if node is None:
            self._ask_soon()
            raise exceptions.ConnectionError("no node has this slot")
        return self._client(node)

    def _client(self, node: Node) -> "redis.asyncio.Redis":
        if node not in self._clients:
            self._clients[node] = async_client(_node_url(self._address, node), self._settings)
        return self._clients[node]

    async def _asked(self) -> None:
        """Waits for the map; a caller that gives up does not end the question of the others."""
        await asyncio.shield(self._ask_soon())

    def _ask_soon(self, last: Node | None = None) -> "asyncio.Task[None]":
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(last))
            # Nobody may be waiting for it.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _ask(self, last: Node | None) -> None:
        """Takes the map of the first node that has one. Raises STORE_ERRORS if none has."""
        trouble: Exception = exceptions.ConnectionError("no node answers")
        for node in _in_turn(self._slots, self._address, last):
            try:
                reply = await self._client(node).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
                slots = read_slots(reply, node)
            except STORE_ERRORS as error:
                trouble = error
                continue
            if slots.primaries:
                self._slots = slots
                self._forget_departed()
                return
        raise trouble

    def _forget_departed(self) -> None:
        for node in set(self._clients) - set(self._slots.primaries) - set(self._address.nodes):
            task = asyncio.create_task(self._clients.pop(node).aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class CommandClients:
    """Blocking clients for commands in a terminal: one for one server or behind sentinels, a cluster's one per node."""

    def __init__(self, url: str, settings: StoreSettings, timeout_s: float = 5.0) -> None:
        self._address, self._url = parse_address(url), url
        self._timeout_s, self._tls = timeout_s, tls_files(settings)
        self._clients: dict[Node, redis.Redis] = {}
        self._slots = SlotMap()
        self.is_cluster = self._address.mode == "cluster"
        self._only = None if self.is_cluster else command_client(url, timeout_s, self._tls, settings.sentinels)

    def of(self, key: str) -> redis.Redis:
        """The client of the server that has the key. Raises STORE_ERRORS if there is none."""
        if self._only is not None:
            return self._only
        if not self._slots.primaries:
            self._ask()
        node = self._slots.node_of(key)
        if node is None:
            raise exceptions.ConnectionError("no node has this slot")
        return self._client(node)

    def all(self) -> list[redis.Redis]:
        """The only client, or that of each primary. Raises STORE_ERRORS."""
        if self._only is not None:
            return [self._only]
        if not self._slots.primaries:
            self._ask()
        return [self._client(node) for node in sorted(set(self._slots.primaries))]

    def forget(self) -> None:
        """To be called after a failure: who has which key is asked anew."""
        self._slots = SlotMap()

    def close(self) -> None:
        """Closes all connections."""
        for client in (*self._clients.values(), *([self._only] if self._only else [])):
            client.close()

    def _client(self, node: Node) -> redis.Redis:
        if node not in self._clients:
            self._clients[node] = command_client(_node_url(self._address, node), self._timeout_s, self._tls)
        return self._clients[node]

    def _ask(self) -> None:
        trouble: Exception = exceptions.ConnectionError("no node answers")
        for node in [*self._address.nodes, *(one for one in self._clients if one not in self._address.nodes)]:
            try:
                self._slots = read_slots(self._client(node).execute_command("CLUSTER", "SLOTS"), node)  # type: ignore[no-untyped-call]
            except STORE_ERRORS as error:
                trouble = error
                continue
            if self._slots.primaries:
                return
        raise trouble


def _in_turn(slots: SlotMap, address: StoreAddress, last: Node | None) -> list[Node]:
    """Whom to ask: known primaries, then the URL's nodes, and the one that has just failed at the end."""
    nodes = list(dict.fromkeys([*slots.primaries, *address.nodes]))
    return sorted(nodes, key=lambda node: node == last)


def _node_url(address: StoreAddress, node: Node) -> str:
    """The URL of one node, for the clients of `redis_client.py`."""
    who = ""
    if address.user or address.password:
        who = f"{quote(address.user or '', safe='')}:{quote(address.password or '', safe='')}@"
    host = f"[{node[0]}]" if ":" in node[0] else node[0]
    return f"{'rediss' if address.is_tls else 'redis'}://{who}{host}:{node[1]}/0"


def _list(reply: object) -> list[Any]:
    if not isinstance(reply, list):
        raise TypeError("not a list")
    return reply


def _row(found: object, asked: Node) -> tuple[int, int, Node]:
    first, last, primary, *_ = _list(found)
    host, port, *_ = _list(primary)
    text = host.decode() if isinstance(host, bytes) else str(host or "")
    return int(first), int(last), (text if text not in ("", "?") else asked[0], int(port))
