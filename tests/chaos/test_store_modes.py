"""A store behind sentinels, in a cluster, behind TLS: everything that touches it works, and fails over by itself."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from service import redis_sentinels
from service.errors import StoreFull, StoreUnavailable
from service.redis_client import StoreSettings, with_password
from service.redis_cluster import ClusterClient, CommandClients
from service.redis_sentinels import SentinelAccess
from service.store_load import load
from service.store_tools import inspect_user
from service.user_store import AppendResult, BehaviourEvent, Erased, RedisUserStore, StoreCounts
from tests.chaos.service_process import service_process
from tests.chaos.store_servers import DOWN_AFTER_MS, NODE_TIMEOUT_MS, Sentinels, Server, cluster, cluster_url, sentinels
from tests.small_bundle import write_small_bundle

NOW = 1_795_000_000_000
# Far more than in production: what degrades an answer here is to be the dead server, not a busy machine. A dead one
# refuses, and so costs none of it.
BUDGET_S = 2.5
SETTINGS = StoreSettings("", timeout_ms=2_500, read_budget_ms=2_500, pool_wait_ms=2_500, keep=1000)
# What an election takes once the primary counts as down; one without a winner is held again.
ELECTION_S = 6.0
SEEN_FOR_S = DOWN_AFTER_MS / 1000 + ELECTION_S  # after the kill
RECOVERED_WITHIN_S = 45.0  # looked at for so long where it is to recover, however busy the machine is
LOST_WITHIN_S = 3.0  # before the kill: what a replica that was held up may not have
PATIENT = {
    "DAIAN_REDIS_TIMEOUT_MS": "2500",
    "DAIAN_REDIS_READ_BUDGET_MS": "1000",
    "DAIAN_REDIS_POOL_WAIT_MS": "1000",
    "DAIAN_MAX_DEADLINE_MS": "20000",
}
N_FAILOVERS = int(os.environ.get("DAIAN_TEST_FAILOVERS", "1"))


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Sentinels]:
    with sentinels(tmp_path / "servers") as found:
        yield found


@pytest.fixture
def mortal_three(tmp_path: Path) -> Iterator[Sentinels]:
    """With an election as soon as the primary is silent."""
    with sentinels(tmp_path / "servers", down_after_ms=DOWN_AFTER_MS) as found:
        yield found


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Server]]:
    with cluster(tmp_path / "servers") as found:
        yield found


@pytest.fixture
def mortal_nodes(tmp_path: Path) -> Iterator[list[Server]]:
    """With an election as soon as a node is silent."""
    with cluster(tmp_path / "servers", NODE_TIMEOUT_MS) as found:
        yield found


def settings_of(url: str) -> StoreSettings:
    return StoreSettings(url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)


def click(user: str, number: int = 0) -> BehaviourEvent:
    return BehaviourEvent(user, f"i_{number}", "click", NOW - 60_000 + 1_000 * number)


def everything_works(settings: StoreSettings, folder: Path) -> None:
    """Events, reads, erasure, load and inspect, of users that lie all over the store."""
    users = [f"u_{number}" for number in range(40)]

    async def main() -> None:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            events = [click(user, number) for user in users for number in range(2)]
            assert await store.append(events) == AppendResult(80, 0)
            assert await store.append(events) == AppendResult(0, 80)
            await store.put_profile("u_1", {"city": "hz"})
            found = [await store.fetch(user, NOW) for user in users]
            assert {(len(one.behaviours), one.degraded) for one in found} == {(2, ())}
            assert await store.erase("u_1") == Erased(2, 1, 0)
            assert await store.append([click("u_1")]) == AppendResult(0, 0, 1)
            assert (await store.fetch("u_1", NOW)).behaviours == ()
        finally:
            await store.close()

    asyncio.run(main())
    rows = [
        {
            "user": f"l_{number}",
            "behaviours": [{"item": "i", "at": NOW - 1_000, "type": "click"}],
            "attributes": {"a": 1},
        }
        for number in range(300)
    ]
    rows.append({"user": "u_1", "behaviours": [{"item": "i", "at": NOW - 1_000, "type": "click"}]})
    file = folder / "users.ndjson"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for n_new in (300, 0):
        report = load(settings, [str(file)], now=NOW, progress=False)
        assert (report.n_new, report.n_erased, report.n_sent) == (n_new, 1, 301)
    for user, n in (("u_0", 2), ("l_299", 1), ("u_1", 0)):
        shown = inspect_user(settings, user, now=NOW)
        assert isinstance(shown["behaviours"], list)
        assert len(shown["behaviours"]) == n


@dataclass
class Load:
    """What two loops saw: reads of one user each 10 ms (when, whether whole), and numbered events of another."""

    reads: list[tuple[float, bool]] = field(default_factory=list)
    n_slow: int = 0  # reads that took over three times the budget
    acknowledged: dict[int, float] = field(default_factory=dict)  # and when
    n_refused: int = 0

    def recovered_s(self) -> float | None:
        """When, after the harm and a degraded answer, five answers in a row were whole; None = never."""
        after = [(at, is_whole) for at, is_whole in self.reads if at > 0]
        first = next((place for place, (_, is_whole) in enumerate(after) if not is_whole), None)
        if first is None:
            return None
        for place in range(first, len(after) - 4):
            if all(is_whole for _, is_whole in after[place : place + 5]):
                return after[place][0]
        return None


async def under_load(
    store: RedisUserStore, reader: str, writer: str, harm: Callable[[], None], at_least_s: float, at_most_s: float
) -> Load:
    """Reads and writes; the harm is done once some events were taken, and times count from then.

    Ends when reads are whole again, but not before `at_least_s`, and in any case after `at_most_s`.
    """
    seen, harmed_at = Load(), float("inf")

    def is_over() -> bool:
        since_s = time.perf_counter() - harmed_at
        return since_s > at_most_s or (since_s > at_least_s and seen.recovered_s() is not None)

    async def read() -> None:
        before = list[tuple[float, bool]]()
        while not is_over():
            asked_at = time.perf_counter()
            user = await store.fetch(reader, NOW)
            seen.n_slow += time.perf_counter() - asked_at > 3 * BUDGET_S
            if asked_at > harmed_at:
                seen.reads.append((asked_at - harmed_at, not user.degraded))
            else:
                before.append((asked_at, not user.degraded))
            await asyncio.sleep(0.01)
        assert any(is_whole for _, is_whole in before), "nothing was whole before the harm"

    async def write() -> None:
        number = 0
        while not is_over():
            try:
                await store.append([BehaviourEvent(writer, f"w_{number}", "click", NOW - 1_000)])
                seen.acknowledged[number] = time.perf_counter()
            except (StoreUnavailable, StoreFull):
                seen.n_refused += 1
            number += 1
            await asyncio.sleep(0.02)

    async def do_harm() -> None:
        nonlocal harmed_at
        until = time.perf_counter() + 60
        while len(seen.acknowledged) < 40:
            assert time.perf_counter() < until, "no events were taken"
            await asyncio.sleep(0.01)
        await asyncio.to_thread(harm)
        harmed_at = time.perf_counter()

    await asyncio.gather(read(), write(), do_harm())
    seen.acknowledged = {number: at - harmed_at for number, at in seen.acknowledged.items()}
    return seen


def test_behind_sentinels_everything_works(three: Sentinels, tmp_path: Path) -> None:
    everything_works(settings_of(three.url), tmp_path)


# --- sentinels with a password of their own ---------------------------------------------------------------------------

SECRETS = {"password": "of-servers", "sentinel_password": "of-sentinels"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """Servers with one password, sentinels with another, and a user of theirs that may ask for primaries alone."""
    with sentinels(tmp_path_factory.mktemp("guarded") / "servers", **SECRETS) as found:
        for sentinel in found.sentinels:
            sentinel.ask("ACL", "SETUSER", "daian", "on", ">of-daian", "-@all", "+sentinel|masters")
        yield found


def guarded_settings(guarded: Sentinels, access: SentinelAccess) -> StoreSettings:
    return replace(settings_of(with_password(guarded.url, "of-servers")), sentinels=access)


def one_read(settings: StoreSettings) -> tuple[tuple[str, ...], set[tuple[str, ...]]]:
    """(what the answer was without, the failures that were counted) of one ranking's read."""

    async def main() -> tuple[tuple[str, ...], set[tuple[str, ...]]]:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            user = await store.fetch("u_1", NOW)
        finally:
            await store.close()
        assert isinstance(store.observer, StoreCounts)
        return user.degraded, {one for one in store.observer.counts if one[0] == "failed"}

    return asyncio.run(main())


