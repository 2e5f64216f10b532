"""Loads users into the behaviour store in bulk: the body of `daian store load`.

Reads NDJSON a line at a time, checks it, and sends users in transactions of bounded size. It may be repeated at will:
a behaviour that is there already changes nothing, so after any failure the same command is simply started again. What
was sent is held until the store has it in its append-only file, and sent again when the store was restarted before.
Called by `commands.py`. Never deletes anything of a user's but what left the window or may not come back after an
erasure, never runs inside the service.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import orjson
import redis
import redis.client

from service.behaviour_codec import BehaviourEvent, canonical_id, encode_member, encode_profile, tombstone_key, user_key
from service.contract.errors import DaianError
from service.held_batches import HeldBatches, NotKeptError
from service.redis_client import STORE_ERRORS, StoreSettings, failure_kind
from service.redis_cluster import CommandClients
from service.user_store import (
    DAY_MS,
    PROFILE_TTL_S,
    erased_at_of,
    queue_behaviours,
    queue_removal,
    wall_clock_ms,
)

MAX_LINE_BYTES = 8 << 20
# One transaction holds up the server for as long as it runs: about a millisecond at this size.
BATCH_MEMBERS = 1_000
BATCH_USERS = 200
BATCH_BYTES = 1 << 20
# Pauses before a batch is sent again, seconds.
RETRY_PAUSES_S = (0.1, 0.3, 1.0, 3.0)
# Epoch milliseconds below this (March 1973) are epoch seconds in all likelihood.
_MIN_AT_MS = 100_000_000_000


class StoreLoadError(DaianError):
    """A line that cannot be loaded, or a store that stopped answering. The message names file and line."""


@dataclass
class LoadReport:
    """What a load did. `n_too_old` were never sent.

    `n_new` behaviours were not in the store when they were first answered for; sending them again counts nothing.
    `n_sent_again` transactions were repeated because the store was restarted. `is_confirmed`: the store said of all of
    it that its append-only file has it; False where it keeps none, is older than Redis 7.2, or INFO is forbidden.
    `n_erased` behaviours are not younger than their user's erasure and were not kept.
    """

    n_lines: int = 0
    n_profiles: int = 0
    n_sent: int = 0
    n_new: int = 0
    n_too_old: int = 0
    n_over_keep: int = 0
    n_erased: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    n_sent_again: int = 0
    is_confirmed: bool = False


@dataclass(frozen=True)
class _User:
    """One line, checked and encoded."""

    user_id: str
    place: str
    scored: tuple[tuple[bytes, int], ...]
    profile: bytes | None
    n_too_old: int
    n_over_keep: int


@runtime_checkable
class Screen(Protocol):
    """What progress is written to, e.g. `sys.stderr`."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


@dataclass
class Progress:
    """A line on a terminal that is written over, or a line every five seconds elsewhere."""

    stream: Screen = field(default_factory=lambda: sys.stderr)
    n_bytes_total: int | None = None
    _told_at: float = field(default_factory=time.monotonic)

    def tell(self, report: LoadReport, is_last: bool = False) -> None:
        is_terminal = self.stream.isatty()
        if not is_last and time.monotonic() - self._told_at < (0.2 if is_terminal else 5.0):
            return
        self._told_at = time.monotonic()
        share = f" ({report.n_bytes / self.n_bytes_total:.0%})" if self.n_bytes_total else ""
        text = f"loaded {report.n_lines:,} lines, {report.n_sent:,} behaviours{share}"
        end = "\n" if is_last or not is_terminal else ""
        self.stream.write(f"\r{text}{end}" if is_terminal else f"{text}{end}")
        self.stream.flush()


