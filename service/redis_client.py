"""The one place where a client of Redis or Valkey is made, with every limit said out loud.

What lives here: `StoreSettings`, and the clients made from them, one for a running service (asyncio) and one for
commands in a terminal. redis-py's own defaults (8.1: ten retries, five seconds each) turn a refused connection into
3.75 seconds and a silent server into a minute, so no default of the library is left standing.
Called by `user_store.py`, `store_tools.py` and `redis_cluster.py`, which makes one of these per node. Never reads the
environment, never connects by itself.
"""

from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import redis
import redis.asyncio
import redis.asyncio.sentinel
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from service.redis_replicas import UnconfirmedError
from service.redis_sentinels import (
    NO_PRIMARY_ERRORS,
    CommandSentinels,
    SentinelAccess,
    SentinelRefusalError,
    Sentinels,
    check_access,
)
from service.store_address import StoreAddress, parse_address, split_url


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is and how long anything may take.

    Args:
        url: an address as in `store_address.py`, with an ACL user if the server wants one.
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
        cert_file, key_file: our own certificate and its key, for a `rediss://` server that asks for one.
        sentinels: how to reach them, where the address names some.
        wait_replicas: how many replicas must have a write before it counts; 0 = the primary alone decides.
        wait_ms: how long to wait for them.
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
    cert_file: str | None = None
    key_file: str | None = None
    sentinels: SentinelAccess = field(default_factory=SentinelAccess)
    wait_replicas: int = 0
    wait_ms: int = 50


@dataclass(frozen=True)
class TlsFiles:
    """Files of a TLS connection: whom to trust, and who we are."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def tls_files(settings: StoreSettings) -> TlsFiles:
    """The files that the settings name."""
    return TlsFiles(settings.ca_file, settings.cert_file, settings.key_file)


def check_settings(settings: StoreSettings) -> None:
    """Refuses at the start what could only fail later.

    Raises:
        ValueError: an address that cannot be one, two addresses of different kinds, a file that cannot be read, half a
            pair of certificate and key, files without TLS, settings of sentinels where there are none, or a wait for
            replicas that the connection's time-out would end.
    """
    addresses = [parse_address(url) for url in (settings.url, settings.events_url) if url]
    if len({address.mode for address in addresses}) > 1:
        raise ValueError("DAIAN_REDIS_URL and DAIAN_REDIS_EVENTS_URL are of different kinds: both name one store")
    if (settings.cert_file is None) != (settings.key_file is None):
        raise ValueError("DAIAN_REDIS_CERT_FILE and DAIAN_REDIS_KEY_FILE go together: set both or neither")
    if settings.wait_replicas and settings.wait_ms >= settings.timeout_ms:
        raise ValueError("DAIAN_REDIS_WAIT_MS must be less than DAIAN_REDIS_TIMEOUT_MS, which ends a silent connection")
    check_access(settings.sentinels, addresses[0].mode == "sentinel")
    is_tls = settings.sentinels.tls == "on" or any(address.is_tls for address in addresses)
    named = {
        "DAIAN_REDIS_CA_FILE": settings.ca_file,
        "DAIAN_REDIS_CERT_FILE": settings.cert_file,
        "DAIAN_REDIS_KEY_FILE": settings.key_file,
    }
    for name, path in named.items():
        if path is None:
            continue
        if not is_tls:
            raise ValueError(f"{name} is set and the store's URL is without TLS: write rediss:// in place of redis://")
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror}): name a file this process may read") from error


def with_password(url: str, password: str | None) -> str:
    """The URL with a password that came from elsewhere, such as a secret's file.

    Raises:
        ValueError: the URL has a password already, or no place for one.
    """
    if password is None:
        return url
    scheme, credentials, places, behind = split_url(url)
    user, _, own = credentials.partition(":")
    if own:
        raise ValueError("the store's URL has a password and another one is set: keep one of them")
    return f"{scheme}://{user}:{quote(password, safe='')}@{places}{behind}"


def async_client(url: str, settings: StoreSettings) -> "redis.asyncio.Redis":
    """A client with a pool of its own that waits, never retries and never waits long. Connects at first use.

    Raises:
        ValueError: a URL that is none, or a cluster's: see `redis_cluster.py`.
    """
    address, tls = parse_address(url), tls_files(settings)
    limits = _limits(settings.timeout_ms / 1000, AsyncRetry(NoBackoff(), 0))
    waiting: dict[str, Any] = {"max_connections": settings.pool, "timeout": settings.pool_wait_ms / 1000}
    if address.mode == "sentinel":
        sentinel = Sentinels(  # type: ignore[no-untyped-call]
            address.nodes, sentinel_kwargs={**limits, **_to_sentinels(address, tls, settings.sentinels)}
        )
        found: redis.asyncio.Redis = sentinel.master_for(
            str(address.service),
            connection_pool_class=_WaitingSentinelPool,
            **limits,
            **waiting,
            **_ssl(address, tls, is_client=True),
            **_who(address),
        )
        return found
    _refuse_cluster(address)
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, **limits, **waiting, **_ssl(address, tls))
    return redis.asyncio.Redis.from_pool(pool)


def command_client(
    url: str, timeout_s: float = 5.0, tls: TlsFiles | None = None, sentinels: SentinelAccess | None = None
) -> "redis.Redis":
    """A blocking client on one connection for commands in a terminal: patient, but it does not retry either.

    Raises ValueError as `async_client` does.
    """
    address, tls = parse_address(url), tls or TlsFiles()
    limits = _limits(timeout_s, Retry(NoBackoff(), 0))
    greeted = {"redis_connect_func": _greet}
    if address.mode == "sentinel":
        ways = _ssl(address, tls, is_client=True), _to_sentinels(address, tls, sentinels or SentinelAccess())
        server, sentinel = ({**limits, **way, **(greeted if "ssl" in way else {})} for way in ways)
        asked = CommandSentinels(address.nodes, sentinel_kwargs=sentinel)  # type: ignore[no-untyped-call]
        found: redis.Redis = asked.master_for(  # type: ignore[no-untyped-call]
            address.service, max_connections=1, **server, **_who(address)
        )
        return found
    _refuse_cluster(address)
    if address.is_tls:
        limits |= greeted
    pool = redis.ConnectionPool.from_url(url, max_connections=1, **limits, **_ssl(address, tls))
    return redis.Redis.from_pool(pool)


def _greet(connection: Any) -> None:
    """Reads once after the handshake: TLS 1.3 sends tickets then, which redis-py's pool takes for an unasked reply."""
    connection.on_connect()
    connection.send_command("PING")
    connection.read_response()


