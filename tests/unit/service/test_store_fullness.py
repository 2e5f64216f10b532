"""A store whose memory is nearly full takes no events until there is room again, on a real server."""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from service import store_fullness as module
from service import user_store
from service.embedded_store import embedded_store
from service.errors import StoreFull, StoreUnavailable
from service.redis_client import StoreSettings, command_client
from service.store_fullness import Fullness
from service.user_store import AppendResult, BehaviourEvent, Erased, RedisUserStore, StoreCounts

NOW = 1_795_000_000_000
FILLER = 30 << 20  # so that a percent is more than connections come to


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        yield url


@pytest.fixture
def server(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """Looked at before every write; no limit yet."""
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    client = command_client(url)
    client.flushall()
    client.set("filler", b"x" * FILLER)
    client.connection_pool.disconnect()  # with it goes what the server had kept to read the filler into
    try:
        yield client
    finally:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.close()


def fill(server: redis.Redis, share: float) -> None:
    """Sets the limit so that so much of it is used."""
    found = server.info("memory")
    used = found["used_memory"] - found["mem_not_counted_for_evict"]
    server.config_set("maxmemory", str(int(used / share)))


def click(item: str, user: str = "u_1") -> BehaviourEvent:
    return BehaviourEvent(user, item, "click", NOW - 1_000)


def patient(url: str) -> StoreSettings:
    return StoreSettings(url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)


@contextmanager
def opened(url: str) -> Iterator[Callable[[Callable[[RedisUserStore], Awaitable[None]]], None]]:
    with asyncio.Runner() as runner:
        store = RedisUserStore(patient(url), clock=lambda: NOW)

        async def run(work: Callable[[RedisUserStore], Awaitable[None]]) -> None:
            await work(store)

        yield lambda work: runner.run(run(work))
        runner.run(store.close())


async def is_taken(store: RedisUserStore, item: str) -> bool:
    try:
        return await store.append([click(item)]) == AppendResult(1, 0)
    except StoreFull:
        return False


def what_is_taken(url: str, server: redis.Redis, *shares: float) -> list[bool]:
    """Whether an event is, one after the other, at so much used memory."""
    found = list[bool]()
    with opened(url) as on_store:

        async def work(store: RedisUserStore) -> None:
            for number, share in enumerate(shares):
                fill(server, share)
                found.append(await is_taken(store, f"i{number}"))

        on_store(work)
    return found


SHARES = (0.93, 0.97, 0.93, 0.97, 0.92, 0.87, 0.93)


def test_a6_events_are_refused_above_95_percent_until_below_90(
    url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    assert what_is_taken(url, server, *SHARES) == [True, False, False, False, False, True, True]
    said = [record.getMessage() for record in caplog.records if record.name == "daian.store"]
    assert [line.partition(": ")[2] for line in said] == [
        "events are refused until it is less than 90%",
        "events are taken again",
    ]


def test_a6_without_the_gap_it_flaps(url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", module.FULL)
    assert what_is_taken(url, server, *SHARES) == [True, False, True, False, True, True, True]


def test_a6_without_the_look_events_are_taken_to_the_last_byte(
    url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(RedisUserStore, "_check_room", nothing)
    assert what_is_taken(url, server, *SHARES) == [True] * len(SHARES)


def test_a6_a_nearly_full_store_is_read_and_erases_and_keeps_the_mark(url: str, server: redis.Redis) -> None:
    async def work(store: RedisUserStore) -> None:
        await store.append([click("a")])
        fill(server, 0.97)
        with pytest.raises(StoreFull):
            await store.put_profile("u_1", {"city": "hz"})
        for _ in range(10):  # refused by us: no breaker counts it, and the answer stays 507
            with pytest.raises(StoreFull):
                await store.append([click("b"), click("c", "u_2")])
        assert [one.item for one in (await store.fetch("u_1", NOW)).behaviours] == ["a"]
        assert await store.erase("u_1") == Erased(1, 0, 0, is_sealed=True)
        assert isinstance(store.observer, StoreCounts)
        assert not [one for one in store.observer.counts if one[0] in ("failed", "breaker")]
        assert store.observer.memory_share == pytest.approx(0.97, abs=0.01)
        fill(server, 0.5)
        assert await store.append([click("c", "u_2")]) == AppendResult(1, 0)

    with opened(url) as on_store:
        on_store(work)


def test_what_the_server_itself_refuses_is_refused_until_there_is_room(
    url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: RedisUserStore) -> None:
        fill(server, 0.94)
        assert await is_taken(store, "a")
        with monkeypatch.context() as patched:
            patched.setattr(module, "EVERY_S", 3600.0)
            fill(server, 1.2)  # between two looks
            assert [await is_taken(store, "b") for _ in range(5)] == [False] * 5
            assert isinstance(store.observer, StoreCounts)
            assert store.observer.counts["failed", "write", "full"] == 1
        fill(server, 0.92)
        assert not await is_taken(store, "b")
        fill(server, 0.8)
        assert await is_taken(store, "b")

    with opened(url) as on_store:
        on_store(work)


def test_a_server_that_evicts_is_never_full(url: str, server: redis.Redis) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    assert what_is_taken(url, server, 0.97, 0.99) == [True, True]


def test_without_the_right_to_look_the_server_decides_and_it_is_said_once(
    url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "blind", "reset", "on", ">secret", "+@all", "-info", "~*"
    )
    try:
        blind = url.replace("unix://", "unix://blind:secret@")
        with caplog.at_level(logging.WARNING):
            assert what_is_taken(blind, server, 0.97, 0.97) == [True, True]
    finally:
        server.acl_deluser("blind")
    assert len([one for one in caplog.records if "how full" in one.getMessage()]) == 1


def test_a_store_that_is_away_is_asked_to_write_whatever_the_look_found(url: str) -> None:
    settings = replace(patient(url), url="redis://127.0.0.1:9", breaker_failures=100)

    async def main() -> tuple[int, int]:
        store = RedisUserStore(settings, clock=lambda: NOW)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="away"):
                await store.append([click("a")])
        await store.close()
        assert isinstance(store.observer, StoreCounts)
        counts = store.observer.counts
        return counts["failed", "write", "connection"], counts["failed", "look", "connection"]

    assert asyncio.run(main()) == (3, 1)


def breakers_of_a_server_that_takes_no_writes(url: str, server: redis.Redis) -> StoreCounts:
    """It still says how full it is, before each of five writes."""
    settings = replace(patient(url), breaker_failures=3, breaker_open_ms=60_000)

    async def main() -> StoreCounts:
        store = RedisUserStore(settings, clock=lambda: NOW)
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await store.append([click("a")])
        await store.close()
        assert isinstance(store.observer, StoreCounts)
        return store.observer

    server.config_set("min-replicas-to-write", "1")
    try:
        return asyncio.run(main())
    finally:
        server.config_set("min-replicas-to-write", "0")


def test_a_server_that_refuses_writes_is_given_up_though_it_says_how_full_it_is(url: str, server: redis.Redis) -> None:
    counts = breakers_of_a_server_that_takes_no_writes(url, server).counts
    assert (counts["breaker", "write", "open"], counts["answered", "look"]) == (1, 5)


def test_with_one_breaker_for_looks_and_writes_it_would_not_be(
    url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def through_the_writes(store: RedisUserStore, room: Fullness, key: str) -> bool:
        room.saw(await store._stored(store._write_calls, key, lambda: module.memory_of(store.writes)))  # type: ignore[arg-type]
        return True

    monkeypatch.setattr(RedisUserStore, "_look", through_the_writes)
    assert breakers_of_a_server_that_takes_no_writes(url, server).counts["breaker", "write", "open"] == 0


def test_looks_without_an_answer_cost_no_event_and_go_on_once_their_breaker_lets_them(
    url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(_: object) -> list[object]:
        raise redis.exceptions.ConnectionError

    async def main() -> None:
        store = RedisUserStore(replace(patient(url), breaker_failures=1, breaker_open_ms=500), clock=lambda: NOW)
        with monkeypatch.context() as patched:
            patched.setattr(user_store, "memory_of", unanswered)
            assert await is_taken(store, "a")
        looked_s = store._rooms[""]._looked_s
        assert await is_taken(store, "b")  # the look is refused by its breaker: nobody has looked
        assert store._rooms[""]._looked_s == looked_s
        await asyncio.sleep(0.55)
        fill(server, 0.97)
        assert not await is_taken(store, "c")
        await store.close()
        assert isinstance(store.observer, StoreCounts)
        assert store.observer.counts["failed", "look", "connection"] == 1
        assert not [one for one in store.observer.counts if one[:2] in (("failed", "write"), ("breaker", "write"))]

    asyncio.run(main())


@pytest.mark.parametrize(
    "reply",
    [{}, b"OK", {"used_memory": 1}, {"used_memory": "x", "maxmemory": 1}, 7, None, [], ValueError("NOPERM"),
     {"used_memory": 9, "maxmemory": 0}, {"used_memory": 9, "maxmemory": -1}],
)  # fmt: skip
def test_what_says_nothing_of_a_limit_is_no_reason_to_refuse(reply: object) -> None:
    fullness = Fullness()
    fullness.saw([reply])
    fullness.refused()
    assert (fullness.share, fullness.is_full) == (0.0, False)


def test_one_caller_looks_in_its_time() -> None:
    now_s = [5.0]
    fullness = Fullness(lambda: now_s[0])
    assert (fullness.is_fresh, fullness.is_due(), fullness.is_due(), fullness.is_fresh) == (False, True, False, True)
    now_s[0] += module.EVERY_S
    assert fullness.is_due()
    now_s[0] += module.FRESH_S
    assert not fullness.is_fresh


def test_a_look_that_was_not_let_through_is_due_again_at_once() -> None:
    now_s = [5.0]
    fullness = Fullness(lambda: now_s[0])
    assert fullness.is_due()
    fullness.not_looked()
    assert (fullness.is_fresh, fullness.is_due(), fullness.is_due()) == (False, True, False)
    now_s[0] += module.EVERY_S
    assert fullness.is_due()
    fullness.not_looked()
    assert (fullness.is_fresh, fullness.is_due()) == (True, True)