@pytest.mark.parametrize(
    "access", [SentinelAccess(password="of-sentinels"), SentinelAccess("daian", "of-daian")], ids=["password", "user"]
)
def test_behind_sentinels_with_a_password_of_their_own_everything_works(
    guarded: Sentinels, access: SentinelAccess, tmp_path: Path
) -> None:
    guarded.primary.ask("FLUSHALL")
    everything_works(guarded_settings(guarded, access), tmp_path)


@pytest.mark.parametrize(
    "access",
    [
        SentinelAccess(),
        SentinelAccess(password="of-servers"),
        SentinelAccess("nobody", "of-daian"),
        SentinelAccess("blind", "of-daian"),
    ],
    ids=["no password", "the servers' password", "an unknown user", "a user that may not ask"],
)
def test_sentinels_that_refuse_us_are_named_and_not_taken_for_a_server_that_is_away(
    guarded: Sentinels, access: SentinelAccess, caplog: pytest.LogCaptureFixture
) -> None:
    for sentinel in guarded.sentinels:
        sentinel.ask("ACL", "SETUSER", "blind", "on", ">of-daian", "-@all", "+ping")
    settings = replace(guarded_settings(guarded, access), breaker_failures=1)
    assert one_read(settings) == (("behaviours",), {("failed", "read", "sentinel_auth")})
    (line,) = [one for one in caplog.messages if "no answer" in one]
    assert "sentinel_auth" in line
    assert "DAIAN_REDIS_SENTINEL_PASSWORD" in line
    with pytest.raises(StoreUnavailable, match="DAIAN_REDIS_SENTINEL_PASSWORD"):
        inspect_user(settings, "u_1", now=NOW)


