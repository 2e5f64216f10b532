"""A shop's own tables (parquet or CSV), streamed as columns of the types that we need.

Called by `prepare_logs`. First `check_tables` compares every file with the mapping and reports all differences at once;
then `read_table` yields batches whose columns are named by role: ids and categories as text, times as epoch ms, numbers
as doubles, clicks as 0/1. A value that cannot be what it must be is one error naming file, row (from 1) and column.
Parquet pages that carry checksums are verified.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from training.data.errors import DataError
from training.data.mapping import Table, TimeUnit

BATCH_ROWS = 131_072
EARLIEST_MS = 946_684_800_000  # 2000-01-01: an earlier time is a wrong unit or a wrong column
_CELL_BYTES = 16  # of a text id with its offset, or a number with room for joining
CLOCK_SKEW_MS = 300_000  # a shop's clock may be this far ahead of ours
Type = Literal["id", "category", "number", "time", "clicked", "vector"]
_ROLE_TYPES: dict[str, Type] = {
    **dict.fromkeys(("request", "user", "trigger", "item"), "id"),
    **{"time": "time", "clicked": "clicked", "position": "number", "type": "category", "vector": "vector"},
}


@dataclass(frozen=True)
class Rows:
    """A batch of rows: standard columns, and where they come from (`first_row` counts from 1)."""

    path: Path
    first_row: int
    columns: dict[str, pa.Array]

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return len(next(iter(self.columns.values())))

    def refuse(self, index: int, column: str, problem: str) -> DataError:
        """The error for one row."""
        return DataError(f"{self.path}, row {self.first_row + index}, column {column}: {problem}")


def column_types(table: Table) -> dict[str, tuple[str, Type]]:
    """Standard name -> (column in the file, type). Fields are named `field.<name>`."""
    types: dict[str, tuple[str, Type]] = {role: (column, _ROLE_TYPES[role]) for role, column in table.roles.items()}
    for mapped in table.fields:
        kind = mapped.field.kind
        types[f"field.{mapped.field.name}"] = (mapped.column, "number" if kind == "number" else "category")
    return types


def check_tables(tables: list[Table], extra: Mapping[str, tuple[str, ...]]) -> None:
    """Raises one DataError with every missing or retyped column and every empty file of all tables.

    `extra`: further columns that must be there, by table name (texts and images that an encoder will read).
    """
    problems: list[str] = []
    for table in tables:
        for path in table.files:
            problems += _problems(path, table, extra.get(table.name, ()))
    if problems:
        raise DataError("the files do not fit the mapping:\n  " + "\n  ".join(problems))


def read_table(table: Table, time_unit: TimeUnit, now_ms: int) -> Iterator[Rows]:
    """Streams a table's rows in standard form. `now_ms`: the wall clock; later times are refused."""
    types = column_types(table)
    for path in table.files:
        first_row = 1
        for batch in _batches(path, sorted({column for column, _ in types.values()})):
            rows = Rows(path, first_row, {})
            for name, (column, kind) in types.items():
                rows.columns[name] = _convert(rows, column, batch.column(column), kind, time_unit, now_ms)
            yield rows
            first_row += batch.num_rows


def n_bytes(table: Table) -> int:
    """Roughly how large a table is in memory: encodings and compression make parquet files many times smaller."""
    return sum(_n_bytes(path) for path in table.files)


def _n_bytes(path: Path) -> int:
    if not _is_parquet(path):
        return path.stat().st_size
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows * file.metadata.num_columns * _CELL_BYTES)


def _problems(path: Path, table: Table, extra: tuple[str, ...]) -> list[str]:
    try:
        found = _columns_of(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return [f"{path}: cannot be read ({error})"]
    if found is None:
        return [f"{path}: empty"]
    problems = []
    for name, (column, kind) in column_types(table).items():
        if column not in found:
            problems.append(f"{path}: column {column!r} ({table.name}.{name}) is missing; there are {sorted(found)}")
        elif found[column] is not None and not _TYPES[kind](found[column]):
            problems.append(f"{path}: column {column!r} is {found[column]}, which cannot be {_WANTED[kind]}")
    return problems + [f"{path}: column {c!r} ({table.name}) is missing" for c in extra if c not in found]


def _columns_of(path: Path) -> dict[str, pa.DataType | None] | None:
    """Columns and types (None: text of a CSV file, checked row by row); None for a file without rows."""
    if _is_parquet(path):
        with pq.ParquetFile(path) as file:
            return {c.name: c.type for c in file.schema_arrow} if file.metadata.num_rows else None
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as lines:
        _, has_rows = lines.readline(), lines.readline()
    if not has_rows:
        return None
    return dict.fromkeys(pv.open_csv(path).schema.names)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    row = 1
    try:
        if _is_parquet(path):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield batch
                    row += batch.num_rows
        else:
            options = pv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=columns,
                strings_can_be_null=True,
                null_values=[""],
            )
            for batch in pv.open_csv(
                path, pv.ReadOptions(block_size=8 << 20, use_threads=False), convert_options=options
            ):
                yield batch
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}, after row {row - 1}: damaged ({error}); restore the file.") from error


