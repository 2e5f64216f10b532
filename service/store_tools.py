"""Looks into the behaviour store from a terminal: the bodies of `daian store inspect` and `daian store estimate`.

Works on the very bytes of `behaviour_codec.py`. Called by `commands.py`, which prints what these functions give. Never
changes anything in the store it looks at; an estimate is measured on a server of its own.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import redis
import redis.exceptions

from service.behaviour_codec import (
    USER_SUFFIXES,
    BehaviourEvent,
    CorruptBytesError,
    StoredBehaviour,
    canonical_id,
    decode_member,
    decode_profile,
    encode_member,
    encode_profile,
    tombstone_key,
    user_key,
)
from service.embedded_store import embedded_store
from service.errors import StoreUnavailable
from service.redis_client import STORE_ERRORS, StoreSettings, command_client, failure_advice, failure_kind
from service.redis_cluster import CommandClients
from service.user_store import DAY_MS, PROFILE_TTL_S, queue_behaviours, wall_clock_ms

N_WARM_UP = 50


def inspect_user(settings: StoreSettings, user_id: str, now: int | None = None) -> dict[str, object]:
    """Everything the store holds of one user, as JSON would have it; corrupt values are counted and shown in hex.

    Raises:
        StoreUnavailable: the store is away.
        ValueError: an id that cannot be one.
    """
    clients = CommandClients(settings.url, settings)
    now = wall_clock_ms() if now is None else now
    key = {suffix: user_key(settings.tenant, user_id, suffix) for suffix in USER_SUFFIXES}
    tombstone = tombstone_key(settings.tenant, user_id)
    try:
        client = clients.of(key["b"])
        members = _asked(client, "ZRANGE", key["b"], 0, -1, "WITHSCORES")
        flat = members if isinstance(members, list) else []
        profile, erased = _asked(client, "GET", key["p"]), _asked(client, "GET", tombstone)
        return {
            "user": canonical_id(user_id),
            "key": key["b"],
            "behaviours": _shown_members(user_id, flat, now - settings.window_days * DAY_MS),
            "attributes": _shown_profile(user_id, profile),
            "erased_at": erased.decode(errors="replace") if isinstance(erased, bytes) else None,
            "expires_in_s": _asked(client, "TTL", key["b"]),
            "memory_bytes": _asked(client, "MEMORY", "USAGE", key["b"]),
            "window_days": settings.window_days,
        }
    except STORE_ERRORS as error:
        kind = failure_kind(error)
        raise StoreUnavailable(
            f"the store is away ({kind}): {failure_advice(kind) or 'check its address and start it'}"
        ) from error
    finally:
        clients.close()


def estimate(
    n_users: int,
    n_behaviours: int = 58,
    item_bytes: int = 13,
    user_bytes: int = 13,
    profile_bytes: int = 0,
    n_sample: int = 2_000,
) -> dict[str, object]:
    """The memory that so many users need, measured: a sample is written to a server of our own and weighed.

    Args:
        n_users: users with a history.
        n_behaviours: kept per user.
        item_bytes, user_bytes: length of an id.
        profile_bytes: length of a profile as JSON; 0 = no profiles.
        n_sample: how many users are written to measure one, fewer for long histories.

    Raises:
        EmbeddedStoreError: there is no server to measure with.
        ValueError: a number that makes no sense.
    """
    if min(n_users, n_behaviours) < 1 or not (8 <= item_bytes <= 128 and 8 <= user_bytes <= 128) or profile_bytes < 0:
        raise ValueError(
            "an estimate needs at least one user and behaviour, ids of 8 to 128 bytes, profiles of 0 or more"
        )
    n_sample = max(min(n_sample, n_users, 400_000 // n_behaviours), 1)
    with tempfile.TemporaryDirectory(prefix="daian-estimate-") as folder, embedded_store(Path(folder)) as url:
        client = command_client(url)
        settings, now = StoreSettings(url, keep=n_behaviours), wall_clock_ms()
        n_before = 0
        # The first ones make the server's buffers and tables, and are not weighed.
        for number in range(N_WARM_UP + n_sample):
            if number == N_WARM_UP:
                n_before = _used_memory(client)
            _write_sample(client, settings, number, item_bytes, user_bytes, profile_bytes, now)
        per_user = (_used_memory(client) - n_before) / n_sample
        client.close()
    return {
        "users": n_users,
        "behaviours_per_user": n_behaviours,
        "bytes_per_user": round(per_user),
        "total_bytes": round(per_user * n_users),
        "total": f"{per_user * n_users / 1e9:.2f} GB",
        "measured_users": n_sample,
    }


def _asked(client: redis.Redis, *command: object) -> object:
    """The reply, or None where this ACL user may not ask or the key is of another type."""
    try:
        reply: object = client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.exceptions.ResponseError:
        return None
    return reply


def _shown_members(user_id: str, flat: Sequence[object], since: int) -> list[dict[str, object]]:
    """Members and scores as the server lists them, oldest first."""
    shown: list[dict[str, object]] = []
    for member, score in zip(flat[::2], flat[1::2], strict=True):
        if not isinstance(member, bytes) or not isinstance(score, bytes):
            continue
        try:
            shown.append(_shown(decode_member(user_id, member), float(score) > since))
        except CorruptBytesError as error:
            shown.append({"corrupt": str(error), "hex": member.hex()})
    return shown


def _shown(behaviour: StoredBehaviour, is_within: bool) -> dict[str, object]:
    time_text = datetime.fromtimestamp(behaviour.at / 1000, UTC).isoformat().replace("+00:00", "Z")
    return {"item": behaviour.item, "type": behaviour.type, "time": time_text, "in_window": is_within}


def _shown_profile(user_id: str, value: object) -> dict[str, object] | None:
    if not isinstance(value, bytes):
        return None
    try:
        return decode_profile(user_id, value)
    except CorruptBytesError as error:
        return {"corrupt": str(error), "hex": value.hex()}


def _used_memory(client: redis.Redis) -> int:
    """The server's memory without what this connection and the file being written take for the moment."""
    info = client.info("memory")
    return int(info["used_memory"]) - int(info["mem_clients_normal"]) - int(info["mem_aof_buffer"])


def _write_sample(
    client: redis.Redis,
    settings: StoreSettings,
    number: int,
    item_bytes: int,
    user_bytes: int,
    profile_bytes: int,
    now: int,
) -> None:
    """One user as they come: distinct ids of the given length, a behaviour a minute."""
    user_id = f"{number:0{user_bytes}d}"
    events = [
        BehaviourEvent(
            user_id, f"{(number * settings.keep + place) % 10**8:0{item_bytes}d}", "click", now - place * 60_000
        )
        for place in range(settings.keep)
    ]
    pipe = client.pipeline(transaction=True)
    queue_behaviours(pipe, settings, user_id, [(encode_member(event), event.at) for event in events], now)
    if profile_bytes:
        value = encode_profile(user_id, {"a": "x" * max(profile_bytes - 8, 0)})
        pipe.execute_command("SET", user_key(settings.tenant, user_id, "p"), value, "EX", PROFILE_TTL_S)  # type: ignore[no-untyped-call]
    pipe.execute()
