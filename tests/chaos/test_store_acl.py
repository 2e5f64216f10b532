"""The two users of docs/operate.md, as they stand there: who ranks may not write, who writes may do what that needs."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.redis_client import StoreSettings
from service.store_load import load
from service.user_store import AppendResult, BehaviourEvent, Erased, RedisUserStore, StoreCounts
from tests.architecture.tree import ROOT
from tests.chaos.store_servers import Server, pair

NOW = 1_795_000_000_000
CLICK = BehaviourEvent("u", "i", "click", NOW - 60_000)


def documented_users() -> list[list[str]]:
    """The arguments of each ACL SETUSER in the page's block of two users."""
    block = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8").partition("**Two users**")[2].split("```")[1]
    lines = [line.split() for line in block.splitlines() if line.startswith("ACL SETUSER ")]
    assert [line[2] for line in lines] == ["rank", "events"]
    return lines


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pair(tmp_path_factory.mktemp("acl") / "servers") as (primary, _):
        yield primary


@pytest.fixture
def settings(server: Server) -> StoreSettings:
    """With a wait for the replica, so that every command is needed."""
    server.ask("FLUSHALL")
    for arguments in documented_users():
        server.ask("ACL", "DELUSER", arguments[2])
        server.ask(*arguments)
    place = f"PASSWORD@127.0.0.1:{server.port}"
    return StoreSettings(
        f"redis://rank:{place}",
        f"redis://events:{place}",
        10_000,
        5_000,
        pool_wait_ms=5_000,
        wait_replicas=1,
        wait_ms=5_000,
    )


async def used(settings: StoreSettings) -> tuple[AppendResult, Erased]:
    store = RedisUserStore(settings, clock=lambda: NOW)
    try:
        await store.put_profile("u", {"city": "hz"})
        added = await store.append([CLICK])
        user = await store.fetch("u", NOW)
        assert (len(user.behaviours), user.attributes, user.degraded) == (1, {"city": "hz"}, ())
        return added, await store.erase("u")
    finally:
        await store.close()


def failures(settings: StoreSettings) -> set[tuple[str, ...]]:
    async def main() -> set[tuple[str, ...]]:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            with pytest.raises(StoreUnavailable):
                await store.append([CLICK])
        finally:
            await store.close()
        assert isinstance(store.observer, StoreCounts)
        return {one for one in store.observer.counts if one[0] == "failed"}

    return asyncio.run(main())


def test_the_documented_users_may_do_what_the_service_does(settings: StoreSettings, tmp_path: Path) -> None:
    assert asyncio.run(used(settings)) == (AppendResult(1, 0), Erased(1, 1, 0))
    file = tmp_path / "users.ndjson"
    file.write_text(json.dumps({"user": "v", "behaviours": [{"item": "i", "at": NOW - 1_000, "type": "click"}]}))
    assert load(settings, [str(file)], now=NOW, progress=False).n_new == 1


def test_who_ranks_may_not_write_and_no_user_sees_other_keys(settings: StoreSettings, server: Server) -> None:
    assert failures(replace(settings, events_url=None)) == {("failed", "write", "permission")}
    for name in ("rank", "events"):
        for command in (
            ["GET", "other"],
            ["CONFIG", "GET", "*"],
            ["KEYS", "*"],
            ["FLUSHALL"],
            ["EVAL", "return 1", "0"],
        ):
            said = server.ask("ACL", "DRYRUN", name, *command)
            assert b"permissions" in said, (name, command, said)


@pytest.mark.parametrize(
    "taken", ["zadd", "get", "expire", "zremrangebyscore", "zremrangebyrank", "multi", "exec", "wait"]
)
def test_each_command_of_who_writes_is_needed(settings: StoreSettings, server: Server, taken: str) -> None:
    server.ask("ACL", "SETUSER", "events", f"-{taken}")
    kind = "server" if taken in ("multi", "exec") else "permission"  # what is left of a transaction is a nonsense
    assert failures(settings) == {("failed", "write", kind)}
