"""Tables cut into buckets of users on disk, so that joining a user's rows needs the memory of one bucket.

Used by `prepare_logs` for its impressions, behaviours and users: the same user is in the same bucket of each. Rows keep
their order of arrival. Rows without a user are spread by another column.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import xxhash
from jaxtyping import Int64

_WAITING_ROWS = 1_000_000  # rows held back over all buckets, so that what is written comes in large pieces


class UserBuckets:
    """Writes rows to `n_buckets` files by the hash of a column; afterwards reads one bucket at a time."""

    def __init__(self, folder: Path, n_buckets: int) -> None:
        self.n_buckets = n_buckets
        self._folder = folder
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._waiting: list[list[pa.Table]] = [[] for _ in range(n_buckets)]
        self._n_waiting = 0
        folder.mkdir(parents=True)

    def __enter__(self) -> "UserBuckets":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        for writer in self._writers.values():
            writer.close()

    def add(self, rows: pa.Table, key: str, otherwise: str | None = None) -> None:
        """Adds rows to the buckets of their `key`; where that is missing, of the column `otherwise`."""
        buckets = bucket_of(rows.column(key).combine_chunks(), self.n_buckets)
        if otherwise is not None:
            buckets = np.where(buckets < 0, bucket_of(rows.column(otherwise).combine_chunks(), self.n_buckets), buckets)
        order = np.argsort(buckets, kind="stable")
        ordered = rows.take(pa.array(order))
        bounds = np.searchsorted(buckets[order], np.arange(self.n_buckets + 1))
        for bucket in np.flatnonzero(np.diff(bounds)):
            part = ordered.slice(bounds[bucket], bounds[bucket + 1] - bounds[bucket])
            self._waiting[bucket].append(part)
        self._n_waiting += rows.num_rows
        if self._n_waiting >= _WAITING_ROWS:
            self._flush()

    def read(self, bucket: int) -> pa.Table | None:
        """All rows of a bucket in the order in which they came; None when there are none."""
        path = self._path(bucket)
        if not path.exists():
            return None
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all()

    def _flush(self) -> None:
        for bucket, tables in enumerate(self._waiting):
            if tables:
                table = pa.concat_tables(tables)
                self._writer(bucket, table.schema).write_table(table)
                tables.clear()
        self._n_waiting = 0

    def _writer(self, bucket: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        if bucket not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[bucket] = pa.ipc.new_stream(str(self._path(bucket)), schema, options=options)
        return self._writers[bucket]

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:04d}.arrow"


def bucket_of(values: pa.Array, n_buckets: int) -> Int64[np.ndarray, " V"]:
    """The bucket of each text, -1 where it is missing."""
    codes = values.dictionary_encode()
    hashes = [xxhash.xxh3_64_intdigest(text.encode()) % n_buckets for text in codes.dictionary.to_pylist()]
    by_code = np.array([*hashes, -1], dtype=np.int64)
    return np.asarray(by_code[codes.indices.fill_null(len(hashes)).to_numpy(zero_copy_only=False)])
