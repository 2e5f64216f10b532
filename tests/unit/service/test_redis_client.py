"""A13: every limit of the client is ours, read off the live object and timed on a closed port."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio
import redis.asyncio.sentinel
import redis.connection
from redis import exceptions

from service.app import store_settings
from service.redis_client import (
    StoreSettings,
    async_client,
    check_settings,
    command_client,
    failure_advice,
    failure_kind,
    with_password,
)
from service.redis_cluster import ClusterClient, SlotMap, read_slots
from service.redis_sentinels import SentinelAccess, _why_no_primary
from service.settings import read_settings
from service.store_address import StoreAddress, parse_address

SETTINGS = StoreSettings("redis://rank:secret@127.0.0.1:1/2", timeout_ms=70, pool=7, pool_wait_ms=30)


def assert_limits_are_ours(client: "redis.asyncio.Redis") -> None:
    pool = client.connection_pool
    assert isinstance(pool, redis.asyncio.BlockingConnectionPool)
    assert (pool.max_connections, pool.timeout) == (7, 0.03)
    assert_connection_is_ours(pool.make_connection())


def assert_connection_is_ours(connection: "redis.asyncio.connection.AbstractConnection") -> None:
    assert connection.socket_timeout == connection.socket_connect_timeout == 0.07
    assert connection.retry.get_retries() == 0
    assert connection.retry_on_error == []
    assert not connection.retry_on_timeout
    assert connection.health_check_interval == 0
    assert connection.driver_info is None
    assert connection.protocol == 2
    assert not (connection.maint_notifications_config and connection.maint_notifications_config.enabled)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://rank:secret@h:1,i/users/2", "rediss+sentinel://rank:secret@h/users/2"]
)
def test_a13_behind_sentinels_too_and_for_the_sentinels_themselves(url: str) -> None:
    client = async_client(url, SETTINGS)
    assert_limits_are_ours(client)
    connection = client.connection_pool.make_connection()
    assert (connection.username, connection.password, connection.db) == ("rank", "secret", 2)
    sentinels = client.connection_pool.sentinel_manager.sentinels
    assert len(sentinels) == len(url.split(","))
    for sentinel in sentinels:
        assert_connection_is_ours(sentinel.connection_pool.make_connection())
        assert sentinel.connection_pool.connection_kwargs["port"] in (1, 26379)
        assert sentinel.connection_pool.make_connection().password is None


@pytest.mark.parametrize(
    ("scheme", "tls", "expected"),
    [("redis", "same", False), ("redis", "on", True), ("rediss", "same", True), ("rediss", "off", False)],
)
def test_sentinels_have_their_own_user_password_and_tls(scheme: str, tls: str, expected: bool) -> None:
    access = SentinelAccess("watcher", "hush", tls)  # type: ignore[arg-type]
    url = f"{scheme}+sentinel://rank:secret@h:1/users"
    server = async_client(url, replace(SETTINGS, sentinels=access)).connection_pool
    command = command_client(url, sentinels=access).connection_pool
    for pool in (server, command):
        connection = pool.sentinel_manager.sentinels[0].connection_pool.make_connection()
        assert (connection.username, connection.password) == ("watcher", "hush")
        assert isinstance(connection, redis.connection.SSLConnection | redis.asyncio.SSLConnection) is expected
        kept = pool.connection_kwargs
        assert (kept["username"], kept["password"]) == ("rank", "secret")
    # Only the greeting keeps redis-py's blocking pool from taking a ticket of TLS 1.3 for a reply.
    greeted = command.sentinel_manager.sentinels[0].connection_pool.connection_kwargs.get("redis_connect_func")
    assert (greeted is not None) is expected
    assert "hush" not in repr(replace(SETTINGS, sentinels=access))


def test_settings_of_sentinels_reach_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    monkeypatch.setenv("DAIAN_REDIS_URL", "redis+sentinel://h/users")
    monkeypatch.setenv("DAIAN_REDIS_SENTINEL_USER", "watcher")
    monkeypatch.setenv("DAIAN_REDIS_SENTINEL_PASSWORD_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("DAIAN_REDIS_SENTINEL_TLS", "on")
    settings = read_settings()
    assert store_settings(settings).sentinels == SentinelAccess("watcher", "hush", "on")
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "access", "reason"),
    [
        ("redis://h", SentinelAccess(password="hush"), "DAIAN_REDIS_SENTINEL_PASSWORD is set and .* no sentinels"),
        ("redis+cluster://h", SentinelAccess(tls="off"), "DAIAN_REDIS_SENTINEL_TLS is set and .* no sentinels"),
        ("redis://h", SentinelAccess("watcher", "hush"), "DAIAN_REDIS_SENTINEL_USER is set and .* no sentinels"),
        ("redis+sentinel://h/users", SentinelAccess("watcher"), "without DAIAN_REDIS_SENTINEL_PASSWORD"),
    ],
)
def test_settings_of_sentinels_that_lead_nowhere_stop_the_start(url: str, access: SentinelAccess, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        check_settings(StoreSettings(url, sentinels=access))
    assert "hush" not in str(refused.value)


def test_a_refusal_of_the_sentinels_is_told_from_their_absence() -> None:
    """What tells a refusal from an absence is a name in the library's own text; test_store_modes.py asks real ones."""
    text = f"No master found for 'users' : <Redis> - {exceptions.AuthenticationError('NOAUTH')!r}"
    refused = _why_no_primary(redis.asyncio.sentinel.MasterNotFoundError(text))
    away = _why_no_primary(redis.asyncio.sentinel.MasterNotFoundError("No master found for 'users'"))
    forbidden = _why_no_primary(exceptions.NoPermissionError("this user has no permissions"))
    assert [failure_kind(one) for one in (refused, away, forbidden)] == ["sentinel_auth", "no_primary", "sentinel_auth"]
    assert "DAIAN_REDIS_SENTINEL_PASSWORD" in str(failure_advice("sentinel_auth"))
    assert failure_advice("timeout") is None


