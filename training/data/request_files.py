"""Request files: parquet <-> (RequestBatch, clicks). The one place that knows how requests lie on disk.

Called by every `prepare` door (through `dataset.PreparedWriter`), by `fit_encoder`, `batches` and `check_requests`. A
file holds raw requests and their clicks, never encoded arrays (house rule 5). Each page carries a CRC-32 that is
verified on every read: without it three of four flipped bits pass silently. A file appears under its name complete or
not at all.

One row is one request: `request_id` string · `requested_at` int64 (epoch ms) · `user.<field>`, `context.<field>` string
or double · `trigger` string · `behaviour_item` list<string> · `behaviour_at` list<int64> · `behaviour_type`
list<string> · `candidate` list<string> · `clicked` list<int8>.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int8, Int64

from service.contract.requests import RequestBatch
from service.contract.schema import FeatureSchema, Field
from training.data.errors import DataError
from training.data.whole_files import take_name

ROW_GROUP_REQUESTS = 2048  # small enough to shuffle and to stream, large enough to compress well

_FIXED: dict[str, pa.DataType] = {
    "request_id": pa.string(),
    "requested_at": pa.int64(),
    "trigger": pa.string(),
    "behaviour_item": pa.list_(pa.string()),
    "behaviour_at": pa.list_(pa.int64()),
    "behaviour_type": pa.list_(pa.string()),
    "candidate": pa.list_(pa.string()),
    "clicked": pa.list_(pa.int8()),
}


def file_columns(schema: FeatureSchema) -> pa.Schema:
    """The columns of a request file of `schema`: numbers are doubles, everything else is text."""
    sided = [(f"user.{f.name}", _type_of(f)) for f in schema.user]
    sided += [(f"context.{f.name}", _type_of(f)) for f in schema.context]
    fixed = list(_FIXED.items())
    return pa.schema(fixed[:2] + sided + fixed[2:])


def request_files(folder: Path) -> list[Path]:
    """The request files of one split folder, in name order. Raises DataError when there are none."""
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{folder}: no request files (*.parquet) found; run `daian data prepare` or `daian data simulate`."
        )
    return files


def row_group_sizes(path: Path) -> list[int]:
    """The number of requests in each row group of a file."""
    with _open(path) as file:
        meta = file.metadata
        return [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]


def read_row_group(path: Path, row_group: int) -> tuple[RequestBatch, Int8[np.ndarray, " N"]]:
    """One row group of one file. Raises DataError naming both when a page does not match its checksum."""
    with _open(path) as file, _located(path, row_group):
        return to_requests(file.read_row_group(row_group, use_threads=False), path)


def read_requests(
    path: Path, batch_requests: int = ROW_GROUP_REQUESTS
) -> Iterator[tuple[RequestBatch, Int8[np.ndarray, " N"]]]:
    """Streams a file, or all files of a folder, in batches of at most `batch_requests` requests.

    Memory is bounded by one row group of the file. Raises DataError naming file and row group for a corrupt shard.
    """
    for file_path in request_files(path) if path.is_dir() else [path]:
        with _open(file_path) as file:
            for row_group in range(file.num_row_groups):
                with _located(file_path, row_group):
                    table = file.read_row_group(row_group, use_threads=False)
                for start in range(0, table.num_rows, batch_requests):
                    with _located(file_path, row_group):
                        requests = to_requests(table.slice(start, batch_requests), file_path)
                    yield requests


def write_requests(
    path: Path, schema: FeatureSchema, row_group_requests: int = ROW_GROUP_REQUESTS
) -> "RequestFileWriter":
    """Opens a request file for writing; use it in a `with` block."""
    return RequestFileWriter(path, schema, row_group_requests)


class RequestFileWriter:
    """Writes one request file: to a name of its own, flushed to disk, then renamed; an error leaves no file behind."""

    def __init__(self, path: Path, schema: FeatureSchema, row_group_requests: int = ROW_GROUP_REQUESTS) -> None:
        self.path = path
        self.n_requests = 0
        self._columns = file_columns(schema)
        self._row_group_requests = row_group_requests
        self._waiting: list[pa.Table] = []
        self._n_waiting = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer = pq.ParquetWriter(
            self._partial, self._columns, compression="zstd", compression_level=1, write_page_checksum=True
        )

    def __enter__(self) -> "RequestFileWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(self, batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> None:
        """Appends requests and the clicks (0 or 1) of their candidates."""
        self._waiting.append(to_table(batch, clicks, self._columns))
        self._n_waiting += batch.n_requests
        self.n_requests += batch.n_requests
        if self._n_waiting >= self._row_group_requests:
            self._flush(everything=False)

    def close(self) -> None:
        """Writes what is waiting and lets the file appear under its name."""
        self._flush(everything=True)
        self._writer.close()
        take_name(self._partial, self.path)

    def abandon(self) -> None:
        """Stops and removes what was written."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)

    def _flush(self, everything: bool) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        size = self._row_group_requests
        ready = table.num_rows if everything else table.num_rows // size * size
        if ready:
            self._writer.write_table(table.slice(0, ready), row_group_size=size)
        rest = table.slice(ready)
        self._waiting = [rest] if rest.num_rows else []
        self._n_waiting = rest.num_rows


