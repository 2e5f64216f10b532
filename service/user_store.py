"""What is known about users: their recent behaviours and their profile.

What lives here: the port `UserStore` and its two forms, one in Redis (or Valkey) and one in memory for tests and
stateless runs. `fetch` always answers: what could not be read is missing, and named in `degraded`. `append`,
`put_profile` and `erase` return only after the next `fetch` sees what they did, and raise otherwise.
Called by the ranker (reads) and the events route (writes). Only narrows histories (window, newest `keep`); the rules
that cut them for a model live in `service.contract`. Never retries, never logs an id, never connects before use.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import redis.asyncio
import redis.client
from redis import exceptions

from service.behaviour_codec import (
    MAIN_TENANT,
    BehaviourEvent,
    CorruptBytesError,
    StoredBehaviour,
    decode_members,
    decode_profile,
    encode_member,
    encode_profile,
    end_of_second,
    read_keys,
    time_to_live_s,
    tombstone_key,
    user_key,
)
from service.errors import StoreFull, StoreUnavailable
from service.guarded_calls import CallsByShard, GuardedCalls, NoAnswerError, Replies, StoreCounts, StoreObserver
from service.label_values import CorruptValue, DegradedReason, StoreOperation
from service.redis_client import StoreSettings, async_client, failure_kind
from service.redis_cluster import ClusterClient
from service.redis_replicas import transaction
from service.store_address import parse_address
from service.store_fullness import Fullness, memory_of

__all__ = [
    "AppendResult",
    "BehaviourEvent",
    "Erased",
    "MemoryUserStore",
    "RedisUserStore",
    "StoreCounts",
    "StoreObserver",
    "StoreSettings",
    "StoredBehaviour",
    "StoredUser",
    "UserStore",
]

DAY_MS = 86_400_000
PROFILE_TTL_S = 90 * 86_400
# How long after the window an erasure is remembered: a window that is made longer must not bring anything back.
TOMBSTONE_SPARE_DAYS = 60
# A call's users are written so many at a time: well below the pool, so that no write waits for a connection.
WRITE_LANES = 8

# Later than any behaviour's time.
ALL_ERASED = 1 << 62

Scored = Sequence[tuple[bytes, int]]
Pipeline = redis.asyncio.client.Pipeline
Client = redis.asyncio.Redis | ClusterClient


@dataclass(frozen=True)
class StoredUser:
    """What the store knows of a user. Behaviours in time order, oldest first; `degraded` names what is missing."""

    attributes: dict[str, object] = field(default_factory=dict)
    behaviours: tuple[StoredBehaviour, ...] = ()
    degraded: tuple[DegradedReason, ...] = ()


@dataclass(frozen=True)
class AppendResult:
    """`accepted` behaviours are new, `duplicates` were there already; together with `erased`, all that were sent.

    `erased` ones are not younger than their user's erasure and were not kept.
    """

    accepted: int
    duplicates: int
    erased: int = 0


@dataclass(frozen=True)
class Erased:
    """What was there of a user and is no more: behaviours, a profile (0 or 1), keys of other types.

    `is_sealed`: behaviours up to this moment that arrive later are not kept. False where the store was too full to note
    it: erase again.
    """

    behaviours: int
    profile: int
    other_keys: int
    is_sealed: bool = True


@runtime_checkable
class UserStore(Protocol):
    """Where users' behaviours and profiles are kept. All times are epoch milliseconds.

    The same user id of two tenants is two users. No tenant named: the store's own.
    """

    async def fetch(self, user_id: str, requested_at: int, tenant: str | None = None) -> StoredUser:
        """The user as of `requested_at`: behaviours strictly before it, within the window, the newest `keep`.

        An unknown user is an empty `StoredUser`, and not degraded. Never raises for a store that is away.
        """
        ...

    async def append(self, events: Sequence[BehaviourEvent], tenant: str | None = None) -> AppendResult:
        """Stores behaviours; the same event sent again changes nothing.

        Raises:
            StoreUnavailable, StoreFull: some were not stored; send the whole call again.
            ValueError: an event that `event_rules.judge_event` would have rejected, or an id that cannot be one.
        """
        ...

    async def put_profile(self, user_id: str, attributes: Mapping[str, object], tenant: str | None = None) -> None:
        """Replaces the user's profile. Raises as `append` does."""
        ...

    async def erase(self, user_id: str, tenant: str | None = None) -> Erased:
        """Removes every key of the user, and sees to it that behaviours up to this second do not come back.

        Behaviours dated later are those of a new user.

        Raises:
            StoreUnavailable: it may or may not have happened; send the call again.
            ValueError: an id that cannot be one.
        """
        ...

    async def close(self) -> None:
        """Waits for replies still under way, then lets go of all connections."""
        ...


