"""A13: every limit of the client is ours, read off the live object and timed on a closed port."""

import asyncio
import time
from dataclasses import replace

import pytest
import redis.asyncio
from redis import exceptions

from service.redis_client import StoreSettings, async_client, command_client, failure_kind, with_password

SETTINGS = StoreSettings("redis://rank:secret@127.0.0.1:1/2", timeout_ms=70, pool=7, pool_wait_ms=30)


def assert_limits_are_ours(client: "redis.asyncio.Redis") -> None:
    pool = client.connection_pool
    assert isinstance(pool, redis.asyncio.BlockingConnectionPool)
    assert (pool.max_connections, pool.timeout) == (7, 0.03)
    connection = pool.make_connection()
    assert connection.socket_timeout == connection.socket_connect_timeout == 0.07
    assert connection.retry.get_retries() == 0
    assert connection.retry_on_error == []
    assert not connection.retry_on_timeout
    assert connection.health_check_interval == 0
    assert connection.driver_info is None
    assert connection.protocol == 2
    assert not (connection.maint_notifications_config and connection.maint_notifications_config.enabled)


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
    assert asyncio.run(seconds_until_refused(async_client(SETTINGS.url, SETTINGS), 1.0)) < 0.1


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
    [("redis://store:6379/3", None), ("rediss://rank@store/0", "rank"), ("redis://rank:@store", "rank"),
     ("unix:///run/store.sock", None)],
)  # fmt: skip
@pytest.mark.parametrize("password", ["hush", "a:b/c@d?e#f %41", "é"])
def test_a_password_from_elsewhere_reaches_the_connection(url: str, username: str | None, password: str) -> None:
    client = command_client(with_password(url, password))
    kept = client.connection_pool.connection_kwargs
    assert (kept.get("username"), kept["password"]) == (username, password)
    client.close()


def test_two_passwords_are_refused_without_being_named() -> None:
    with pytest.raises(ValueError, match="keep one") as refused:
        with_password("redis://:hush@store", "secret")
    assert "hush" not in str(refused.value)
    assert with_password("redis://:hush@store", None) == "redis://:hush@store"
