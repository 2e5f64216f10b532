"""RequestLog: what was ranked, as rows of the contract, one JSON object per line.

The ranker appends after each answer; with clicks joined (`daian data prepare logs`) these rows are tomorrow's training
input. Off unless `DAIAN_REQUEST_LOG` names a file; tenants other than the main one have files of their own beside it.
Appending never waits and never fails a ranking: a thread writes, the queue is bounded, and rows that do not fit are
dropped and counted. An erased user's rows become blank lines in place: whoever reads or appends is not disturbed. All
who are to be erased while a file is being looked through are looked for together, in the next pass.
"""

import asyncio
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import orjson

from service.behaviour_codec import MAIN_TENANT, canonical_id
from service.metrics import Metrics

FEW = 4  # users: for more, reading every row costs less than searching it for each id
CAPACITY = 10_000  # rows waiting; about 30 MB at 50 behaviours and 20 items each
_log = logging.getLogger("daian.request_log")
_Row = tuple[str, Mapping[str, object]]  # tenant and row
_Entry = _Row | threading.Event  # an event is set once everything before it is written


class RequestLog:
    """Appends rows to a file from a thread of its own. Use `open` and `close`; `append` may be called from any
    thread.
    """

    def __init__(self, path: Path | None, metrics: Metrics, capacity: int = CAPACITY) -> None:
        self._path = path
        self._dropped = metrics.log_dropped.labels("rank")
        self._entries: queue.Queue[_Entry | None] = queue.Queue(capacity)
        self._writer: threading.Thread | None = None
        self._to_erase: dict[str, dict[str, asyncio.Future[int]]] = {}  # tenant, user: of the next pass
        self._passes: dict[str, asyncio.Task[None]] = {}  # tenants whose file is being looked through

    @property
    def is_on(self) -> bool:
        """False when rows are not kept anywhere: none need be made."""
        return self._path is not None

    def open(self) -> None:
        """Starts the writer when a file is named."""
        if self._path is not None:
            self._writer = threading.Thread(
                target=self._write, args=(self._path,), name="daian-request-log", daemon=True
            )
            self._writer.start()

    def append(self, row: Mapping[str, object], tenant: str = MAIN_TENANT) -> None:
        """Hands one row to the writer; drops and counts it when the writer is behind."""
        if self._path is None:
            return
        try:
            self._entries.put_nowait((tenant, row))
        except queue.Full:
            self._dropped.inc()

    async def erase(self, user_id: str, tenant: str, settle_s: float) -> int:
        """Blanks every row of a user and says how many. Raises OSError when the file cannot be read or written.

        Waits `settle_s` first, so that rankings which began before have handed over their rows.
        """
        if self._path is None or self._writer is None:
            return 0
        await asyncio.sleep(settle_s)
        users = self._to_erase.setdefault(tenant, {})
        user = canonical_id(user_id)
        if user not in users:
            users[user] = asyncio.get_running_loop().create_future()
            users[user].add_done_callback(_is_heard)
        found = users[user]
        if tenant not in self._passes:
            self._passes[tenant] = asyncio.create_task(self._erase_in_passes(self._path, tenant))
        return await asyncio.shield(found)

    async def _erase_in_passes(self, path: Path, tenant: str) -> None:
        """One pass for all who wait, again and again, until nobody does."""
        try:
            while users := self._to_erase.pop(tenant, {}):
                try:
                    await asyncio.to_thread(self._flush)
                    n_blanked = await asyncio.to_thread(blank_rows, file_of(path, tenant), users.keys())
                except Exception as error:  # noqa: BLE001  (whatever it is, each of them is told)
                    for found in users.values():
                        found.set_exception(error)
                else:
                    for user, found in users.items():
                        found.set_result(n_blanked[user])
        finally:
            del self._passes[tenant]

    def close(self) -> None:
        """Writes what is waiting and stops."""
        if self._writer is not None:
            self._entries.put(None)
            self._writer.join()
            self._writer = None

    def _flush(self) -> None:
        """Returns when all rows handed over before are written, or counted as dropped."""
        written = threading.Event()
        self._entries.put(written)
        while not written.wait(0.1):
            if self._writer is None or not self._writer.is_alive():
                return

    def _write(self, path: Path) -> None:
        while (entry := self._entries.get()) is not None:
            entries = [entry, *self._waiting()]
            by_tenant: dict[str, list[Mapping[str, object]]] = {}
            for one in entries:
                if isinstance(one, tuple):
                    by_tenant.setdefault(one[0], []).append(one[1])
            for tenant, rows in by_tenant.items():
                self._try_to_append(file_of(path, tenant), rows)
            for one in entries:
                if isinstance(one, threading.Event):
                    one.set()

    def _try_to_append(self, path: Path, rows: Sequence[Mapping[str, object]]) -> None:
        try:
            _append_whole_lines(path, rows)
        except Exception as error:  # noqa: BLE001  (a dead writer would fill the queue and hold up the stop)
            self._dropped.inc(len(rows))
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            _log.error("request log cannot be written", extra={"fields": {"reason": reason}})

    def _waiting(self) -> list[_Entry]:
        """What came in the meantime, so that a burst costs few writes; the end mark goes back to its place."""
        entries: list[_Entry] = []
        while len(entries) < 256:
            try:
                entry = self._entries.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                self._entries.put(None)
                break
            entries.append(entry)
        return entries


def file_of(path: Path, tenant: str) -> Path:
    """The tenant's file: the one that is named for the main tenant, `ranked.shop.ndjson` for `shop`."""
    return path if tenant == MAIN_TENANT else path.with_name(f"{path.stem}.{tenant}{path.suffix}")


def _is_heard(found: "asyncio.Future[int]") -> None:
    """An error that nobody waits for any more is no news."""
    if not found.cancelled():
        found.exception()


def blank_rows(path: Path, users: Collection[str]) -> Counter[str]:
    """Overwrites the rows of these users (canonical ids) with spaces, in place; how many, by user. None without a file.

    Nothing moves, so processes that append to the file meanwhile lose nothing; readers skip blank lines.
    """
    n_blanked, at = Counter[str](), 0
    if not path.exists():
        return n_blanked
    needles = [orjson.dumps(user) for user in users] if len(users) <= FEW and all(map(str.isascii, users)) else [b""]
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n") and any(needle in line for needle in needles):
                user = _user_of(line)
                if user in users:
                    os.pwrite(file.fileno(), b" " * (len(line) - 1), at)
                    n_blanked[user] += 1
            at += len(line)
        os.fsync(file.fileno())
    return n_blanked


def _user_of(line: bytes) -> str:
    """Whose row this is, in the canonical spelling; "" for a line that is no row of ours."""
    try:
        found = orjson.loads(line)["user"]["user"]
        return canonical_id(found) if isinstance(found, str) else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _append_whole_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One write of whole lines to a file opened for appending: several processes may share it, none sees half a
    line.
    """
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(lines) != len(lines):
            file.truncate(before)
            raise OSError(28, "the disk took only a part of the rows")