def load(
    settings: StoreSettings, sources: Sequence[str], shift_ms: int = 0, now: int | None = None, progress: bool = True
) -> LoadReport:
    """Loads users from NDJSON files; `-` is standard input.

    A line: `{"user": "u1", "behaviours": [{"item": "i1", "at": <epoch ms>, "type": "click"}], "attributes": {}}`, with
    `behaviours` and `attributes` optional, and an optional `surface` per behaviour. A user may have several lines.

    Args:
        settings: the store; `events_url` is used where there is one.
        sources: files, read in their order.
        shift_ms: added to every time, to bring an old log into the window.
        now: the end of the window, epoch milliseconds; None = the clock's.
        progress: whether to report to standard error on the way.

    Raises:
        StoreLoadError: a line is wrong, a file cannot be read, or the store is away. Lines before it are loaded.
    """
    clients = CommandClients(settings.events_url or settings.url, settings)
    bar = Progress(n_bytes_total=_total_bytes(sources)) if progress else None
    try:
        return load_lines(clients, settings, _lines(sources), shift_ms, now or wall_clock_ms(), bar)
    finally:
        clients.close()


def load_lines(
    clients: CommandClients,
    settings: StoreSettings,
    lines: Iterable[tuple[str, bytes]],
    shift_ms: int,
    now: int,
    progress: Progress | None = None,
) -> LoadReport:
    """Loads (place, line) pairs in batches; memory stays bounded by what is held. Raises as `load` does."""
    report, started = LoadReport(), time.perf_counter()
    users = (_read(place, line, settings, shift_ms, now, report) for place, line in lines)
    held = _held(clients, settings, now)
    batch = list[_User]()
    for batch in _batches(users):
        _load(clients, settings, batch, now, report, held)
        if progress:
            progress.tell(report)
    if held:
        with _named(batch):
            held.confirm()
        report.n_sent_again, report.is_confirmed = held.n_sent_again, held.is_confirmed
    report.seconds = time.perf_counter() - started
    if progress:
        progress.tell(report, is_last=True)
    return report


def _held(clients: CommandClients, settings: StoreSettings, now: int) -> HeldBatches[Sequence[_User]] | None:
    """None for a cluster: a slot may change its node at any time, and with it who could confirm what was sent."""
    if clients.is_cluster:
        return None
    return HeldBatches[Sequence[_User]](
        clients.of(""),
        queue=lambda pipe, batch: _queue(pipe, settings, batch[-1:], now),
        send=lambda batch: _send(clients, settings, batch, now),
        after=lambda batch: _take_out_erased(clients.of(""), settings, batch[-1:]),
    )


def _total_bytes(sources: Sequence[str]) -> int | None:
    """Bytes of all files, or None if one is not a file that can be measured beforehand."""
    try:
        return None if "-" in sources else sum(Path(source).stat().st_size for source in sources)
    except OSError:
        return None


