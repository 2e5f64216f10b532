"""Sentinels: how they are reached where that is not how the servers are that they watch, and when they refuse us.

Called by `redis_client.py`. redis-py (8.1) takes a sentinel that wants a password for one that is away, and says so in
a text alone: here it gets an error of its own, so that an operator is told which of two passwords is wrong.
"""

from dataclasses import dataclass, field
from typing import Literal

import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions

NO_PRIMARY_ERRORS = (redis.asyncio.sentinel.MasterNotFoundError, redis.sentinel.MasterNotFoundError)
_NO_ANSWER = (*NO_PRIMARY_ERRORS, exceptions.NoPermissionError)


@dataclass(frozen=True)
class SentinelAccess:
    """How sentinels are reached, where that is not how the servers are that they watch.

    Args:
        user, password: the sentinels' own, never those of the servers; None = they ask for none.
        tls: `on`, `off`, or `same` as the servers.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Literal["same", "on", "off"] = "same"


def check_access(access: SentinelAccess, are_there: bool) -> None:
    """Raises ValueError for a user without a password, and for settings of sentinels where there are none."""
    named = {
        "DAIAN_REDIS_SENTINEL_USER": access.user is not None,
        "DAIAN_REDIS_SENTINEL_PASSWORD": access.password is not None,
        "DAIAN_REDIS_SENTINEL_TLS": access.tls != "same",
    }
    for name, is_set in named.items():
        if is_set and not are_there:
            raise ValueError(f"{name} is set and the store's URL names no sentinels: unset it")
    if access.user is not None and access.password is None:
        raise ValueError("DAIAN_REDIS_SENTINEL_USER is set without DAIAN_REDIS_SENTINEL_PASSWORD: set both or neither")


class SentinelRefusalError(exceptions.AuthenticationError):
    """No sentinel let us ask who the primary is: it wants a user or password, another one, or none."""


class Sentinels(redis.asyncio.sentinel.Sentinel):
    """Sentinels that refuse us are told from sentinels that are away."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = await super().discover_master(service_name)
            return found
        except _NO_ANSWER as error:
            raise _why_no_primary(error) from error


class CommandSentinels(redis.sentinel.Sentinel):
    """The same for commands in a terminal."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
            return found
        except _NO_ANSWER as error:
            raise _why_no_primary(error) from error


def _why_no_primary(error: Exception) -> Exception:
    """The library's error, or ours if a sentinel's ACL forbade to ask or one of them did not let us in."""
    is_forbidden, text = isinstance(error, exceptions.NoPermissionError), str(error)
    if is_forbidden or exceptions.AuthenticationError.__name__ in text:
        return SentinelRefusalError("the sentinels refuse us")
    return error