class MemoryUserStore:
    """Users in this process, gone with it. Keeps the very members that Redis would, in the same order."""

    def __init__(self, window_days: int = 14, keep: int = 58, clock: Callable[[], int] | None = None) -> None:
        self._window_ms = window_days * DAY_MS
        self._keep = keep
        self._clock = clock or wall_clock_ms
        self._members: dict[str, dict[bytes, int]] = {}
        self._profiles: dict[str, bytes] = {}
        self._erased_at: dict[str, int] = {}

    async def fetch(self, user_id: str, requested_at: int, tenant: str | None = None) -> StoredUser:
        key, since = _memory_key(tenant, user_id), requested_at - self._window_ms
        members = self._members.get(key, {})
        within = sorted((at, member) for member, at in members.items() if since < at < requested_at)
        behaviours, _ = decode_members(user_id, [member for _, member in within[-self._keep :]])
        profile = self._profiles.get(key)
        return StoredUser(decode_profile(user_id, profile) if profile else {}, tuple(behaviours))

    async def append(self, events: Sequence[BehaviourEvent], tenant: str | None = None) -> AppendResult:
        n_new, n_erased = 0, 0
        for user_id, scored in members_by_user(events).items():
            key = _memory_key(tenant, user_id)
            younger = [(member, at) for member, at in scored if at > self._erased_at.get(key, -1)]
            n_new += self._add(key, younger)
            n_erased += len(scored) - len(younger)
        return AppendResult(n_new, len(events) - n_new - n_erased, n_erased)

    def _add(self, key: str, scored: Scored) -> int:
        members = self._members.setdefault(key, {})
        n_before = len(members)
        for member, at in scored:
            members[member] = max(at, members.get(member, at))
        n_new, since = len(members) - n_before, self._clock() - self._window_ms
        kept = sorted((at, member) for member, at in members.items() if at > since)[-self._keep :]
        members.clear()
        members.update((member, at) for at, member in kept)
        return n_new

    async def put_profile(self, user_id: str, attributes: Mapping[str, object], tenant: str | None = None) -> None:
        self._profiles[_memory_key(tenant, user_id)] = encode_profile(user_id, attributes)

    async def erase(self, user_id: str, tenant: str | None = None) -> Erased:
        key = _memory_key(tenant, user_id)
        members, profile = self._members.pop(key, {}), self._profiles.pop(key, None)
        now = self._clock()
        since = now - self._window_ms - TOMBSTONE_SPARE_DAYS * DAY_MS
        self._erased_at = {one: at for one, at in self._erased_at.items() if at > since}
        self._erased_at[key] = end_of_second(now)
        return Erased(len(members), int(profile is not None), 0)

    async def close(self) -> None:
        self._members.clear()
        self._profiles.clear()