def test_saboteur_left_to_the_library_sentinels_that_refuse_us_look_as_if_they_were_away(
    guarded: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sentinels, "_why_no_primary", lambda error: error)
    refused = guarded_settings(guarded, SentinelAccess())
    away = replace(refused, url="redis+sentinel://127.0.0.1:1,127.0.0.1:2/users")
    assert one_read(refused) == one_read(away) == (("behaviours",), {("failed", "read", "no_primary")})


def test_the_servers_own_password_is_told_from_that_of_the_sentinels(guarded: Sentinels) -> None:
    access = SentinelAccess(password="of-sentinels")
    settings = replace(guarded_settings(guarded, access), url=with_password(guarded.url, "of-sentinels"))
    assert one_read(settings) == (("behaviours",), {("failed", "read", "auth")})


def test_a_password_that_no_sentinel_asked_for_is_told_too(three: Sentinels) -> None:
    settings = replace(settings_of(three.url), sentinels=SentinelAccess(password="of-sentinels"))
    assert one_read(settings) == (("behaviours",), {("failed", "read", "sentinel_auth")})


def failover(
    three: Sentinels, url: str, settings: StoreSettings = SETTINGS, at_most_s: float = RECOVERED_WITHIN_S
) -> tuple[Load, set[str]]:
    """What was seen over a kill of the primary, and which events the store has afterwards."""
    kept: set[str] = set()

    async def main() -> Load:
        nonlocal kept
        store = RedisUserStore(replace(settings, url=url), clock=lambda: NOW)
        try:
            await store.append([click("reader")])
            seen = await under_load(store, "reader", "writer", three.primary.kill, SEEN_FOR_S, at_most_s)
            kept = {one.item for one in (await store.fetch("writer", NOW)).behaviours}
        finally:
            await store.close()
        return seen

    return asyncio.run(main()), kept