def to_table(batch: RequestBatch, clicks: Int8[np.ndarray, " N"], columns: pa.Schema) -> pa.Table:
    """Requests and clicks as a table of `columns` (see `file_columns`). Raises DataError for clicks that do not fit."""
    if len(clicks) != batch.n_candidates or not np.isin(clicks, (0, 1)).all():
        raise DataError(
            f"clicks must be one 0 or 1 per candidate: {batch.n_candidates} candidates, {len(clicks)} clicks, "
            f"values {sorted(set(clicks.tolist()))[:5]}."
        )
    seen = batch.behaviour_offsets
    shown = batch.candidate_offsets
    values: dict[str, Any] = {
        "request_id": pa.array(batch.request_id, pa.string()),
        "requested_at": pa.array(batch.requested_at, pa.int64()),
        "trigger": pa.array(batch.trigger, pa.string()),
        "behaviour_item": _lists(seen, pa.array(batch.behaviour_item, pa.string())),
        "behaviour_at": _lists(seen, pa.array(batch.behaviour_at, pa.int64())),
        "behaviour_type": _lists(seen, pa.array(batch.behaviour_type, pa.string())),
        "candidate": _lists(shown, pa.array(batch.candidate, pa.string())),
        "clicked": _lists(shown, pa.array(clicks, pa.int8())),
    }
    for side, fields in (("user", batch.user), ("context", batch.context)):
        values |= {f"{side}.{name}": value for name, value in fields.items()}
    return pa.table([_column(values.get(c.name), c, batch.n_requests) for c in columns], schema=columns)


def to_requests(table: pa.Table, path: Path) -> tuple[RequestBatch, Int8[np.ndarray, " N"]]:
    """The requests and clicks of a table read from `path`. Raises DataError listing missing and retyped columns."""
    _check_columns(table.schema, path)
    table = table.combine_chunks()
    behaviour_offsets, behaviour_item = _unlist(table, "behaviour_item", path)
    candidate_offsets, candidate = _unlist(table, "candidate", path)
    clicked_offsets, clicked = _unlist(table, "clicked", path)
    for name, offsets in (("behaviour_at", behaviour_offsets), ("behaviour_type", behaviour_offsets)):
        _same_lengths(offsets, _unlist(table, name, path)[0], name, path)
    _same_lengths(candidate_offsets, clicked_offsets, "clicked", path)
    batch = RequestBatch(
        request_id=as_objects(_whole(table, "request_id", path)),
        requested_at=_numbers(_whole(table, "requested_at", path)),
        user=_side(table, "user."),
        context=_side(table, "context."),
        trigger=as_objects(_whole(table, "trigger", path)),
        behaviour_item=as_objects(behaviour_item),
        behaviour_at=_numbers(_unlist(table, "behaviour_at", path)[1]),
        behaviour_type=as_objects(_unlist(table, "behaviour_type", path)[1]),
        behaviour_offsets=behaviour_offsets,
        candidate=as_objects(candidate),
        candidate_offsets=candidate_offsets,
    )
    return batch, clicked.to_numpy(zero_copy_only=False).astype(np.int8, copy=False)


def _type_of(field: Field) -> pa.DataType:
    return pa.float64() if field.kind == "number" else pa.string()


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); prepare the data again.") from error
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _located(path: Path, row_group: int) -> Iterator[None]:
    """Names file and row group in whatever the reader says about damaged bytes."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise DataError(
            f"{path}, row group {row_group}: damaged ({error}); restore the file or prepare the data again."
        ) from error


def _check_columns(found: pa.Schema, path: Path) -> None:
    problems = [f"{name}: missing" for name in _FIXED if name not in found.names]
    for column in found:
        wanted = _FIXED.get(column.name)
        if wanted is not None and column.type != wanted:
            problems.append(f"{column.name}: {column.type}, expected {wanted}")
        if wanted is None and not column.name.startswith(("user.", "context.")):
            problems.append(f"{column.name}: not a column of a request file")
        if wanted is None and column.type not in (pa.string(), pa.float64()):
            problems.append(f"{column.name}: {column.type}, expected string or double")
    if problems:
        raise DataError(f"{path}: not a request file: " + "; ".join(problems) + ".")


def _column(value: Any, column: pa.Field, n_rows: int) -> pa.Array:
    if value is None:
        return pa.nulls(n_rows, column.type)
    if isinstance(value, pa.Array):
        return value
    try:
        return pa.array(value, column.type, from_pandas=True)  # from_pandas: NaN is a missing value too
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"column {column.name}: {error}; its schema asks for {column.type}.") from error


def _lists(offsets: Int64[np.ndarray, " R1"], values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _whole(table: pa.Table, name: str, path: Path) -> pa.Array:
    """A column that must have a value in every row."""
    column = _chunk(table, name)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}, column {name}, row {row} of its batch: no value, but every request must have one.")
    return column


def _unlist(table: pa.Table, name: str, path: Path) -> tuple[Int64[np.ndarray, " R1"], pa.Array]:
    """A list column as offsets from 0 and flat values."""
    column = _whole(table, name, path)
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{path}, column {name}: {values.null_count} empty values inside its lists.")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], values


def _chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _same_lengths(left: Int64[np.ndarray, " R1"], right: Int64[np.ndarray, " R1"], name: str, path: Path) -> None:
    if not np.array_equal(left, right):
        row = int(np.flatnonzero(left != right)[0]) - 1
        raise DataError(f"{path}, column {name}, row {row} of its batch: its list is not as long as the items' list.")


def _side(table: pa.Table, prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in table.schema.names if name.startswith(prefix)]
    return {name.removeprefix(prefix): as_objects(_chunk(table, name)) for name in names}


def _numbers(array: pa.Array) -> Int64[np.ndarray, " N"]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)


def as_objects(array: pa.Array) -> np.ndarray:
    """Values as Python objects, None where missing. Repeated texts share one object, made once."""
    codes = array.dictionary_encode()
    distinct = np.empty(len(codes.dictionary) + 1, dtype=object)
    distinct[:-1] = codes.dictionary.to_pylist()
    indices = codes.indices.fill_null(len(codes.dictionary)).to_numpy(zero_copy_only=False)
    return np.asarray(distinct[indices])
