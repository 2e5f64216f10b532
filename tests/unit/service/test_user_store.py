"""One suite for the port: the same tests on the store in memory and on a real server."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio
from redis.crc import key_slot

from service import behaviour_codec, user_store
from service.behaviour_codec import (
    MAX_ID_BYTES,
    N_SLOTS,
    USER_SUFFIXES,
    end_of_second,
    hash_slot,
    tombstone_key,
    user_key,
)
from service.embedded_store import embedded_store
from service.errors import StoreFull, StoreUnavailable
from service.redis_client import command_client
from service.store_load import load
from service.store_tools import inspect_user
from service.user_store import (
    AppendResult,
    BehaviourEvent,
    Erased,
    MemoryUserStore,
    RedisUserStore,
    StoreCounts,
    StoredBehaviour,
    StoredUser,
    StoreSettings,
    UserStore,
)

NOW = 1_795_000_000_000
DAY = 86_400_000
KINDS = ("memory", "redis")

Test = Callable[[UserStore], Awaitable[None]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        yield url


@pytest.fixture(params=KINDS)
def on_store(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Runs a coroutine on an empty store whose clock stands at NOW."""
    if request.param == "redis":
        url = request.getfixturevalue("url")
        client = command_client(url)
        client.flushall()
        client.close()

    def run(test: Test) -> None:
        async def main() -> None:
            store: UserStore = MemoryUserStore(clock=lambda: NOW)
            if request.param == "redis":
                store = RedisUserStore(patient(url), clock=lambda: NOW)
            try:
                await test(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run


def patient(url: str) -> StoreSettings:
    """Limits that a busy machine cannot reach: what is tested here is what comes back, not when."""
    return StoreSettings(url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)


def plain(client: object) -> "redis.asyncio.Redis":
    """The client of one server."""
    assert isinstance(client, redis.asyncio.Redis)
    return client


def click(item: str, at: int, user: str = "u_1", kind: str = "click", surface: str | None = None) -> BehaviourEvent:
    return BehaviourEvent(user, item, kind, at, surface)


def items(user: StoredUser) -> list[str]:
    return [behaviour.item for behaviour in user.behaviours]


def test_an_unknown_user_is_empty_and_not_degraded(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        assert await store.fetch("nobody", NOW) == StoredUser({}, (), ())

    on_store(test)


def test_what_was_appended_is_there_in_time_order(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        events = [click("b", NOW - 2_000, kind="cart"), click("c", NOW - 1_500), click("a", NOW - 3_999)]
        assert await store.append(events) == AppendResult(3, 0)
        user = await store.fetch("u_1", NOW)
        assert user.behaviours == (
            StoredBehaviour("a", NOW - 4_000, "click"),
            StoredBehaviour("b", NOW - 2_000, "cart"),
            StoredBehaviour("c", NOW - 2_000, "click"),
        )
        assert user.degraded == ()

    on_store(test)


def test_a_behaviour_sent_again_changes_nothing_and_is_counted(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        one = click("a", NOW - 9_000)
        assert await store.append([one, one]) == AppendResult(1, 1)
        assert await store.append([one, click("a", NOW - 8_500)]) == AppendResult(0, 2)
        before = await store.fetch("u_1", NOW)
        assert items(before) == ["a"]

    on_store(test)


def test_the_identity_is_user_item_type_second_and_surface(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        variants = [
            click("a", NOW - 9_000),
            click("b", NOW - 9_000),
            click("a", NOW - 9_000, kind="cart"),
            click("a", NOW - 7_000),
            click("a", NOW - 9_000, surface="home"),
            click("a", NOW - 9_000, user="u_2"),
        ]
        assert await store.append(variants) == AppendResult(6, 0)
        assert len((await store.fetch("u_1", NOW)).behaviours) == 5
        assert len((await store.fetch("u_2", NOW)).behaviours) == 1

    on_store(test)


def test_nothing_at_or_after_the_request_is_seen(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        await store.append([click("before", NOW - 1), click("at", NOW), click("after", NOW + 60_000)])
        assert items(await store.fetch("u_1", NOW)) == ["before"]
        assert items(await store.fetch("u_1", NOW + 1)) == ["before", "at"]

    on_store(test)


def test_the_window_holds_on_read_for_users_who_stopped_writing(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        await store.append([click("old", NOW - 13 * DAY), click("new", NOW - DAY)])
        assert items(await store.fetch("u_1", NOW)) == ["old", "new"]
        assert items(await store.fetch("u_1", NOW + 2 * DAY)) == ["new"]
        assert items(await store.fetch("u_1", NOW + DAY)) == ["new"]
        assert items(await store.fetch("u_1", NOW + DAY - 1)) == ["old", "new"]

    on_store(test)


def test_the_newest_58_stay(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        events = [click(f"i_{number}", NOW - number * 1_000) for number in range(1, 101)]
        assert await store.append(events[40:]) == AppendResult(60, 0)
        assert await store.append(events[:40]) == AppendResult(40, 0)
        assert items(await store.fetch("u_1", NOW)) == [f"i_{number}" for number in range(58, 0, -1)]

    on_store(test)


def test_late_behaviours_fall_into_time_order(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        for item, age in (("c", 1), ("a", 3), ("b", 2)):
            await store.append([click(item, NOW - age * 60_000)])
        assert items(await store.fetch("u_1", NOW)) == ["a", "b", "c"]

    on_store(test)


def test_a_call_with_hundreds_of_users(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        events = [click(f"i_{number}", NOW - 1_000, user=f"u_{number % 300}") for number in range(900)]
        assert await store.append(events) == AppendResult(900, 0)
        assert await store.append(events) == AppendResult(0, 900)
        assert set(items(await store.fetch("u_7", NOW))) == {"i_7", "i_307", "i_607"}

    on_store(test)


def test_no_events_are_no_work(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        assert await store.append([]) == AppendResult(0, 0)

    on_store(test)


@pytest.mark.parametrize("bad", [click("a", NOW, kind="impression"), click("", NOW), click("a", NOW, user="\n")])
def test_what_is_no_behaviour_is_refused_before_anything_is_stored(
    on_store: Callable[[Test], None], bad: BehaviourEvent
) -> None:
    async def test(store: UserStore) -> None:
        with pytest.raises(ValueError, match=r"stored|an id"):
            await store.append([click("a", NOW - 1_000), bad])
        assert await store.fetch("u_1", NOW) == StoredUser()

    on_store(test)


def test_profiles(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        await store.put_profile("u_1", {"city": "hz", "age": 31})
        await store.put_profile("u_1", {"city": "杭州"})
        assert await store.fetch("u_1", NOW) == StoredUser({"city": "杭州"})
        assert (await store.fetch("u_2", NOW)).attributes == {}

    on_store(test)


@pytest.mark.parametrize("user", ["a}b", "{a}", "%7B", "{", "用户", "e\u0301", "x" * MAX_ID_BYTES, "a:b", "a b"])
def test_odd_user_ids_keep_to_themselves(on_store: Callable[[Test], None], user: str) -> None:
    async def test(store: UserStore) -> None:
        await store.append([click("mine", NOW - 1_000, user=user), click("theirs", NOW - 1_000, user="a")])
        await store.put_profile(user, {"n": 1})
        assert await store.fetch(user, NOW) == StoredUser({"n": 1}, (StoredBehaviour("mine", NOW - 1_000, "click"),))

    on_store(test)


def test_two_spellings_of_one_id_are_one_user(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        await store.append([click("a", NOW - 1_000, user="caf\u00e9")])
        assert items(await store.fetch("cafe\u0301", NOW)) == ["a"]

    on_store(test)


# From here on: what only the real server has.


def on_redis(url: str, test: Callable[[RedisUserStore], Awaitable[None]]) -> StoreCounts:
    counts = StoreCounts()
    client = command_client(url)
    client.flushall()
    client.close()

    async def main() -> None:
        store = RedisUserStore(patient(url), observer=counts, clock=lambda: NOW)
        await test(store)
        await store.close()

    asyncio.run(main())
    return counts


def test_keys_have_the_documented_names_and_a_time_to_live(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.append([click("a", NOW - 1_000, user="u{1}")])
        await store.put_profile("u{1}", {"city": "hz"})
        keys = {key: await plain(store.writes).ttl(key) for key in await plain(store.writes).keys("*")}
        assert set(keys) == {b"daian:1:main:{u%7B1%7D}:b", b"daian:1:main:{u%7B1%7D}:p"}
        assert 15 * 86_400 <= keys[b"daian:1:main:{u%7B1%7D}:b"] <= 15 * 86_400 * 1.1
        assert 90 * 86_400 - 5 <= keys[b"daian:1:main:{u%7B1%7D}:p"] <= 90 * 86_400

    on_redis(url, test)


def test_what_left_the_window_or_the_58_is_removed_from_the_server(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.append([click(f"i_{number}", NOW - number * 1_000) for number in range(100)])
        assert await plain(store.writes).zcard("daian:1:main:{u_1}:b") == 58
        await store.append([click("old", NOW - 15 * DAY, user="u_2"), click("new", NOW - 1_000, user="u_2")])
        assert await plain(store.writes).zcard("daian:1:main:{u_2}:b") == 1

    on_redis(url, test)


def test_a7_members_that_are_not_this_users_are_left_out_and_counted(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.append([click("mine", NOW - 1_000), click("theirs", NOW - 2_000, user="u_2")])
        theirs = (await plain(store.writes).zrange("daian:1:main:{u_2}:b", 0, -1))[0]
        await plain(store.writes).zadd(
            "daian:1:main:{u_1}:b", {theirs: NOW - 2_000, b"noise": NOW - 3_000, b"": NOW - 4_000}
        )
        user = await store.fetch("u_1", NOW)
        assert items(user) == ["mine"]
        assert user.degraded == ("behaviours_corrupt",)

    assert on_redis(url, test).counts["corrupt", "member"] == 3


@pytest.mark.parametrize("suffix", ["b", "p", "x"])
def test_a7_a_key_of_the_wrong_type_costs_no_more_than_itself(url: str, suffix: str) -> None:
    key = tombstone_key("main", "u_1") if suffix == "x" else user_key("main", "u_1", suffix)

    async def test(store: RedisUserStore) -> None:
        await store.append([click("mine", NOW - 1_000)])
        await store.put_profile("u_1", {"city": "hz"})
        await plain(store.writes).delete(key)
        await plain(store.writes).rpush(key, "x")
        for _ in range(5):
            user = await store.fetch("u_1", NOW)
            assert user.degraded == ("behaviours_corrupt",)
            assert items(user) == (["mine"] if suffix == "p" else [])
            assert user.attributes == ({} if suffix == "p" else {"city": "hz"})
        assert (await store.fetch("u_2", NOW)).degraded == ()

    assert ("breaker", "read", "open") not in on_redis(url, test).counts


def test_a7_a_profile_of_another_user_is_not_used(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.put_profile("u_2", {"city": "hz"})
        await plain(store.writes).copy("daian:1:main:{u_2}:p", "daian:1:main:{u_1}:p")
        assert await store.fetch("u_1", NOW) == StoredUser({}, (), ("behaviours_corrupt",))

    assert on_redis(url, test).counts["corrupt", "profile"] == 1


def test_behaviours_before_an_erasure_are_never_read_again(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.append([click("before", NOW - 60_000), click("after", NOW - 1_000)])
        await plain(store.writes).set(tombstone_key("main", "u_1"), NOW - 30_000)
        assert items(await store.fetch("u_1", NOW)) == ["after"]
        await plain(store.writes).set(tombstone_key("main", "u_1"), "soon")
        assert await store.fetch("u_1", NOW) == StoredUser({}, (), ("behaviours_corrupt",))

    on_redis(url, test)


def test_a_tenant_is_a_world_of_its_own(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        await store.append([click("a", NOW - 1_000)])
        other = RedisUserStore(replace(patient(url), tenant="other"), clock=lambda: NOW)
        assert await other.fetch("u_1", NOW) == StoredUser()
        await other.close()

    on_redis(url, test)


def documented_users() -> dict[str, list[str]]:
    """Name and rules of each ACL user in the operator's page."""
    page = (Path(__file__).parents[3] / "docs" / "operate.md").read_text()
    lines = [line.split() for line in page.splitlines() if line.startswith("ACL SETUSER")]
    return {name: [rule.replace(">PASSWORD", ">secret") for rule in rules] for _, _, name, *rules in lines}


@contextmanager
def narrow_users(url: str) -> Iterator[StoreSettings]:
    """Settings that read and write as the documented users."""
    users = documented_users()
    assert set(users) == {"rank", "events"}
    with ExitStack() as stack:
        admin = command_client(url)
        stack.callback(admin.close)
        stack.callback(lambda: admin.acl_deluser(*users))
        admin.flushall()
        for name, rules in users.items():
            admin.execute_command("ACL", "SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]
        rank, events = (url.replace("unix://", f"unix://{name}:secret@") for name in users)
        yield replace(patient(rank), events_url=events)


def test_narrow_acl_users_can_do_their_work_and_nothing_else(url: str) -> None:
    """The two users of the documented ACL: one may read, the other also write; neither may look around."""

    async def test(store: RedisUserStore) -> None:
        assert await store.append([click("a", NOW - 1_000)]) == AppendResult(1, 0)
        await store.put_profile("u_1", {"city": "hz"})
        assert items(await store.fetch("u_1", NOW)) == ["a"]
        assert await store.erase("u_1") == Erased(1, 1, 0)
        assert await store.append([click("a", NOW - 1_000)]) == AppendResult(0, 0, 1)
        refused = [(store.reads, "ZADD daian:1:main:{u_1}:b 1 a"), (store.reads, "GET k"), (store.writes, "KEYS *")]
        refused += [(store.reads, "SET daian:1:main:{u_1}:p x"), (store.writes, "FLUSHALL"), (store.writes, "SET k 1")]
        for client, command in (*refused, (store.reads, "MULTI"), (store.writes, "CONFIG GET maxmemory")):
            with pytest.raises(Exception, match="permission"):
                await plain(client).execute_command(*command.split())

    async def main(settings: StoreSettings) -> None:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            await test(store)
        finally:
            await store.close()

    with narrow_users(url) as settings:
        asyncio.run(main(settings))


def test_who_may_rank_may_not_write(url: str) -> None:
    async def main(settings: StoreSettings) -> None:
        store = RedisUserStore(replace(settings, events_url=None), clock=lambda: NOW)
        try:
            for call in (store.append([click("a", NOW - 1_000)]), store.put_profile("u_1", {}), store.erase("u_1")):
                with pytest.raises(StoreUnavailable):
                    await call
            assert await store.fetch("u_1", NOW) == StoredUser()
            assert isinstance(store.observer, StoreCounts)
            assert store.observer.counts["failed", "write", "permission"] == 2
        finally:
            await store.close()

    with narrow_users(url) as settings:
        asyncio.run(main(settings))


def test_a_narrow_user_can_load_in_bulk_and_have_it_confirmed(url: str, tmp_path: Path) -> None:
    file = tmp_path / "users.ndjson"
    file.write_text('{"user": "u_1", "behaviours": [{"item": "i", "at": 1794999999000, "type": "click"}]}')
    with narrow_users(url) as settings:
        report = load(settings, [str(file)], now=NOW, progress=False)
        assert (report.n_new, report.is_confirmed) == (1, True)
        assert isinstance(inspect_user(settings, "u_1", now=NOW)["behaviours"], list)


# --- erasure ----------------------------------------------------------------------------------------------------------


def test_erasing_removes_everything_and_says_how_much(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        await store.append([click("a", NOW - 9_000), click("b", NOW - 8_000), click("a", NOW - 9_000, user="u_2")])
        await store.put_profile("u_1", {"city": "hz"})
        assert await store.erase("u_1") == Erased(2, 1, 0)
        assert await store.fetch("u_1", NOW) == StoredUser()
        assert items(await store.fetch("u_2", NOW)) == ["a"]
        assert await store.erase("u_1") == Erased(0, 0, 0)  # again: nothing, and no error
        assert await store.erase("nobody") == Erased(0, 0, 0)

    on_store(test)


def test_g18_what_was_erased_does_not_come_back_and_what_is_younger_counts(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        late, other = click("a", NOW - 9_000), click("a", NOW - 9_000, user="u_2")
        await store.append([late])
        await store.erase("u_1")
        younger = click("b", end_of_second(NOW) + 1)
        assert await store.append([late, click("a", NOW), other]) == AppendResult(1, 0, 2)
        assert (await store.fetch("u_1", NOW + 5_000)).behaviours == ()
        assert await store.append([late, younger, younger]) == AppendResult(1, 1, 1)
        assert items(await store.fetch("u_1", NOW + 5_000)) == ["b"]
        assert items(await store.fetch("u_2", NOW)) == ["a"]

    on_store(test)


def what_is_left(url: str, monkeypatch: pytest.MonkeyPatch, saboteur: str) -> tuple[int, int]:
    """(members in the store, behaviours read) of an erased user whose event was sent again."""
    left = (-1, -1)

    async def test(store: RedisUserStore) -> None:
        nonlocal left
        late = click("a", NOW - 9_000)
        await store.append([late])
        await store.erase("u_1")
        if saboteur == "no_tombstone":
            await plain(store.writes).delete(tombstone_key("main", "u_1"))
        if saboteur == "no_removal":
            monkeypatch.setattr(user_store, "queue_removal", lambda pipe, *_: pipe.execute_command("PING"))
        await store.append([late])
        n_read = len((await store.fetch("u_1", NOW)).behaviours)
        left = await plain(store.writes).zcard(user_key("main", "u_1", "b")), n_read

    on_redis(url, test)
    return left


@pytest.mark.parametrize(("saboteur", "left"), [("", (0, 0)), ("no_removal", (1, 0)), ("no_tombstone", (1, 1))])
def test_g18_a_late_event_leaves_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, saboteur: str, left: tuple[int, int]
) -> None:
    """Without the removal it is stored and not read, without the tombstone it is back."""
    assert what_is_left(url, monkeypatch, saboteur) == left


def test_g18_the_mark_of_an_erasure_holds_no_id_lies_in_the_users_slot_and_ends(url: str) -> None:
    async def test(store: RedisUserStore) -> None:
        for user in ("u_1", "{x}:b", "日本", "100%"):
            await store.erase(user)
            key = tombstone_key("main", user)
            assert user not in key
            assert key_slot(key.encode()) == key_slot(user_key("main", user, "b").encode())
            assert 73 * 86_400 < await plain(store.writes).ttl(key) <= 74 * 86_400
            assert await plain(store.writes).get(key) == str(end_of_second(NOW)).encode()
        assert len(await plain(store.writes).keys("*")) == 4

    on_redis(url, test)


def test_every_hash_slot_can_be_reached() -> None:
    assert all(hash_slot(behaviour_codec._tag_in(slot)) == slot for slot in range(0, N_SLOTS, 7))
    assert hash_slot("123456789") == 0x31C3 == key_slot(b"{123456789}x")


def test_the_same_user_of_another_tenant_is_another_user(on_store: Callable[[Test], None]) -> None:
    async def test(store: UserStore) -> None:
        for tenant, item in ((None, "a"), ("shop", "b")):
            await store.append([click(item, NOW - 9_000)], tenant)
            await store.put_profile("u_1", {"of": item}, tenant)
        assert items(await store.fetch("u_1", NOW)) == items(await store.fetch("u_1", NOW, "main")) == ["a"]
        assert await store.erase("u_1", "shop") == Erased(1, 1, 0)
        assert await store.fetch("u_1", NOW, "shop") == StoredUser()
        assert (await store.fetch("u_1", NOW)).attributes == {"of": "a"}

    on_store(test)


def test_a6_erasing_works_on_a_full_server_and_while_its_writes_are_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store_fullness.EVERY_S", 3600.0)  # nobody sees it come

    async def test() -> None:
        client = command_client(url)
        client.flushall()
        store = RedisUserStore(replace(patient(url), breaker_failures=1, breaker_open_ms=60_000), clock=lambda: NOW)
        try:
            await store.append([click("a", NOW - 9_000)])
            client.config_set("maxmemory", "1")
            for _ in range(2):
                with pytest.raises((StoreFull, StoreUnavailable)):
                    await store.append([click("b", NOW - 9_000)])
            assert await store.erase("u_1") == Erased(1, 0, 0, is_sealed=False)
            store._erase_calls = store._write_calls  # the saboteur: one breaker for both
            with pytest.raises(StoreUnavailable):
                await store.erase("u_1")
        finally:
            client.config_set("maxmemory", "0")
            client.close()
            await store.close()

    asyncio.run(test())


def test_whatever_is_under_a_users_keys_goes_of_whatever_type(url: str) -> None:
    async def test() -> None:
        client = command_client(url)
        client.flushall()
        for suffix in USER_SUFFIXES:
            client.lpush(user_key("main", "u_1", suffix), "x")
        store = RedisUserStore(patient(url), clock=lambda: NOW)
        assert await store.erase("u_1") == Erased(0, 1, 1)
        assert client.keys("*") == [tombstone_key("main", "u_1").encode()]
        await store.close()
        client.close()

    asyncio.run(test())


def test_an_erasure_that_did_not_happen_is_not_acknowledged() -> None:
    async def test() -> None:
        store = RedisUserStore(StoreSettings("redis://127.0.0.1:9"))
        with pytest.raises(StoreUnavailable):
            await store.erase("u_1")
        await store.close()

    asyncio.run(test())