class RedisUserStore:
    """Users in Redis or Valkey, shared by all processes. Connects at first use; a dead server delays nobody for long.

    Args:
        settings: address and limits.
        observer: told of answers, failures, late replies, corrupt values and breakers.
        clock: epoch milliseconds, for trimming on write and for the time of an erasure.
        reads, writes: ready-made clients in place of those made from `settings`, one pool each.
    """

    def __init__(
        self,
        settings: StoreSettings,
        observer: StoreObserver | None = None,
        clock: Callable[[], int] | None = None,
        reads: "Client | None" = None,
        writes: "Client | None" = None,
    ) -> None:
        self.settings = settings
        self.observer = observer or StoreCounts()
        self.reads = reads or _client(settings.url, settings)
        self.writes = writes or _client(settings.events_url or settings.url, settings)
        self._clock = clock or wall_clock_ms
        self._read_calls = self._calls("read", settings.read_budget_ms / 1000)
        self._write_calls = self._calls("write", None)
        # With a breaker of its own: a full server refuses writes and still erases.
        self._erase_calls = self._calls("erase", None)
        # Too: a server that takes no writes still says how full it is, and that must not hide what becomes of them. And
        # with a budget: where nobody answers, the write behind the look waits for the socket's time-out as it is.
        self._look_calls = self._calls("look", settings.read_budget_ms / 1000)
        self._rooms: dict[str, Fullness] = {}

    def _calls(self, operation: StoreOperation, budget_s: float | None) -> CallsByShard:
        failures, open_s = self.settings.breaker_failures, self.settings.breaker_open_ms / 1000
        return CallsByShard(lambda: GuardedCalls(operation, failures, open_s, budget_s, self.observer))

    async def fetch(self, user_id: str, requested_at: int, tenant: str | None = None) -> StoredUser:
        tenant = tenant or self.settings.tenant
        keys = read_keys(tenant, user_id)
        try:
            replies = await self._read_calls.run(_shard(self.reads, keys[0]), lambda: self._read(keys, requested_at))
        except NoAnswerError:
            return StoredUser(degraded=("behaviours",))
        return self._decoded(user_id, replies)

    async def append(self, events: Sequence[BehaviourEvent], tenant: str | None = None) -> AppendResult:
        settings = replace(self.settings, tenant=tenant) if tenant else self.settings
        batches = list(members_by_user(events).items())
        # The first alone: if the store is away, or is just being probed, one transaction finds out for all.
        results = [await self._add(settings, *batches[0])] if batches else []
        lanes = asyncio.Semaphore(WRITE_LANES)

        async def in_a_lane(user_id: str, scored: Scored) -> AppendResult:
            async with lanes:
                return await self._add(settings, user_id, scored)

        outcomes = await asyncio.gather(*(in_a_lane(*batch) for batch in batches[1:]), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
        n_new, n_erased = sum(one.accepted for one in results), sum(one.erased for one in results)
        return AppendResult(n_new, len(events) - n_new - n_erased, n_erased)

    async def put_profile(self, user_id: str, attributes: Mapping[str, object], tenant: str | None = None) -> None:
        key = user_key(tenant or self.settings.tenant, user_id, "p")
        value = encode_profile(user_id, attributes)
        await self._check_room(key)
        await self._write(key, lambda pipe: pipe.execute_command("SET", key, value, "EX", PROFILE_TTL_S))

    async def erase(self, user_id: str, tenant: str | None = None) -> Erased:
        tenant = tenant or self.settings.tenant
        keys = read_keys(tenant, user_id)
        *replies, sealed = await self._stored(self._erase_calls, keys[0], lambda: self._erase(keys))
        n_behaviours, other, profile = (found if isinstance(found, int) else 0 for found in replies)
        return Erased(n_behaviours, profile, other, bool(sealed))

    async def close(self) -> None:
        await self._read_calls.drain()
        await self._write_calls.drain()
        await self._erase_calls.drain()
        await self._look_calls.drain()
        await self.reads.aclose()
        await self.writes.aclose()

    async def _read(self, keys: Sequence[str], requested_at: int) -> Replies:
        """One round trip: the members of the window, newest first; the profile; the time of erasure."""
        newest, oldest = f"({requested_at}", f"({requested_at - self.settings.window_days * DAY_MS}"

        async def work(client: "redis.asyncio.Redis") -> Replies:
            async with client.pipeline(transaction=False) as pipe:
                pipe.execute_command(
                    "ZRANGE", keys[0], newest, oldest, "BYSCORE", "REV", "LIMIT", 0, self.settings.keep
                )
                pipe.execute_command("GET", keys[1])
                pipe.execute_command("GET", keys[2])
                return _unless_refused(await pipe.execute(raise_on_error=False))

        return await _on_node(self.reads, keys[0], work)

    async def _add(self, settings: StoreSettings, user_id: str, scored: Scored) -> AppendResult:
        """What became of one user's members. Those that an erasure forbids are taken out again, and only then counted.

        That they are forbidden is known by the same transaction that adds them, and no ranking reads them meanwhile.
        """

        def queue(pipe: Pipeline) -> None:
            queue_behaviours(pipe, settings, user_id, scored, self._clock())
            pipe.execute_command("GET", tombstone_key(settings.tenant, user_id))

        key = user_key(settings.tenant, user_id, "b")
        await self._check_room(key)
        replies = await self._write(key, queue)
        n_new, erased_at = _count(replies[0]), erased_at_of(replies[-1])
        if erased_at is None:
            return AppendResult(n_new, len(scored) - n_new)
        n_erased = sum(at <= erased_at for _, at in scored)
        if n_erased:
            removed = await self._write(key, lambda pipe: queue_removal(pipe, settings, user_id, erased_at))
            n_new = max(n_new - _count(removed[0]), 0)
        return AppendResult(n_new, len(scored) - n_new - n_erased, n_erased)

    async def _erase(self, keys: Sequence[str]) -> Replies:
        """Counts of members, of another thing under their key, of the profile; and whether the tombstone stands.

        One transaction, and three where memory is full: what gives memory back goes first then.
        """
        try:
            _, *removed = await self._erasing([self._tombstone(keys[2]), *_removals(keys)])
        except exceptions.OutOfMemoryError:
            removed = await self._erasing(_removals(keys))
            try:
                await self._erasing([self._tombstone(keys[2])])
            except exceptions.OutOfMemoryError:
                return [*removed, False]
        return [*removed, True]

    def _tombstone(self, key: str) -> tuple[object, ...]:
        ttl_s = (self.settings.window_days + TOMBSTONE_SPARE_DAYS) * 86_400
        return ("SET", key, end_of_second(self._clock()), "EX", ttl_s)

    async def _erasing(self, commands: Sequence[tuple[object, ...]]) -> Replies:
        async def work(client: "redis.asyncio.Redis") -> Replies:
            async with self._transaction(client) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return _unless_refused(await pipe.execute(raise_on_error=False))

        return await _on_node(self.writes, str(commands[0][1]), work)

    async def _check_room(self, key: str) -> None:
        """Looks at the memory of the server that has the key, now and then. Raises StoreFull while it is full."""
        room = self._rooms.setdefault(_shard(self.writes, key), Fullness())
        if room.is_due() and not await self._look(room, key):
            return  # nobody knows: the write itself finds out
        if room.is_full:
            raise StoreFull("the behaviour store's memory is nearly full: repeat the call later")

    async def _look(self, room: Fullness, key: str) -> bool:
        """Whether the server said how full it is."""
        try:
            look = self._look_calls.run(_shard(self.writes, key), lambda: _on_node(self.writes, key, memory_of))
            room.saw(await look)
        except NoAnswerError as error:
            if error.kind == "open":
                room.not_looked()
            return False
        self.observer.memory(max(one.share for one in self._rooms.values() if one.is_fresh))
        return True

    async def _write(self, key: str, queue: Callable[[Pipeline], object]) -> Replies:
        """The replies of one transaction on the node that has the key."""

        async def work(client: "redis.asyncio.Redis") -> Replies:
            async with self._transaction(client) as pipe:
                queue(pipe)
                replies: Replies = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

        return await self._stored(self._write_calls, key, lambda: _on_node(self.writes, key, work))

    def _transaction(self, client: "redis.asyncio.Redis") -> Pipeline:
        return transaction(client, self.settings.wait_replicas, self.settings.wait_ms)

    async def _stored(
        self, calls: CallsByShard, key: str, work: Callable[[], Coroutine[object, object, Replies]]
    ) -> Replies:
        """The replies of a call that must not be lost. Raises StoreFull or StoreUnavailable."""
        try:
            return await calls.run(_shard(self.writes, key), work)
        except NoAnswerError as error:
            if error.kind == "full":
                self._rooms.setdefault(_shard(self.writes, key), Fullness()).refused()
                raise StoreFull("the behaviour store's memory is full: repeat the call later") from error
            what = "too few replicas have the write" if error.kind == "unconfirmed" else "the behaviour store is away"
            raise StoreUnavailable(f"{what}: repeat the call as it is") from error

    def _decoded(self, user_id: str, replies: Replies) -> StoredUser:
        """What can be trusted of a reply; the rest is counted, and named once."""
        members, profile, erased = replies
        behaviours, n_corrupt = decode_members(user_id, reversed(members)) if isinstance(members, list) else ([], 1)
        attributes, is_profile_corrupt = _profile(user_id, profile)
        erased_at = erased_at_of(erased)
        # If nobody can say what was erased, nothing may be read.
        is_erased_corrupt = erased_at == ALL_ERASED
        corrupt: dict[CorruptValue, int] = {
            "member": n_corrupt,
            "profile": int(is_profile_corrupt),
            "erased_at": int(is_erased_corrupt),
        }
        for what, n in corrupt.items():
            if n:
                self.observer.corrupt(what, n)
        kept = tuple(one for one in behaviours if erased_at is None or one.at > erased_at)
        return StoredUser(attributes, kept, ("behaviours_corrupt",) if any(corrupt.values()) else ())


def _client(url: str, settings: StoreSettings) -> Client:
    return ClusterClient(url, settings) if parse_address(url).mode == "cluster" else async_client(url, settings)


def _shard(client: Client, key: str) -> str:
    return client.shard_of(key) if isinstance(client, ClusterClient) else ""


async def _on_node(client: Client, key: str, work: "Callable[[redis.asyncio.Redis], Awaitable[Replies]]") -> Replies:
    return await (client.run(key, work) if isinstance(client, ClusterClient) else work(client))


def _memory_key(tenant: str | None, user_id: str) -> str:
    return user_key(tenant or MAIN_TENANT, user_id, "")


def members_by_user(events: Iterable[BehaviourEvent]) -> dict[str, list[tuple[bytes, int]]]:
    """Members and their scores (epoch milliseconds), by user. Raises ValueError for what cannot be a behaviour."""
    by_user: dict[str, list[tuple[bytes, int]]] = {}
    for event in events:
        by_user.setdefault(event.user, []).append((encode_member(event), event.at))
    return by_user


def queue_behaviours(
    pipe: "Pipeline | redis.client.Pipeline", settings: StoreSettings, user_id: str, scored: Scored, now: int
) -> None:
    """Queues the commands that add one user's members: add, drop what left the window, keep the newest, set the end.

    Then whoever calls looks at the tombstone, and queues `queue_removal` if there is one.
    """
    key = user_key(settings.tenant, user_id, "b")
    flat = [part for member, at in scored for part in (at, member)]
    pipe.execute_command("ZADD", key, "GT", *flat)
    pipe.execute_command("ZREMRANGEBYSCORE", key, "-inf", now - settings.window_days * DAY_MS)
    pipe.execute_command("ZREMRANGEBYRANK", key, 0, -(settings.keep + 1))
    pipe.execute_command("EXPIRE", key, time_to_live_s(user_id, settings.window_days))


def queue_removal(
    pipe: "Pipeline | redis.client.Pipeline", settings: StoreSettings, user_id: str, erased_at: int
) -> None:
    """Queues the command that takes out what an erasure forbids."""
    pipe.execute_command("ZREMRANGEBYSCORE", user_key(settings.tenant, user_id, "b"), "-inf", erased_at)


def erased_at_of(reply: object) -> int | None:
    """Up to when a user's behaviours are erased, epoch milliseconds; None = never; `ALL_ERASED` if it is unreadable."""
    if reply is None:
        return None
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() else ALL_ERASED


def wall_clock_ms() -> int:
    """Epoch milliseconds now."""
    return time.time_ns() // 1_000_000


def _unless_refused(replies: Replies) -> Replies:
    """The replies, if the server took the question. A key of the wrong type is this user's trouble alone, and stays."""
    for reply in replies:
        if isinstance(reply, Exception) and failure_kind(reply) != "wrong_type":
            raise reply
    return replies


def _profile(user_id: str, reply: object) -> tuple[dict[str, object], bool]:
    if reply is None:
        return {}, False
    try:
        return (decode_profile(user_id, reply), False) if isinstance(reply, bytes) else ({}, True)
    except CorruptBytesError:
        return {}, True


def _removals(keys: Sequence[str]) -> list[tuple[object, ...]]:
    """The members, counted as they go, then whatever is left under either key, of whatever type."""
    return [("ZREMRANGEBYRANK", keys[0], 0, -1), ("UNLINK", keys[0]), ("UNLINK", keys[1])]


def _count(reply: object) -> int:
    return reply if isinstance(reply, int) else 0