def _lines(sources: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(file:line, bytes) of every line that is not blank."""
    for source in sources:
        name = "<stdin>" if source == "-" else source
        with ExitStack() as stack:
            try:
                file = sys.stdin.buffer if source == "-" else stack.enter_context(Path(source).open("rb"))
            except OSError as error:
                raise StoreLoadError(f"{name} cannot be read ({error.strerror}): name a readable file") from error
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise StoreLoadError(f"{name}:{number}: over {MAX_LINE_BYTES} bytes: one user per line, please")
                if line.strip():
                    yield f"{name}:{number}", line


def _batches(users: Iterable[_User]) -> Iterator[list[_User]]:
    """The users in groups of bounded number, behaviours and bytes."""
    batch, n_members, n_bytes = list[_User](), 0, 0
    for user in users:
        batch.append(user)
        n_members += len(user.scored)
        n_bytes += _n_bytes(user)
        if len(batch) >= BATCH_USERS or n_members >= BATCH_MEMBERS or n_bytes >= BATCH_BYTES:
            yield batch
            batch, n_members, n_bytes = [], 0, 0
    if batch:
        yield batch


def _read(place: str, line: bytes, settings: StoreSettings, shift_ms: int, now: int, report: LoadReport) -> _User:
    report.n_lines += 1
    report.n_bytes += len(line)
    return _parsed(place, line, settings, shift_ms, now)


def _parsed(place: str, line: bytes, settings: StoreSettings, shift_ms: int, now: int) -> _User:
    try:
        row = orjson.loads(line)
        return _encoded(place, row, settings, shift_ms, now)
    except orjson.JSONDecodeError as error:
        raise StoreLoadError(f"{place}: not JSON ({error}): one JSON object per line") from error
    except ValueError as error:
        raise StoreLoadError(f"{place}: {error}") from error


def _encoded(place: str, row: object, settings: StoreSettings, shift_ms: int, now: int) -> _User:
    if not isinstance(row, dict):
        raise ValueError("a line is a JSON object with 'user', 'behaviours' and 'attributes'")
    _refuse_unknown(row, {"user", "behaviours", "attributes"})
    user_id, behaviours, attributes = row.get("user"), row.get("behaviours", []), row.get("attributes")
    if not isinstance(user_id, str):
        raise ValueError("'user' is missing or not a string: every line needs one")
    if not isinstance(behaviours, list) or not (attributes is None or isinstance(attributes, dict)):
        raise ValueError("'behaviours' is a list of objects, 'attributes' an object: correct the line")
    events = [_event(user_id, number, one, shift_ms) for number, one in enumerate(behaviours)]
    since = now - settings.window_days * DAY_MS
    scored = sorted((event.at, encode_member(event)) for event in events)
    within = [(member, at) for at, member in scored if at > since]
    kept = within[-settings.keep :]
    profile = encode_profile(user_id, attributes) if attributes else None
    canonical_id(user_id)
    return _User(user_id, place, tuple(kept), profile, len(scored) - len(within), len(within) - len(kept))


def _event(user_id: str, number: int, one: object, shift_ms: int) -> BehaviourEvent:
    where = f"behaviours[{number}]"
    if not isinstance(one, dict):
        raise ValueError(f"{where} is not an object: give it 'item', 'at' and 'type'")
    _refuse_unknown(one, {"item", "at", "type", "surface"})
    item, at, kind, surface = (one.get(name) for name in ("item", "at", "type", "surface"))
    if not isinstance(item, str) or not isinstance(kind, str) or not (surface is None or isinstance(surface, str)):
        raise ValueError(f"{where}: 'item' and 'type' are strings, and so is 'surface' where there is one")
    if not isinstance(at, int) or isinstance(at, bool) or at < _MIN_AT_MS:
        raise ValueError(f"{where}: 'at' is {at!r}: epoch milliseconds are expected (seconds times 1000)")
    return BehaviourEvent(user_id, item, kind, at + shift_ms, surface)


def _refuse_unknown(found: dict[str, object], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}: known are {', '.join(sorted(known))}")


def _load(
    clients: CommandClients,
    settings: StoreSettings,
    batch: Sequence[_User],
    now: int,
    report: LoadReport,
    held: HeldBatches[Sequence[_User]] | None,
) -> None:
    """Sends a batch, counts it and has it held."""
    sendable = [user for user in batch if user.scored or user.profile]
    if sendable:
        added = _send(clients, settings, sendable, now, held.meet if held else lambda: None)
        report.n_new += added.n_new
        report.n_erased += added.n_erased
    _count(batch, report)
    if sendable and held:
        with _named(batch):
            held.hold(sendable, sum(len(user.scored) for user in sendable), sum(map(_n_bytes, sendable)))


@dataclass(frozen=True)
class _Added:
    """How many behaviours of a batch were new, and how many an erasure forbids."""

    n_new: int
    n_erased: int


def _send(
    clients: CommandClients,
    settings: StoreSettings,
    batch: Sequence[_User],
    now: int,
    before: Callable[[], object] = lambda: None,
) -> _Added:
    """One transaction per node for the batch, sent again after a failure: what was stored already changes nothing."""
    pauses_s = iter(RETRY_PAUSES_S)
    while True:
        try:
            before()
            return _sent(clients, settings, batch, now)
        except STORE_ERRORS as error:
            clients.forget()
            pause_s = next(pauses_s, None)
            if pause_s is None:
                raise StoreLoadError(
                    f"the store did not take {batch[0].place} and after ({failure_kind(error)}): "
                    "see to it, then start the same command again, what is loaded already stays as it is"
                ) from error
        time.sleep(pause_s)


@contextmanager
def _named(batch: Sequence[_User]) -> Iterator[None]:
    """Says of what was not kept which line it reaches to."""
    try:
        yield
    except NotKeptError as error:
        raise StoreLoadError(
            f"up to {batch[-1].place}: {error}: see to it, then start the same command again, it repeats without harm"
        ) from error


def _sent(clients: CommandClients, settings: StoreSettings, batch: Sequence[_User], now: int) -> _Added:
    """Every node's users on their node."""
    by_node = dict[int, tuple[redis.Redis, list[_User]]]()
    for user in batch:
        client = clients.of(user_key(settings.tenant, user.user_id, "b"))
        by_node.setdefault(id(client), (client, []))[1].append(user)
    # A cluster's transactions are one slot's: there the users go one after the other, and a command that is sent again
    # changes nothing.
    added = [_transaction(client, settings, users, now, not clients.is_cluster) for client, users in by_node.values()]
    return _Added(sum(one.n_new for one in added), sum(one.n_erased for one in added))


def _transaction(
    client: redis.Redis, settings: StoreSettings, batch: Sequence[_User], now: int, is_atomic: bool
) -> _Added:
    """Adds the users, then takes out again what an erasure forbids: no ranking reads it meanwhile."""
    pipe = client.pipeline(transaction=is_atomic)
    adds = _queue(pipe, settings, batch, now)
    replies = pipe.execute(raise_on_error=True)
    n_removed, n_erased = _take_out_erased(client, settings, batch)
    return _Added(max(sum(int(replies[place]) for place in adds) - n_removed, 0), n_erased)


def _queue(pipe: redis.client.Pipeline, settings: StoreSettings, batch: Sequence[_User], now: int) -> list[int]:
    """Queues what stores these users; the places of the replies that count new behaviours."""
    adds = list[int]()
    for user in batch:
        if user.scored:
            adds.append(len(pipe))
            queue_behaviours(pipe, settings, user.user_id, user.scored, now)
        if user.profile is not None:
            key = user_key(settings.tenant, user.user_id, "p")
            pipe.execute_command("SET", key, user.profile, "EX", PROFILE_TTL_S)  # type: ignore[no-untyped-call]
    return adds


def _take_out_erased(client: redis.Redis, settings: StoreSettings, batch: Sequence[_User]) -> tuple[int, int]:
    """(behaviours removed, behaviours of the batch that are not younger than their user's erasure).

    A profile has no time: it stays where its line has a younger behaviour, which is a user who came back.
    """
    pipe, n_erased, places = client.pipeline(transaction=False), 0, list[int]()
    for user in batch:
        pipe.execute_command("GET", tombstone_key(settings.tenant, user.user_id))  # type: ignore[no-untyped-call]
    for user, reply in zip(batch, pipe.execute(raise_on_error=True), strict=True):
        erased_at = erased_at_of(reply)
        if erased_at is None:
            continue
        n_old = sum(at <= erased_at for _, at in user.scored)
        n_erased += n_old
        if user.scored:
            places.append(len(pipe))
            queue_removal(pipe, settings, user.user_id, erased_at)
        if user.profile is not None and n_old == len(user.scored):
            pipe.execute_command("UNLINK", user_key(settings.tenant, user.user_id, "p"))  # type: ignore[no-untyped-call]
    replies = pipe.execute(raise_on_error=True)
    return sum(int(replies[place]) for place in places), n_erased


def _n_bytes(user: _User) -> int:
    return sum(len(member) for member, _ in user.scored) + len(user.profile or b"")


def _count(batch: Sequence[_User], report: LoadReport) -> None:
    for user in batch:
        report.n_sent += len(user.scored)
        report.n_profiles += user.profile is not None
        report.n_too_old += user.n_too_old
        report.n_over_keep += user.n_over_keep