def _convert(rows: Rows, column: str, values: pa.Array, kind: Type, time_unit: TimeUnit, now_ms: int) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if kind == "vector":
        return values
    if kind == "number":
        return _numbers(rows, column, values)
    if kind == "time":
        return _times(rows, column, values, time_unit, now_ms)
    if kind == "clicked":
        return _clicks(rows, column, values)
    return values.cast(pa.string())


def _numbers(rows: Rows, column: str, values: pa.Array) -> pa.Array:
    """Doubles; NaN and infinity are missing values (counted by the caller as nulls)."""
    numbers = _cast(rows, column, values, pa.float64(), "a number")
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _times(rows: Rows, column: str, values: pa.Array, unit: TimeUnit, now_ms: int) -> pa.Array:
    _refuse_missing(rows, column, values)
    if pa.types.is_timestamp(values.type):
        at = values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    elif unit == "iso":
        at = pc.cast(
            _cast(rows, column, values, pa.timestamp("us", "UTC"), "an ISO time", _read_iso),
            pa.timestamp("ms", "UTC"),
            safe=False,
        )
        at = at.cast(pa.int64())
    else:
        numbers = _cast(rows, column, values, pa.float64(), f"a time in {unit}")
        at = pc.round(pc.multiply(numbers, 1.0 if unit == "ms" else 1000.0))
        _refuse_first(rows, column, pc.invert(pc.is_finite(numbers)), values, "not a time.")
        at = at.cast(pa.int64(), safe=False)
    _refuse_first(
        rows,
        column,
        pc.greater(at, now_ms + CLOCK_SKEW_MS),
        values,
        "lies in the future; check time_unit and the shop's clock.",
    )
    _refuse_first(rows, column, pc.less(at, EARLIEST_MS), values, "lies before the year 2000; check time_unit.")
    return at


def _clicks(rows: Rows, column: str, values: pa.Array) -> pa.Array:
    _refuse_missing(rows, column, values)
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int8())
    texts = pc.utf8_lower(values.cast(pa.string()))
    yes = pc.is_in(texts, pa.array(["1", "1.0", "true"]))
    no = pc.is_in(texts, pa.array(["0", "0.0", "false"]))
    _refuse_first(rows, column, pc.invert(pc.or_(yes, no)), values, "is neither clicked (1, true) nor not (0, false).")
    return yes.cast(pa.int8())


def _cast(
    rows: Rows, column: str, values: pa.Array, wanted: pa.DataType, name: str, read: Callable[[Any], Any] = float
) -> pa.Array:
    try:
        return values.cast(wanted)
    except pa.ArrowException as error:
        for index, value in enumerate(values.to_pylist()):
            try:
                _ = None if value is None else read(value)
            except (TypeError, ValueError):
                raise rows.refuse(index, column, f"{value!r:.80} is not {name}.") from error
        raise rows.refuse(0, column, f"cannot be read as {name} ({error}).") from error


def _read_iso(value: str) -> pa.Scalar:
    return pa.scalar(value).cast(pa.timestamp("us", "UTC"))


def _refuse_missing(rows: Rows, column: str, values: pa.Array) -> None:
    _refuse_first(rows, column, values.is_null(), values, "no value, but every row must have one.")


def _refuse_first(rows: Rows, column: str, bad: pa.Array, values: pa.Array, problem: str) -> None:
    places = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if len(places):
        index = int(places[0])
        value = values[index].as_py()
        raise rows.refuse(index, column, problem if value is None else f"{value!r:.80} {problem}")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _of(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(_of(kind)) or pa.types.is_large_string(_of(kind)))


def _is_number(kind: pa.DataType) -> bool:
    kind = _of(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list) and _is_number(kind.value_type)


_TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "id": lambda kind: _is_text(kind) or pa.types.is_integer(_of(kind)),
    "category": lambda kind: _is_text(kind) or pa.types.is_integer(_of(kind)) or pa.types.is_boolean(kind),
    "number": lambda kind: _is_number(kind) or _is_text(kind),
    "time": lambda kind: pa.types.is_timestamp(kind) or _is_number(kind) or _is_text(kind),
    "clicked": lambda kind: pa.types.is_boolean(kind) or _is_number(kind) or _is_text(kind),
    "vector": _is_vector,
}
_WANTED = {
    "id": "an id (text or whole numbers)",
    "category": "a category (text, whole numbers or booleans)",
    "number": "a number",
    "time": "a time",
    "clicked": "a click (0/1 or boolean)",
    "vector": "a vector (a list of numbers)",
}
