"""The one place where a client of Redis or Valkey is made, with every limit said out loud.

What lives here: `StoreSettings`, and the clients made from them, one for a running service (asyncio) and one for
commands in a terminal. redis-py's own defaults (8.1: ten retries, five seconds each) turn a refused connection into
3.75 seconds and a silent server into a minute, so no default of the library is left standing.
Called by `user_store.py` and `store_tools.py`. Never reads the environment, never connects by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is and how long anything may take.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with an ACL user if the server wants one.
        events_url: the same server for writes, with another ACL user; None = `url`.
        timeout_ms: to connect, and to send or receive on a connection.
        read_budget_ms: what a ranking waits for a user's history; the reply may land later and is then only counted.
        pool: connections for reads, and again as many for writes.
        pool_wait_ms: how long to wait for a free connection.
        breaker_failures: failures in a row after which nobody asks for `breaker_open_ms`.
        window_days: how far back behaviours are read and kept.
        keep: how many behaviours of a user are read and kept.
        tenant: whose users are meant where a call names no tenant, `[a-z0-9-]{1,32}`.
        ca_file: certificates that a `rediss://` server's must be signed by; None = the system's.
    """

    url: str
    events_url: str | None = None
    timeout_ms: int = 100
    read_budget_ms: int = 20
    pool: int = 32
    pool_wait_ms: int = 20
    breaker_failures: int = 3
    breaker_open_ms: int = 200
    window_days: int = 14
    keep: int = 58
    tenant: str = "main"
    ca_file: str | None = None


def with_password(url: str, password: str | None) -> str:
    """The URL with a password that came from elsewhere, such as a secret's file.

    Raises:
        ValueError: the URL has a password already, or no place for one.
    """
    if password is None:
        return url
    parts = urlsplit(url)
    if parts.password:
        raise ValueError("the store's URL has a password and another one is set: keep one of them")
    user, at, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.removesuffix(':') if at else ''}:{quote(password, safe='')}@{place}").geturl()


def async_client(url: str, settings: StoreSettings) -> "redis.asyncio.Redis":
    """A client with a pool of its own that waits, never retries and never waits long. Connects at first use."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        _checked(url),
        max_connections=settings.pool,
        timeout=settings.pool_wait_ms / 1000,
        socket_timeout=settings.timeout_ms / 1000,
        socket_connect_timeout=settings.timeout_ms / 1000,
        retry=AsyncRetry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        # RESP2 needs no handshake of its own and has no messages that nobody asked for.
        protocol=2,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        # No CLIENT SETINFO: the narrow ACL user of a rank service may not send it.
        driver_info=None,
        **_tls(url, settings.ca_file),
    )
    return redis.asyncio.Redis.from_pool(pool)


def command_client(url: str, timeout_s: float = 5.0, ca_file: str | None = None) -> "redis.Redis":
    """A blocking client on one connection for commands in a terminal: patient, but it does not retry either."""
    pool = redis.ConnectionPool.from_url(
        _checked(url),
        max_connections=1,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        protocol=2,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        driver_info=None,
        **_tls(url, ca_file),
    )
    return redis.Redis.from_pool(pool)


STORE_ERRORS: tuple[type[Exception], ...] = (exceptions.RedisError, OSError)

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.TimeoutError, "timeout"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.AuthenticationError, "auth"),
    (exceptions.AuthorizationError, "auth"),
    (exceptions.ReadOnlyError, "readonly"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.NoPermissionError, "permission"),
)


def failure_kind(error: BaseException) -> str:
    """One word for a failure, fit for a label and a log line: an error's own text holds keys, and so users."""
    for family, kind in _KINDS:
        if isinstance(error, family):
            return kind
    if isinstance(error, exceptions.ConnectionError):
        return "pool" if str(error) == "No connection available." else "connection"
    if isinstance(error, exceptions.ResponseError):
        return "wrong_type" if str(error).startswith("WRONGTYPE") else "server"
    return "connection" if isinstance(error, OSError) else "protocol"


def _checked(url: str) -> str:
    """The URL, if it says where and who, and nothing else: redis-py lets its query overrule our limits."""
    query = set(parse_qs(urlsplit(url).query))
    unwanted = query - {"db"}
    if unwanted:
        raise ValueError(
            f"the store's URL sets {', '.join(sorted(unwanted))}: remove it, limits are set by DAIAN_REDIS_* alone"
        )
    return url


def _tls(url: str, ca_file: str | None) -> Mapping[str, object]:
    if not url.startswith("rediss:"):
        return {}
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": ca_file}