class _WaitingSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Asks the sentinels for the primary at every new connection; waits for a free one, as our other pools do."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _limits(timeout_s: float, retry: "Retry | AsyncRetry") -> dict[str, Any]:
    """What redis-py would otherwise decide."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": retry,
        "retry_on_error": [],
        "health_check_interval": 0,
        # RESP2 needs no handshake of its own and has no messages that nobody asked for.
        "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        # No CLIENT SETINFO: the narrow ACL user of a rank service may not send it.
        "driver_info": None,
    }


def _who(address: StoreAddress) -> dict[str, Any]:
    return {"username": address.user, "password": address.password, "db": address.db}


def _to_sentinels(address: StoreAddress, tls: TlsFiles, access: SentinelAccess) -> dict[str, Any]:
    is_tls = address.is_tls if access.tls == "same" else access.tls == "on"
    way = _ssl(replace(address, is_tls=is_tls), tls, is_client=True)
    return {**way, "username": access.user, "password": access.password}


def _refuse_cluster(address: StoreAddress) -> None:
    if address.mode == "cluster":
        raise ValueError("a cluster has no client of its own, but one per node: use service.redis_cluster")


STORE_ERRORS: tuple[type[Exception], ...] = (exceptions.RedisError, OSError)

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (SentinelRefusalError, "sentinel_auth"),
    *((one, "no_primary") for one in NO_PRIMARY_ERRORS),
    (exceptions.TimeoutError, "timeout"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.AuthenticationError, "auth"),
    (exceptions.AuthorizationError, "auth"),
    (exceptions.ReadOnlyError, "readonly"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.NoPermissionError, "permission"),
    (exceptions.AskError, "moved"),
    (exceptions.MasterDownError, "server"),
    (exceptions.ClusterDownError, "cluster_down"),
    (UnconfirmedError, "unconfirmed"),
)

_ADVICE = {
    "sentinel_auth": "the sentinels refuse our user or password, or want one of their own: set "
    "DAIAN_REDIS_SENTINEL_PASSWORD and, if they know users, DAIAN_REDIS_SENTINEL_USER",
    "no_primary": "no sentinel answers that names a primary: check sentinels and service in DAIAN_REDIS_URL",
    "auth": "the server refuses our user or password, or wants one: check DAIAN_REDIS_PASSWORD and DAIAN_REDIS_URL",
    "unconfirmed": "too few replicas have what was written: start them, or lower DAIAN_REDIS_WAIT_REPLICAS",
    "permission": "the server's ACL does not let our user do that: docs/operate.md has the two users",
}


def failure_advice(kind: str) -> str | None:
    """What an operator should look at after a failure of this kind; None where the word says it all."""
    return _ADVICE.get(kind)


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


def _ssl(address: StoreAddress, tls: TlsFiles, is_client: bool = False) -> dict[str, Any]:
    """How redis-py is told about TLS; a pool made from a URL knows by the URL that there is some."""
    if not address.is_tls:
        return {}
    return {
        **({"ssl": True} if is_client else {}),
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": tls.ca_file,
        "ssl_certfile": tls.cert_file,
        "ssl_keyfile": tls.key_file,
    }