def test_a13_saboteur_sentinels_left_to_the_library() -> None:
    sentinel = redis.asyncio.sentinel.Sentinel([("h", 1)], socket_timeout=0.07, socket_connect_timeout=0.07)
    with pytest.raises(AssertionError):
        assert_connection_is_ours(sentinel.sentinels[0].connection_pool.make_connection())


def test_a13_in_a_cluster_every_node_has_them() -> None:
    client = ClusterClient("redis+cluster://rank:se%40cret@h:1,[::1]:2", SETTINGS)
    for node in (("h", 1), ("::1", 2)):
        assert_limits_are_ours(client._client(node))
        connection = client._client(node).connection_pool.make_connection()
        assert (connection.host, connection.port, connection.password) == (*node, "se@cret")


def test_a13_every_limit_reads_as_we_set_it() -> None:
    client = async_client(SETTINGS.url, SETTINGS)
    assert_limits_are_ours(client)
    connection = client.connection_pool.make_connection()
    assert (connection.username, connection.password, connection.db) == ("rank", "secret", 2)


def test_a13_saboteur_the_library_left_to_itself() -> None:
    with pytest.raises(AssertionError):
        assert_limits_are_ours(redis.asyncio.Redis.from_url(SETTINGS.url))


def test_a13_defaults_are_the_documented_ones() -> None:
    found = StoreSettings("redis://h")
    limits = (found.timeout_ms, found.read_budget_ms, found.pool, found.pool_wait_ms)
    assert limits == (100, 20, 32, 20)
    assert (found.breaker_failures, found.breaker_open_ms, found.window_days, found.keep) == (3, 200, 14, 58)


async def seconds_until_refused(client: "redis.asyncio.Redis", at_most_s: float) -> float:
    started = time.perf_counter()
    task = asyncio.create_task(client.get("k"))
    await asyncio.wait({task}, timeout=at_most_s)
    if not task.done():
        task.cancel()
    with pytest.raises((exceptions.ConnectionError, asyncio.CancelledError)):
        await task
    await client.aclose()
    return time.perf_counter() - started


def test_a13_a_refused_connection_is_known_at_once() -> None:
    tries = [asyncio.run(seconds_until_refused(async_client(SETTINGS.url, SETTINGS), 5.0)) for _ in range(5)]
    assert min(tries) < 0.1  # the machine may stand still during one of them


def test_a13_saboteur_the_default_client_takes_its_time() -> None:
    client = redis.asyncio.Redis(host="127.0.0.1", port=1)
    assert asyncio.run(seconds_until_refused(client, 0.2)) >= 0.2


@pytest.mark.parametrize("query", ["socket_timeout=5", "max_connections=1000", "timeout=9", "db=1&protocol=3"])
def test_a_url_cannot_overrule_a_limit(query: str) -> None:
    url = f"redis://127.0.0.1:1?{query}"
    for make in (lambda: async_client(url, SETTINGS), lambda: command_client(url)):
        with pytest.raises(ValueError, match=query.split("&")[-1].split("=")[0]):
            make()


def test_saboteur_in_the_library_the_url_wins() -> None:
    pool = redis.asyncio.ConnectionPool.from_url("redis://127.0.0.1:1?socket_timeout=5", socket_timeout=0.07)
    assert pool.make_connection().socket_timeout == 5


def test_tls_verifies_the_server() -> None:
    settings = replace(SETTINGS, ca_file="/etc/ca.pem")
    for client in (async_client("rediss://h", settings), async_client("rediss://h", SETTINGS)):
        context = client.connection_pool.make_connection().ssl_context
        assert context.check_hostname
        assert context.cert_reqs.name == "CERT_REQUIRED"
    assert async_client("rediss://h", settings).connection_pool.make_connection().ssl_context.ca_certs == "/etc/ca.pem"


