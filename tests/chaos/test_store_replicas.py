"""Events that replicas must have before they are acknowledged: what that keeps when the primary dies for good."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio.client import Pipeline

from service.doctor import examine
from service.errors import StoreUnavailable
from service.redis_client import StoreSettings, check_settings
from service.redis_replicas import ConfirmedPipeline
from service.settings import Settings
from service.user_store import AppendResult, BehaviourEvent, Erased, RedisUserStore, StoreCounts
from tests.chaos.store_servers import DOWN_AFTER_MS, Server, cluster, cluster_url, pair, sentinels, wait_for
from tests.chaos.test_store_modes import SETTINGS, failover, node_has

NOW = 1_795_000_000_000
WAIT_MS = 2_500  # for a replica: longer than a busy machine may hold it up


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with pair(tmp_path / "servers") as found:
        yield found


def settings_of(url: str, wait_replicas: int, wait_ms: int = WAIT_MS) -> StoreSettings:
    settings = StoreSettings(
        url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000, wait_replicas=wait_replicas, wait_ms=wait_ms
    )
    check_settings(settings)
    return replace(settings, breaker_failures=100)


def url_of(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}"


def click(user: str, number: int = 0) -> BehaviourEvent:
    return BehaviourEvent(user, f"i_{number}", "click", NOW - 60_000 + 1_000 * number)


def sent(settings: StoreSettings, calls: Sequence[Sequence[BehaviourEvent]]) -> list[AppendResult | str]:
    """What became of each call; of a refused one the kind of its failure."""

    async def main() -> list[AppendResult | str]:
        store, results = RedisUserStore(settings, clock=lambda: NOW), list[AppendResult | str]()
        assert isinstance(store.observer, StoreCounts)
        try:
            for events in calls:
                store.observer.counts.clear()
                try:
                    results.append(await store.append(events))
                except StoreUnavailable:
                    results += [one[2] for one in store.observer.counts if one[0] == "failed"]
        finally:
            await store.close()
        return results

    return asyncio.run(main())


def kept(url: str, user: str) -> set[str]:
    async def main() -> set[str]:
        store = RedisUserStore(settings_of(url, 0), clock=lambda: NOW)
        try:
            return {one.item for one in (await store.fetch(user, NOW)).behaviours}
        finally:
            await store.close()

    return asyncio.run(main())


def acknowledged_then_lost(two: tuple[Server, Server], wait_replicas: int) -> tuple[bool, set[str]]:
    """(whether an event was acknowledged that never reached the replica, what is left once that is the primary)."""
    primary, replica = two
    settings = settings_of(url_of(primary), wait_replicas)
    assert sent(settings, [[click("u", 0)]]) == [AppendResult(1, 0)]
    wait_for(lambda: kept(url_of(replica), "u") == {"i_0"}, 60)
    with replica.stopped():
        primary.ask("CLIENT", "KILL", "TYPE", "replica")  # or the socket's buffer would keep it
        (result,) = sent(settings, [[click("u", 1)]])
        primary.kill()
    replica.ask("REPLICAOF", "NO", "ONE")
    return isinstance(result, AppendResult), kept(url_of(replica), "u")


def test_what_a_replica_confirmed_outlives_its_primary_and_the_rest_was_refused(two: tuple[Server, Server]) -> None:
    assert acknowledged_then_lost(two, 1) == (False, {"i_0"})


def test_saboteur_without_the_wait_an_acknowledged_event_is_gone(two: tuple[Server, Server]) -> None:
    assert acknowledged_then_lost(two, 0) == (True, {"i_0"})


def test_saboteur_a_wait_that_nobody_looks_at_acknowledges_it_as_well(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConfirmedPipeline, "_execute_transaction", Pipeline._execute_transaction)
    assert acknowledged_then_lost(two, 1) == (True, {"i_0"})


def test_a_silent_replica_costs_a_refusal_and_the_repeat_changes_nothing(two: tuple[Server, Server]) -> None:
    primary, replica = two
    settings = settings_of(url_of(primary), 1)
    events = [click(user, number) for user in ("u", "v") for number in range(2)]
    with replica.stopped():
        assert sent(settings, [events]) == ["unconfirmed"]
        assert kept(url_of(primary), "u") == {"i_0", "i_1"}  # and rankings use it already
    # the first user's were kept by the call that was refused, the second's were not sent
    assert sent(settings, [events, events]) == [AppendResult(2, 2), AppendResult(0, 4)]
    assert sent(settings_of(url_of(primary), 2, 100), [events]) == ["unconfirmed"]  # one replica is not two


def test_an_erasure_waits_too(two: tuple[Server, Server]) -> None:
    primary, replica = two

    async def erased(settings: StoreSettings) -> Erased:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            return await store.erase("u")
        finally:
            await store.close()

    assert sent(settings_of(url_of(primary), 1), [[click("u")]]) == [AppendResult(1, 0)]
    with replica.stopped(), pytest.raises(StoreUnavailable, match="too few replicas"):
        asyncio.run(erased(settings_of(url_of(primary), 1)))
    assert asyncio.run(erased(settings_of(url_of(primary), 1))) == Erased(0, 0, 0)


def test_over_a_failover_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    waiting = replace(SETTINGS, wait_replicas=1, wait_ms=200)
    with sentinels(tmp_path / "servers", down_after_ms=DOWN_AFTER_MS) as three:
        seen, found = failover(three, three.url, waiting)
    assert len(seen.acknowledged) > 10
    assert [number for number in seen.acknowledged if f"w_{number}" not in found] == []
    # The promoted one has no replica: until one follows it, events are refused and rankings are whole.
    assert seen.n_refused > 10
    assert seen.recovered_s() is not None


def test_in_a_cluster_every_node_needs_replicas_of_its_own(tmp_path: Path) -> None:
    with cluster(tmp_path / "servers") as nodes:
        url = cluster_url(nodes)
        slots = {f"u_{number}": nodes[0].ask("CLUSTER", "KEYSLOT", f"{{u_{number}}}") for number in range(20)}
        for node in nodes[:3]:
            calls = [[click(user)] for user, slot in slots.items() if node_has(node, slot)]
            assert len(calls) > 2
            if node is nodes[0]:
                assert set(sent(settings_of(url, 1), calls)) == {AppendResult(1, 0)}
            else:  # they have none, however long one waits
                assert set(sent(settings_of(url, 1, 100), calls)) == {"unconfirmed"}


@pytest.mark.parametrize(("n_wanted", "is_fine"), [(1, True), (2, False)])
def test_doctor_counts_the_replicas(two: tuple[Server, Server], n_wanted: int, is_fine: bool) -> None:
    settings = Settings.model_validate({"redis_url": url_of(two[0]), "redis_wait_replicas": n_wanted})
    (found,) = [one for one in examine(settings) if one.what == "store replicas"]
    assert found.is_fine is is_fine
    assert found.detail.startswith("1 in step")