def test_a8_when_the_primary_is_killed_rankings_go_on_and_are_whole_again_by_themselves(
    mortal_three: Sentinels,
) -> None:
    seen, kept = failover(mortal_three, mortal_three.url)
    assert seen.recovered_s() is not None
    assert seen.n_slow == 0
    assert seen.n_refused > 0
    # Replication is asynchronous: what was acknowledged in its last moments may be gone, and nothing else.
    lost = {number: at for number, at in seen.acknowledged.items() if f"w_{number}" not in kept}
    assert all(-LOST_WITHIN_S < at < 1.0 for at in lost.values()), f"acknowledged, and gone: {lost}"


def test_a8_saboteur_a_fixed_address_never_recovers(mortal_three: Sentinels) -> None:
    seen, _ = failover(mortal_three, f"redis://127.0.0.1:{mortal_three.primary.port}", at_most_s=SEEN_FOR_S)
    assert seen.n_refused > 0
    assert seen.recovered_s() is None


def ranked_over_a_kill(
    bundles: Path, folder: Path, three: Sentinels, url: str, at_most_s: float = RECOVERED_WITHIN_S
) -> tuple[Load, Counter[int]]:
    """What `daian serve` answered while the primary was killed: whether whole, and how often each status (0: none)."""
    statuses, seen = Counter[int](), Load()
    now = int(time.time() * 1000)
    click = {"event_id": "1", "type": "click", "user": "reader", "item": "i8", "time": now - 60_000}
    asked = {"user": "reader", "trigger": "i0", "candidates": ["i7", "i9"], "deadline_ms": 20_000}
    with (
        service_process(bundles, folder, **{"DAIAN_REDIS_URL": url, **PATIENT}) as service,  # type: ignore[arg-type]
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        assert client.post("/v1/events", json={"events": [click]}).json()["accepted"] == 1
        until = time.perf_counter() + 60
        while client.post("/v1/rank", json=asked).json()["behaviours"]["used"] != 1:
            assert time.perf_counter() < until, "never whole before the kill"
        three.primary.kill()
        killed_at = time.perf_counter()
        while (asked_at := time.perf_counter()) < killed_at + at_most_s and seen.recovered_s() is None:
            try:
                answer = client.post("/v1/rank", json=asked)
            except httpx.TransportError:
                statuses[0] += 1
                continue
            statuses[answer.status_code] += 1
            is_whole = answer.status_code == 200 and answer.json()["behaviours"]["used"] == 1
            seen.reads.append((asked_at - killed_at, is_whole))
            time.sleep(0.01)
    return seen, statuses


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_small_bundle(root := tmp_path_factory.mktemp("bundles"))
    return root


@pytest.mark.e2e
def test_g5_a_service_answers_every_ranking_over_a_failover(
    bundles: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("G5", f"note: the sentinels take a primary for dead after {DOWN_AFTER_MS} ms of silence")
    for number in range(N_FAILOVERS):
        with sentinels(tmp_path / f"servers-{number}", down_after_ms=DOWN_AFTER_MS) as three:
            seen, statuses = ranked_over_a_kill(bundles, tmp_path / f"service-{number}", three, three.url)
        recovered_s = seen.recovered_s()
        n_5xx = sum(n for status, n in statuses.items() if status >= 500)
        record_property("G5", f"rankings answered 5xx: {n_5xx} of {statuses.total()}")
        record_property("G5", f"rankings not answered 200: {statuses.total() - statuses[200]} of {statuses.total()}")
        shown = "inf" if recovered_s is None else f"{recovered_s:.2f}"
        record_property("G5", f"from the kill to whole answers, longest of {N_FAILOVERS}: {shown} s, at most 3")
        assert set(statuses) == {200}
        assert recovered_s is not None


@pytest.mark.e2e
def test_g5_saboteur_a_service_with_a_fixed_address_is_not_whole_again(
    bundles: Path, tmp_path: Path, mortal_three: Sentinels
) -> None:
    fixed = f"redis://127.0.0.1:{mortal_three.primary.port}"
    seen, _ = ranked_over_a_kill(bundles, tmp_path / "service", mortal_three, fixed, at_most_s=SEEN_FOR_S)
    assert not all(is_whole for _, is_whole in seen.reads)
    assert seen.recovered_s() is None


def test_a_cluster_serves_everything_and_has_users_on_all_nodes(nodes: list[Server], tmp_path: Path) -> None:
    everything_works(settings_of(cluster_url(nodes)), tmp_path)
    assert all(node.ask("DBSIZE") > 10 for node in nodes)
    clients = CommandClients(cluster_url(nodes), settings_of(""))
    assert len(clients.all()) == 3
    clients.close()


def cluster_failover(
    nodes: list[Server], one_breaker: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[Load, list[float]]:
    """(what users of the killed node saw, when a user of another node was degraded)."""
    others = list[float]()
    if one_breaker:
        monkeypatch.setattr(ClusterClient, "shard_of", lambda *_: "")

    async def main() -> Load:
        store = RedisUserStore(replace(SETTINGS, url=cluster_url(nodes[1:]), breaker_failures=1), clock=lambda: NOW)
        assert isinstance(store.reads, ClusterClient)
        try:
            await store.fetch("u_1", NOW)
            slots = store.reads._slots
            by_port = {slots.node_of(f"daian:1:main:{{u_{n}}}:b"): f"u_{n}" for n in range(200)}
            victim = by_port["127.0.0.1", nodes[0].port]
            healthy = by_port["127.0.0.1", nodes[1].port]
            await store.append([click(victim), click(healthy)])
            started_at = time.perf_counter()

            async def watch() -> None:
                while True:
                    asked_at = time.perf_counter()
                    if (await store.fetch(healthy, NOW)).degraded:
                        others.append(asked_at - started_at)
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            seen = await under_load(store, victim, victim, nodes[0].kill, SEEN_FOR_S, RECOVERED_WITHIN_S)
            watching.cancel()
            return seen
        finally:
            await store.close()

    return asyncio.run(main()), others


def test_a9_a_killed_node_costs_its_own_users_and_them_for_the_election_alone(
    mortal_nodes: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, others = cluster_failover(mortal_nodes, False, monkeypatch)
    assert seen.recovered_s() is not None
    assert seen.n_slow == 0
    assert len(others) <= 2, f"users of another node were degraded at {others}"


def test_a9_saboteur_with_one_breaker_for_all_nodes_everybody_pays(
    mortal_nodes: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, others = cluster_failover(mortal_nodes, True, monkeypatch)
    assert len(others) > 5


def test_a_slot_that_moves_is_followed_at_once(nodes: list[Server]) -> None:
    async def main() -> None:
        store = RedisUserStore(settings_of(cluster_url(nodes)), clock=lambda: NOW)
        assert isinstance(store.writes, ClusterClient)
        try:
            await store.append([click("u_1")])
            slot = nodes[0].ask("CLUSTER", "KEYSLOT", "{u_1}")
            await store.erase("u_1")
            for node in nodes[:3]:
                for key in node.ask("CLUSTER", "GETKEYSINSLOT", slot, 10) if node_has(node, slot) else ():
                    node.ask("DEL", key)
            target = next(node for node in nodes[1:3] if not node_has(node, slot))
            for node in [target, *(one for one in nodes[:3] if one is not target)]:
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.ask("CLUSTER", "MYID").decode())
            assert await store.append([click("u_1", 3)]) == AppendResult(1, 0)
            assert len((await store.fetch("u_1", NOW)).behaviours) == 1
            assert store.writes._slots.node_of("{u_1}") == ("127.0.0.1", target.port)
        finally:
            await store.close()

    asyncio.run(main())


def node_has(node: Server, slot: int) -> bool:
    port = node.port
    return any(low <= slot <= high and primary[1] == port for low, high, primary, *_ in node.ask("CLUSTER", "SLOTS"))