def test_the_command_client_does_not_retry_either() -> None:
    connection = command_client("redis://127.0.0.1:1", timeout_s=2.0).connection_pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (2.0, 2.0)
    assert connection.retry.get_retries() == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.TimeoutError(), "timeout"),
        (exceptions.BusyLoadingError(), "loading"),
        (exceptions.AuthenticationError(), "auth"),
        (exceptions.ReadOnlyError(), "readonly"),
        (exceptions.OutOfMemoryError(), "full"),
        (exceptions.NoPermissionError(), "permission"),
        (exceptions.ConnectionError("No connection available."), "pool"),
        (exceptions.ConnectionError("Error 111"), "connection"),
        (exceptions.ResponseError("WRONGTYPE Operation"), "wrong_type"),
        (exceptions.ResponseError("BUSY Redis is busy"), "server"),
        (exceptions.InvalidResponse(), "protocol"),
        (OSError(), "connection"),
        (TypeError(), "protocol"),
    ],
)
def test_failures_have_one_word(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


@pytest.mark.parametrize(
    ("url", "username"),
    [("redis+sentinel://rank@h:1,i:2/users", "rank"), ("redis://store:6379/3", None),
     ("rediss://rank@store/0", "rank"), ("redis://rank:@store", "rank"),
     ("unix:///run/store.sock", None)],
)  # fmt: skip
@pytest.mark.parametrize("password", ["hush", "a:b/c@d?e#f %41", "é"])
def test_a_password_from_elsewhere_reaches_the_connection(url: str, username: str | None, password: str) -> None:
    client = command_client(with_password(url, password))
    kept = client.connection_pool.connection_kwargs
    assert (kept.get("username"), kept["password"]) == (username, password)
    client.close()


def test_a_password_from_elsewhere_reaches_every_node_by_ipv6_too() -> None:
    address = parse_address(with_password("redis+cluster://rank@[::1]:1,[::2]", "hush"))
    assert (address.user, address.password, address.nodes) == ("rank", "hush", (("::1", 1), ("::2", 6379)))


def test_two_passwords_are_refused_without_being_named() -> None:
    with pytest.raises(ValueError, match="keep one") as refused:
        with_password("redis://:hush@store", "secret")
    assert "hush" not in str(refused.value)
    assert with_password("redis://:hush@store", None) == "redis://:hush@store"


# --- addresses --------------------------------------------------------------------------------------------------------


def test_addresses_of_every_kind_are_taken_apart() -> None:
    assert parse_address("redis://h:1/2") == StoreAddress("standalone", False)
    assert parse_address("rediss://h") == StoreAddress("standalone", True)
    assert parse_address("redis+sentinel://a:1,b/users/3") == StoreAddress(
        "sentinel", False, (("a", 1), ("b", 26379)), "users", 3
    )
    assert parse_address("rediss+cluster://me:p%40ss@a,[::1]:7") == StoreAddress(
        "cluster", True, (("a", 6379), ("::1", 7)), None, 0, "me", "p@ss"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:hush@h", "none of redis://"), ("hush", "none of redis://"), ("redis+sentinel://:hush@h", "name what"),
        ("redis+sentinel://:hush@h/users/x", "name what"), ("redis+cluster://:hush@h/1", "database 0 alone"),
        ("redis+cluster://:hush@h:99999", "a port in"), ("redis+cluster://:hush@h,,i", "a host is missing"),
        ("redis+sentinel://:hush@h/users?socket_timeout=9", "socket_timeout"), ("redis://[:hush@h", "brackets"),
        ("redis+cluster://:hush@h?db=1", "sets db"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_refused_without_being_repeated(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        check_settings(StoreSettings(url))
    assert "hush" not in str(refused.value)


def test_files_and_addresses_that_do_not_go_together_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("x")
    here = str(file)
    check_settings(StoreSettings("rediss://h", ca_file=here, cert_file=here, key_file=here))
    refused = {
        "DAIAN_REDIS_CA_FILE cannot be read": StoreSettings("rediss://h", ca_file=f"{here}.no"),
        "DAIAN_REDIS_CA_FILE is set and": StoreSettings("redis://h", ca_file=here),
        "go together": StoreSettings("rediss://h", cert_file=here),
        "different kinds": StoreSettings("redis://h", events_url="redis+cluster://h"),
        "DAIAN_REDIS_WAIT_MS must be less": StoreSettings("redis://h", timeout_ms=50, wait_replicas=1, wait_ms=50),
    }
    for reason, settings in refused.items():
        with pytest.raises(ValueError, match=reason):
            check_settings(settings)


def test_a_map_of_slots_is_read_and_a_strange_one_refused() -> None:
    reply = [[5461, 16383, [b"b", 2, b"id"]], [0, 5460, [b"", 1, b"id", []], [b"c", 3, b"id"]]]
    slots = read_slots(reply, ("asked", 9))
    assert slots == SlotMap((0, 5461), (5460, 16383), (("asked", 1), ("b", 2)))
    # CLUSTER KEYSLOT u_42 is 5007
    assert (slots.node_of("x{u_42}:b"), slots.range_of("x{u_42}:b")) == (("asked", 1), "0-5460")
    assert SlotMap((6000,), (16383,), (("b", 2),)).node_of("{u_42}") is None
    assert SlotMap().range_of("{u_42}") == ""
    for strange in (None, 7, [[1]], [[0, 1, b"x"]], [["a", 1, [b"h", 1]]], [[0, 1, [b"\xff", 1]]]):
        with pytest.raises(exceptions.InvalidResponse):
            read_slots(strange, ("h", 1))
