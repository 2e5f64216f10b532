"""What a ranking sees of a store in trouble: an answer in time, the word for what is missing, and a quick recovery.

The numbers in the names are those of the list of faults. Each protection has a twin that runs with it off and sees the
trouble come through.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis.asyncio
import redis.exceptions
from pydantic import SecretStr
from redis.asyncio.connection import ConnectionPool

from service import behaviour_codec, redis_client
from service.api.parts import Parts
from service.app import running
from service.embedded_store import embedded_store
from service.errors import StoreFull, StoreUnavailable
from service.guarded_calls import GuardedCalls, Replies
from service.redis_client import async_client, command_client
from service.settings import Settings
from service.user_store import AppendResult, BehaviourEvent, RedisUserStore, StoreCounts, StoredUser, StoreSettings
from tests.asgi_client import opened
from tests.chaos.fault_proxy import FaultProxy, fault_proxy
from tests.chaos.scripted_resp import scripted_resp
from tests.chaos.service_process import free_port
from tests.small_bundle import write_small_bundle

NOW = 1_795_000_000_000
BREAKER_OFF = 10**9
# Five times the times of production: the machine that runs the tests does other things at the same moment.
SETTINGS = StoreSettings("", timeout_ms=500, read_budget_ms=100, pool_wait_ms=100)
BUDGET_S = 0.1
# For tests of what comes back, and not of when.
PATIENT = StoreSettings("", timeout_ms=20_000, read_budget_ms=10_000, pool_wait_ms=10_000)
# The machine may stand still for a moment: it costs whoever is asking just then, and never more than a few in a row.
FEW = 4
N_USERS = 20
N_SLOW = 12


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server that knows some users, each with items that nobody else has."""
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        asyncio.run(fill(url))
        yield url


async def fill(url: str) -> None:
    store = RedisUserStore(StoreSettings(url, timeout_ms=5_000), clock=lambda: NOW)
    await store.append(
        [
            BehaviourEvent(f"u_{user}", f"item_of_{user}_{number}", "click", NOW - 1_000 * number)
            for user in range(N_USERS)
            for number in range(1, 21)
        ]
    )
    await store.close()


@dataclass(frozen=True)
class Answer:
    """One fetch: when it was asked (seconds since the start), how long it took, what came."""

    at_s: float
    seconds: float
    user_id: str
    user: StoredUser

    @property
    def is_whole(self) -> bool:
        return not self.user.degraded

    @property
    def is_foreign(self) -> bool:
        return any(not one.item.startswith(f"item_of_{self.user_id[2:]}_") for one in self.user.behaviours)


@asynccontextmanager
async def store_behind(
    proxy: FaultProxy, settings: StoreSettings | None = None, reads: "redis.asyncio.Redis | None" = None
) -> AsyncIterator[RedisUserStore]:
    settings = replace(settings or SETTINGS, url=proxy.url)
    store = RedisUserStore(settings, clock=lambda: NOW, reads=reads)
    try:
        yield store
    finally:
        proxy.reset()
        await store.close()


def plain(client: object) -> "redis.asyncio.Redis":
    """The client of one server."""
    assert isinstance(client, redis.asyncio.Redis)
    return client


async def ask(store: RedisUserStore, n: int, every_s: float = 0.0, started: float | None = None) -> list[Answer]:
    """n fetches, one after the other."""
    answers, started = [], started or time.perf_counter()
    for number in range(n):
        user_id, asked_at = f"u_{number % N_USERS}", time.perf_counter()
        user = await store.fetch(user_id, NOW)
        answers.append(Answer(asked_at - started, time.perf_counter() - asked_at, user_id, user))
        await asyncio.sleep(every_s)
    return answers


def n_slower_than(answers: Sequence[Answer], seconds: float) -> int:
    return sum(answer.seconds > seconds for answer in answers)


def n_whole(answers: Sequence[Answer]) -> int:
    return sum(answer.is_whole for answer in answers)


