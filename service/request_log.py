"""RequestLog: what was ranked, as rows of the contract, one JSON object per line.

The ranker appends after each answer; with clicks joined (`daian data prepare logs`) these rows are tomorrow's training
input. Off unless `DAIAN_REQUEST_LOG` names a file. Appending never waits and never fails a ranking: a thread writes,
the queue is bounded, and rows that do not fit are dropped and counted.
"""

import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

import orjson

from service.metrics import Metrics

CAPACITY = 10_000  # rows waiting; about 30 MB at 50 behaviours and 20 items each
_log = logging.getLogger("daian.request_log")
_Row = Mapping[str, object]


class RequestLog:
    """Appends rows to a file from a thread of its own. Use `open` and `close`; `append` may be called from any
    thread.
    """

    def __init__(self, path: Path | None, metrics: Metrics, capacity: int = CAPACITY) -> None:
        self._path = path
        self._dropped = metrics.log_dropped.labels("rank")
        self._rows: queue.Queue[_Row | None] = queue.Queue(capacity)
        self._writer: threading.Thread | None = None

    def open(self) -> None:
        """Starts the writer when a file is named."""
        if self._path is not None:
            self._writer = threading.Thread(
                target=self._write, args=(self._path,), name="daian-request-log", daemon=True
            )
            self._writer.start()

    def append(self, row: _Row) -> None:
        """Hands one row to the writer; drops and counts it when the writer is behind."""
        if self._path is None:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._dropped.inc()

    def close(self) -> None:
        """Writes what is waiting and stops."""
        if self._writer is not None:
            self._rows.put(None)
            self._writer.join()
            self._writer = None

    def _write(self, path: Path) -> None:
        while (row := self._rows.get()) is not None:
            rows = [row, *self._waiting()]
            try:
                _append_whole_lines(path, rows)
            except Exception as error:  # noqa: BLE001  (a dead writer would fill the queue and hold up the stop)
                self._dropped.inc(len(rows))
                reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                _log.error("request log cannot be written", extra={"fields": {"reason": reason}})

    def _waiting(self) -> list[_Row]:
        """Rows that came in the meantime, so that a burst costs few writes; the end mark goes back to its place."""
        rows: list[_Row] = []
        while len(rows) < 256:
            try:
                row = self._rows.get_nowait()
            except queue.Empty:
                break
            if row is None:
                self._rows.put(None)
                break
            rows.append(row)
        return rows


def _append_whole_lines(path: Path, rows: list[_Row]) -> None:
    """One write of whole lines to a file opened for appending: several processes may share it, none sees half a
    line.
    """
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(lines) != len(lines):
            file.truncate(before)
            raise OSError(28, "the disk took only a part of the rows")
