"""`daian data prepare logs`: a shop's own tables -> a prepared data set with point-in-time correct histories.

Called by the command line. Three streaming steps with bounded memory: check every column of every file against the
mapping; cut impressions, behaviours and users into buckets of users on disk; join one bucket at a time (`log_join`). A
request sees the behaviours of its user strictly before it. Without a behaviours table the clicks of the impressions are
the behaviours, at the time when the clicked item was shown.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt64
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from training.data.column_health import ColumnHealth
from training.data.content_encoders import AUTO
from training.data.dataset import Dataset, PreparedWriter, Split
from training.data.errors import DataError
from training.data.log_items import read_log_items
from training.data.log_join import Joined, join_bucket
from training.data.log_tables import Rows, check_tables, n_bytes, read_table
from training.data.mapping import LogMapping, SplitRule, Table, read_mapping
from training.data.user_buckets import UserBuckets

BUCKET_BYTES = 128 << 20
MAX_BUCKETS = 512
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Cuts:
    """`requested_at` (epoch ms) from which a request belongs to the validation and to the test days."""

    validation_from: int
    test_from: int

    def split_of(self, at: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """0 train, 1 validation, 2 test."""
        return np.searchsorted([self.validation_from, self.test_from], at, side="right").astype(np.int64)


def prepare_logs(
    mapping_file: Path,
    out: Path,
    *,
    encoder: str = AUTO,
    max_missing: float = 0.5,
    overwrite: bool = False,
    show_progress: bool = True,
    now_ms: int | None = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> Dataset:
    """Prepares the tables named by a mapping file (see `mapping.EXAMPLE`) as a data set in `out`.

    Raises DataError: all missing or retyped columns and empty files at once; with file, row and column for a value that
    cannot be (missing key, future time, neither clicked nor not, an item twice in a request, a request of two users).
    `max_missing`: largest share of missing values that a feature column may have. `now_ms`: the wall clock, for tests.
    """
    mapping = read_mapping(mapping_file)
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    tables = [t for t in (mapping.impressions, mapping.behaviours, mapping.items, mapping.users) if t is not None]
    check_tables(tables, {"items": (*mapping.texts, *([mapping.image] if mapping.image else []))})
    health = ColumnHealth()
    items = read_log_items(mapping, out, encoder, health, now_ms, show_progress)
    dataset = Dataset(
        mapping.name,
        mapping.schema,
        mapping.rules,
        mapping.similarity_range,
        mapping.n_levels,
        mapping.related_threshold,
    )
    with PreparedWriter(out, dataset, items, overwrite) as writer:
        work = writer.extra_file("work")
        n_buckets = min(MAX_BUCKETS, max(1, -(-sum(map(n_bytes, tables)) // bucket_bytes)))
        logs = _Logs(mapping, work, n_buckets, health, now_ms, show_progress)
        logs.cut()
        health.check(max_missing)
        cuts = split_times(logs.minutes, mapping.split)
        for joined in logs.joined():
            _write(writer, joined, cuts)
        shutil.rmtree(work)
        logs.note(writer)
    return writer.dataset


def split_times(minutes: Counter[int], rule: SplitRule) -> Cuts:
    """The cuts of a rule, given how many impressions each minute (since the epoch) holds.

    A share of 0 leaves its split empty. Raises DataError when the cuts leave no training, or no test that is wanted.
    """
    ordered = sorted(minutes)
    first, last = ordered[0] * _MINUTE_MS, (ordered[-1] + 1) * _MINUTE_MS
    without_test = False
    if rule.validation_from is not None and rule.test_from is not None:
        cuts = Cuts(_read_time(rule.validation_from), _read_time(rule.test_from))
    else:
        share = np.cumsum([minutes[minute] for minute in ordered]) / sum(minutes.values())
        at = [1 - rule.validation_share - rule.test_share, 1 - rule.test_share]
        begin = [ordered[min(int(np.searchsorted(share, value - 1e-9)) + 1, len(ordered) - 1)] for value in at]
        without_test = rule.test_share == 0
        cuts = Cuts(begin[0] * _MINUTE_MS, last if without_test else begin[1] * _MINUTE_MS)
    if not (first < cuts.validation_from <= cuts.test_from <= last and (without_test or cuts.test_from < last)):
        spans = [
            datetime.fromtimestamp(at / 1000, UTC).isoformat()
            for at in (first, cuts.validation_from, cuts.test_from, last)
        ]
        raise DataError(
            f"the split leaves no training or no test: data from {spans[0]}, validation {spans[1]}, test {spans[2]}, "
            f"end {spans[3]}."
        )
    return cuts


class _Logs:
    """The tables in buckets of users."""

    def __init__(
        self, mapping: LogMapping, work: Path, n_buckets: int, health: ColumnHealth, now_ms: int, show_progress: bool
    ) -> None:
        self.minutes: Counter[int] = Counter()
        self._mapping = mapping
        self._health = health
        self._now_ms = now_ms
        self._show = show_progress
        self._notes: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        self._impressions = UserBuckets(work / "impressions", n_buckets)
        self._behaviours = UserBuckets(work / "behaviours", n_buckets)
        self._users = UserBuckets(work / "users", n_buckets)

    def cut(self) -> None:
        """Reads every table once. Raises DataError for values that cannot be."""
        mapping = self._mapping
        with self._impressions, self._behaviours, self._users:
            for rows in self._read(mapping.impressions):
                self._impressions.add(_table(rows, mapping.impressions), "user", otherwise="request")
                minutes, counts = np.unique(rows.columns["time"].to_numpy() // _MINUTE_MS, return_counts=True)
                self.minutes.update(dict(zip(minutes.tolist(), counts.tolist(), strict=True)))
                if mapping.behaviours is None:
                    self._add_behaviours(_clicks_of(rows))
            if mapping.behaviours is not None:
                for rows in self._read(mapping.behaviours):
                    self._add_behaviours(_table(rows, mapping.behaviours))
            if mapping.users is not None:
                for rows in self._read(mapping.users):
                    self._users.add(_table(rows, mapping.users), "user")
        if self._types and not any(kind in self._types for kind in mapping.rules.types):
            raise DataError(
                f"no behaviour is of a type that counts: found {dict(self._types.most_common(5))}, "
                f"the history rules count {mapping.rules.types}; name the shop's types under history.types."
            )

    def joined(self) -> Iterator[Joined]:
        """Requests with their histories, one bucket at a time. Raises DataError when two users share a request id."""
        seen: list[UInt64[np.ndarray, " R"]] = []  # eight bytes a request
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not self._show) as bar:
            for bucket in bar.track(range(self._impressions.n_buckets), description="joining"):
                impressions = self._impressions.read(bucket)
                if impressions is None:
                    continue
                tables = (impressions, self._behaviours.read(bucket), self._users.read(bucket))
                for joined in join_bucket(*tables, self._mapping, self._notes):
                    seen.append(joined.request_hashes)
                    yield joined
        hashes = np.sort(np.concatenate(seen))
        n_repeated = int((hashes[1:] == hashes[:-1]).sum())
        if n_repeated:
            raise DataError(
                f"{n_repeated} request ids belong to more than one user; a request id must name one page of one user."
            )

    def note(self, writer: PreparedWriter) -> None:
        """What the tables held, for the report."""
        for name, count in self._notes.items():
            writer.note(name, count)
        writer.note("behaviour_types", dict(self._types))
        writer.note("columns", self._health.report())

    def _read(self, table: Table) -> Iterator[Rows]:
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not self._show) as bar:
            task = bar.add_task(f"reading {table.name}", total=None)
            for rows in read_table(table, self._mapping.time_unit, self._now_ms):
                _refuse_missing_ids(rows, table)
                for name, values in rows.columns.items():
                    if name.startswith("field."):
                        self._health.add(f"{table.name}.{name.removeprefix('field.')}", values)
                yield rows
                bar.advance(task, rows.n_rows)

    def _add_behaviours(self, table: pa.Table) -> None:
        if "type" not in table.column_names:
            table = table.append_column("type", pa.array(["click"] * table.num_rows, pa.string()))
        counts = pc.value_counts(table.column("type"))
        self._types.update({str(pair["values"]): pair["counts"] for pair in counts.to_pylist()})
        known = table.filter(table.column("user").is_valid())
        self._notes["behaviours_without_user"] += table.num_rows - known.num_rows
        self._behaviours.add(known.select(["user", "item", "time", "type"]), "user")


def _table(rows: Rows, table: Table) -> pa.Table:
    """The rows with the place they came from, for messages."""
    columns = dict(rows.columns)
    columns["file"] = pa.repeat(pa.scalar(table.files.index(rows.path), pa.int32()), rows.n_rows)
    columns["row"] = pa.array(np.arange(rows.first_row, rows.first_row + rows.n_rows))
    return pa.table(columns)


def _clicks_of(rows: Rows) -> pa.Table:
    columns = {name: rows.columns[name] for name in ("user", "item", "time")}
    return pa.table(columns).filter(pc.equal(rows.columns["clicked"], 1))


def _refuse_missing_ids(rows: Rows, table: Table) -> None:
    """Users may be anonymous in impressions and behaviours; every other id must be there."""
    for role in ("request", "trigger", "item", "user"):
        column = rows.columns.get(role)
        if column is None or (role == "user" and table.name != "users") or not column.null_count:
            continue
        index = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise rows.refuse(index, table.roles[role], "no value, but every row must have one.")


def _write(writer: PreparedWriter, joined: Joined, cuts: Cuts) -> None:
    which = cuts.split_of(joined.batch.requested_at)
    names: tuple[Split, ...] = ("train", "validation", "test")
    for number, split in enumerate(names):
        taken = np.flatnonzero(which == number)
        if len(taken):
            batch = joined.batch.take(taken)
            mine = (which == number)[joined.batch.candidate_request]
            writer.write(split, batch, joined.clicks[mine])


def _read_time(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            f"split: {text!r} is not an ISO time such as 2026-01-07 or 2026-01-07T12:00:00+01:00."
        ) from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