def on_proxy(url: str, test: Callable[[FaultProxy], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fault_proxy(url) as proxy:
            await test(proxy)

    asyncio.run(main())


async def until_whole(store: RedisUserStore) -> None:
    """Returns once a fetch is whole again; a pause of the breaker and a probe, however busy the machine is."""
    started = time.perf_counter()
    while (await store.fetch("u_1", NOW)).degraded:
        assert time.perf_counter() - started < 20
        await asyncio.sleep(0.01)


def test_a1_down_at_start_then_up(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(proxy: FaultProxy) -> None:
        await proxy.refuse()
        async with store_behind(proxy) as store:
            answers = await ask(store, 50, every_s=0.01)
            assert all(answer.user == StoredUser(degraded=("behaviours",)) for answer in answers)
            assert n_slower_than(answers, BUDGET_S) <= FEW
            await proxy.accept()
            await until_whole(store)

    with caplog.at_level(logging.DEBUG, logger="daian.store"):
        on_proxy(url, test)
    assert caplog.messages == ["store reads: no answer (connection), doing without", "store reads: answering again"]


def test_a2_refused_under_load(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy) as store:
            assert n_whole(await ask(store, 50, every_s=0.002)) >= 50 - FEW
            await proxy.refuse()
            away = await ask(store, 100, every_s=0.005)
            assert not n_whole(away)
            assert n_slower_than(away, BUDGET_S) <= FEW
            await proxy.accept()
            await until_whole(store)
            assert n_whole(await ask(store, 50)) >= 50 - FEW

    on_proxy(url, test)


def test_a2_saboteur_the_default_client_keeps_a_refused_call_for_long(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        await proxy.refuse()
        client = redis.asyncio.Redis(host="127.0.0.1", port=proxy.port)
        patient = StoreSettings("", read_budget_ms=600)
        async with store_behind(proxy, patient, reads=client) as store:
            assert (await ask(store, 1))[0].seconds > 0.5
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    on_proxy(url, test)


async def black_hole(proxy: FaultProxy, max_failures: int) -> list[Answer]:
    async with store_behind(proxy, replace(SETTINGS, breaker_failures=max_failures)) as store:
        await ask(store, 5)
        proxy.mode = "swallow"
        answers = await ask(store, 40, every_s=0.02)
        proxy.mode = "pass"
        await until_whole(store)
    assert all(answer.user.degraded == ("behaviours",) for answer in answers)
    return answers


def test_a3_a_black_hole_costs_the_budget_per_probe_not_per_request(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        answers = await black_hole(proxy, 3)
        seconds = answers[-1].at_s + BUDGET_S
        n_slow = sum(answer.seconds > 0.8 * BUDGET_S for answer in answers)
        assert n_slow <= 3 + seconds / 0.2 + 2, f"{n_slow} of {len(answers)} fetches waited in {seconds:.1f} s"

    on_proxy(url, test)


def test_a3_saboteur_without_the_breaker_every_request_pays(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        answers = await black_hole(proxy, BREAKER_OFF)
        assert n_slower_than(answers, 0.8 * BUDGET_S) > 0.95 * len(answers)

    on_proxy(url, test)


async def n_connections_on_a_slow_server(proxy: FaultProxy) -> tuple[int, int, int]:
    """(connections opened, fetches that gave up, late replies that landed): after 200 ms, on a server of 500 ms.

    A fetch may be answered all the same when the machine stands still just then, for its time is up late as well.
    """
    settings = replace(SETTINGS, timeout_ms=20_000, read_budget_ms=200, breaker_failures=BREAKER_OFF)
    async with store_behind(proxy, settings) as store:
        await ask(store, 1)
        proxy.delay_s, proxy.accepted = 0.5, 0
        answers = await ask(store, N_SLOW)
        assert n_whole(answers) <= FEW
        await store._read_calls.drain()
        proxy.delay_s, n_opened = 0.0, proxy.accepted
        assert isinstance(store.observer, StoreCounts)
        n_late = store.observer.counts["late", "read"]
        await until_whole(store)
        return n_opened, len(answers) - n_whole(answers), n_late


def test_a4_on_a_slow_server_connections_do_not_grow_and_late_replies_land(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        n_opened, n_given_up, n_late = await n_connections_on_a_slow_server(proxy)
        assert n_opened <= 5
        assert n_late == n_given_up

    on_proxy(url, test)


def test_a4_saboteur_cancelling_opens_a_connection_per_miss(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelling(self: GuardedCalls, task: asyncio.Task[Replies], attempt: object) -> bool:  # noqa: ARG001
        try:
            await asyncio.wait_for(task, self._budget_s)
        except TimeoutError:
            return False
        finally:
            self._under_way.discard(task)
        return True

    async def test(proxy: FaultProxy) -> None:
        n_opened, n_given_up, n_late = await n_connections_on_a_slow_server(proxy)
        assert n_opened >= n_given_up - 2 > 5
        assert n_late == 0

    monkeypatch.setattr(GuardedCalls, "_settled", cancelling)
    on_proxy(url, test)


@pytest.mark.parametrize("delay_s", [0.02, 0.5])
def test_a4_slow_but_within_the_budget_is_whole(url: str, delay_s: float) -> None:
    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy, PATIENT) as store:
            await ask(store, 1)
            proxy.delay_s = delay_s
            answers = await ask(store, 4)
            assert min(answer.seconds for answer in answers) > 0.9 * delay_s
            assert all(answer.is_whole for answer in answers)

    on_proxy(url, test)


async def n_degraded_after(store: RedisUserStore, harm: Callable[[], object]) -> tuple[int, int]:
    """(connections that were open, fetches degraded) when all connections die while idle."""
    await asyncio.gather(*(store.fetch(f"u_{user}", NOW) for user in range(N_USERS)))
    pool = plain(store.reads).connection_pool
    n_open = sum(connection.is_connected for connection in pool._available_connections)
    harm()
    await asyncio.sleep(0.05)
    return n_open, sum(not answer.is_whole for answer in await ask(store, 60))


def test_a5_idle_connections_that_died_cost_at_most_one_history_each(url: str) -> None:
    patient = replace(PATIENT, breaker_failures=BREAKER_OFF)

    async def reset(proxy: FaultProxy) -> None:
        async with store_behind(proxy, patient) as store:
            n_open, n_degraded = await n_degraded_after(store, proxy.reset)
            assert n_open >= 2
            assert n_degraded <= n_open

    async def killed(proxy: FaultProxy) -> None:
        def kill() -> None:
            client = command_client(url)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")  # type: ignore[no-untyped-call]
            client.close()

        async with store_behind(proxy, patient) as store:
            n_open, n_degraded = await n_degraded_after(store, kill)
            assert n_open >= 2
            assert n_degraded <= n_open

    on_proxy(url, reset)
    on_proxy(url, killed)


def test_a7_replies_with_flipped_bits_never_raise_and_never_show_anothers_history(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy, replace(SETTINGS, breaker_failures=BREAKER_OFF)) as store:
            proxy.mode = "corrupt"
            answers = await ask(store, 300)
            known = {f"item_of_{user}_{number}" for user in range(N_USERS) for number in range(1, 21)}
            shown = {one.item for answer in answers for one in answer.user.behaviours}
            assert not any(answer.is_foreign for answer in answers)
            assert shown <= known
            assert {reason for answer in answers for reason in answer.user.degraded} <= {
                "behaviours",
                "behaviours_corrupt",
            }
            assert sum(not answer.is_whole for answer in answers) > 200
            proxy.mode = "pass"
            await until_whole(store)

    on_proxy(url, test)


async def swapped_replies(proxy: FaultProxy) -> list[Answer]:
    """Many users at once, with the replies of pairs of connections exchanged."""
    settings = replace(PATIENT, breaker_failures=BREAKER_OFF)
    async with store_behind(proxy, settings) as store:
        proxy.mode = "swap"

        async def one(user_id: str) -> Answer:
            return Answer(0.0, 0.0, user_id, await store.fetch(user_id, NOW))

        rounds = [await asyncio.gather(*(one(f"u_{user}") for user in range(N_USERS))) for _ in range(10)]
    return [answer for answers in rounds for answer in answers]


def test_a10_the_reply_to_another_request_is_never_used(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        answers = await swapped_replies(proxy)
        assert not any(answer.is_foreign for answer in answers)
        assert sum("behaviours_corrupt" in answer.user.degraded for answer in answers) > 50

    on_proxy(url, test)


def test_a10_saboteur_without_the_check_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(proxy: FaultProxy) -> None:
        assert sum(answer.is_foreign for answer in await swapped_replies(proxy)) > 50

    monkeypatch.setattr(behaviour_codec, "_check", lambda _, member: int.from_bytes(member[1:3], "big"))
    on_proxy(url, test)


def test_a10_a_storm_of_callers_that_leave_mixes_nothing_up(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy, PATIENT) as store:
            for number in range(500):
                leaving = asyncio.create_task(store.fetch(f"u_{number % N_USERS}", NOW))
                await asyncio.sleep(0.0005 * (number % 3))
                leaving.cancel()
                if number % 10 == 0:
                    answers = await ask(store, 2)
                    assert not any(answer.is_foreign for answer in answers)
            assert all(answer.is_whole for answer in await ask(store, N_USERS))
            assert proxy.accepted <= store.settings.pool

    on_proxy(url, test)


ERRORS = {
    "READONLY You can't write against a read only replica.": ("readonly", StoreUnavailable),
    "LOADING Redis is loading the dataset in memory": ("loading", StoreUnavailable),
    "OOM command not allowed when used memory > 'maxmemory'.": ("full", StoreFull),
    "NOPERM this user has no permissions": ("permission", StoreUnavailable),
    "NOAUTH Authentication required.": ("auth", StoreUnavailable),
    "BUSY Redis is busy running a script.": ("server", StoreUnavailable),
    "MISCONF Errors writing to the AOF file": ("server", StoreUnavailable),
    "MASTERDOWN Link with MASTER is down": ("server", StoreUnavailable),
}


async def errors_seen(message: str) -> tuple[StoredUser, BaseException | None, StoreCounts]:
    async with scripted_resp(f"-{message}\r\n".encode()) as url:
        store = RedisUserStore(replace(PATIENT, url=url, breaker_open_ms=60_000), clock=lambda: NOW)
        answers = await ask(store, 4)
        raised = await asyncio.gather(store.append([BehaviourEvent("u_1", "i", "click", NOW)]), return_exceptions=True)
        await store.close()
        assert isinstance(store.observer, StoreCounts)
        return answers[-1].user, raised[0] if isinstance(raised[0], BaseException) else None, store.observer


@pytest.mark.parametrize("message", ERRORS)
def test_a11_errors_of_the_server_degrade_reads_refuse_writes_and_count(message: str) -> None:
    kind, refusal = ERRORS[message]
    user, error, observer = asyncio.run(errors_seen(message))
    assert user == StoredUser(degraded=("behaviours",))
    assert type(error) is refusal
    assert observer.counts["failed", "read", kind] == 3
    assert observer.counts["breaker", "read", "open"] == 1
    assert "u_1" not in str(error)


def test_a11_saboteur_without_the_table_a_full_store_is_taken_for_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "_KINDS", ())
    _, error, _ = asyncio.run(errors_seen("OOM command not allowed when used memory > 'maxmemory'."))
    assert type(error) is StoreUnavailable


@pytest.mark.parametrize("reply", [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n", b"garbage\r\n", b"*1\r\n$1\r\nx\r\n"])
def test_a7_replies_of_any_shape_never_raise(reply: bytes) -> None:
    async def main() -> None:
        async with scripted_resp(reply) as url:
            store = RedisUserStore(replace(PATIENT, url=url), clock=lambda: NOW)
            assert (await ask(store, 1))[0].user.behaviours == ()
            with pytest.raises(StoreUnavailable):
                await store.append([BehaviourEvent("u_1", "i", "click", NOW)])
            await store.close()

    asyncio.run(main())


async def crowd_on_one_connection(proxy: FaultProxy, pool_class: type[ConnectionPool] | None) -> list[Answer]:
    """Eight fetches at once on a quick server and a pool of one."""
    settings = replace(PATIENT, pool=1)
    client = async_client(proxy.url, settings)
    if pool_class is not None:
        kwargs = client.connection_pool.connection_kwargs
        client = redis.asyncio.Redis.from_pool(pool_class(max_connections=1, **kwargs))
    async with store_behind(proxy, settings, reads=client) as store:
        await ask(store, 1)
        batches = await asyncio.gather(*(ask(store, 1) for _ in range(8)))
    return [answer for batch in batches for answer in batch]


def test_a12_a_crowd_waits_its_turn_for_a_connection(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        assert all(answer.is_whole for answer in await crowd_on_one_connection(proxy, None))
        assert proxy.accepted == 1

    on_proxy(url, test)


def test_a12_saboteur_a_pool_that_does_not_wait_sends_the_crowd_away(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        answers = await crowd_on_one_connection(proxy, ConnectionPool)
        assert sum(not answer.is_whole for answer in answers) >= 4

    on_proxy(url, test)


def test_a12_an_exhausted_pool_is_given_up_after_its_wait(url: str) -> None:
    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy, replace(SETTINGS, pool=1, breaker_failures=BREAKER_OFF)) as store:
            await ask(store, 1)
            proxy.delay_s = 10.0
            batches = await asyncio.gather(*(ask(store, 1) for _ in range(8)))
            assert max(batch[0].seconds for batch in batches) < 0.5 * proxy.delay_s
            assert all(batch[0].user.degraded == ("behaviours",) for batch in batches)

    on_proxy(url, test)


async def until_written(store: RedisUserStore, events: Sequence[BehaviourEvent]) -> AppendResult:
    """What a call gave, repeated as it is until it is answered."""
    until = time.perf_counter() + 20
    while True:
        try:
            return await store.append(events)
        except StoreUnavailable:
            assert time.perf_counter() < until, "it never came back"
            await asyncio.sleep(0.01)


def test_writes_say_so_when_the_store_is_away_and_work_again_when_it_is_back(url: str) -> None:
    events = [BehaviourEvent(f"w_{number}", "i", "click", NOW - 1_000) for number in range(40)]

    async def test(proxy: FaultProxy) -> None:
        async with store_behind(proxy) as store:
            first = await until_written(store, events)
            assert first.accepted + first.duplicates == 40
            proxy.mode = "swallow"
            n_slow = 0  # those that waited for the socket's time-out: all ten, without the breaker
            for _ in range(10):
                started = time.perf_counter()
                with pytest.raises(StoreUnavailable):
                    await store.append(events)
                n_slow += time.perf_counter() - started > 0.8 * SETTINGS.timeout_ms / 1000
            assert n_slow <= SETTINGS.breaker_failures + FEW
            proxy.mode = "pass"
            assert (await until_written(store, events)).duplicates == 40

    on_proxy(url, test)


# --- a whole service --------------------------------------------------------------------------------------------------


def service_without_its_store(root: Path) -> tuple[int, int, list[str]]:
    """(readiness, status of a ranking, what it lacks) of a service that starts on a store whose port is closed."""
    write_small_bundle(root)
    address = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    with opened(Settings(bundle_root=root, redis_url=address, deadline_ms=2000)) as client:
        client.catch_up()
        answer = client.rank(user="u", trigger="i0")
        return client("GET", "/readyz").status_code, answer.status_code, answer.json()["degraded"]


def test_a1_a_service_starts_and_ranks_without_its_store(tmp_path: Path) -> None:
    assert service_without_its_store(tmp_path) == (200, 200, ["behaviours"])


def test_a1_saboteur_a_question_to_the_store_in_front_of_the_start_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def asking_first(parts: Parts) -> AsyncIterator[None]:
        assert isinstance(parts.store, RedisUserStore)
        try:
            await plain(parts.store.reads).ping()
            async with running(parts):
                yield
        finally:
            await parts.store.close()

    monkeypatch.setattr("tests.asgi_client.running", asking_first)
    with pytest.raises(redis.exceptions.ConnectionError):
        service_without_its_store(tmp_path)
