"""Item files: rows with an id, texts and an image path, from parquet, CSV or NDJSON, one at a time.

Read by `embed`. Streams with the memory of one batch, refuses missing columns, empty and repeated ids and images that
are not there, naming file, row and column. It never reads vectors or features: those belong to the `prepare` doors.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.content_encoders import Content
from training.data.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class ItemColumns:
    """Which columns to read. Several texts are joined by ". "; one of the content columns must be there.

    An image path is relative to the folder of the item file, or absolute.
    """

    item_id: str = "id"
    texts: tuple[str, ...] = ("text",)
    image: str | None = "image"


@dataclass(frozen=True)
class ItemRow:
    """One item: its id and what can be encoded of it."""

    item_id: str
    content: Content


def read_items(path: Path, columns: ItemColumns) -> Iterator[ItemRow]:
    """Streams the rows of an item file. Raises DataError naming file, row (from 1) and column."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {path.suffix!r} files; give one of {', '.join(_READERS)}.")
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    seen: set[str] = set()
    for number, record in enumerate(reader(path), start=1):
        if number == 1:
            _check_columns(path, record, columns)
        yield _to_row(path, number, record, columns, seen)


def _check_columns(path: Path, record: Record, columns: ItemColumns) -> None:
    content = [*columns.texts, *([columns.image] if columns.image else [])]
    if columns.item_id not in record or not any(name in record for name in content):
        raise DataError(
            f"{path}: needs the column {columns.item_id!r} and at least one of {content}; it has {sorted(record)}. "
            "Rename them, or say which columns to read."
        )


def _to_row(path: Path, number: int, record: Record, columns: ItemColumns, seen: set[str]) -> ItemRow:
    value = record.get(columns.item_id)
    item_id = "" if value is None else str(value)
    if not item_id:
        raise DataError(f"{path}, row {number}, column {columns.item_id}: empty; every item needs an id.")
    if item_id in seen:
        raise DataError(f"{path}, row {number}, column {columns.item_id}: {item_id!r} came before; ids must be unique.")
    seen.add(item_id)
    texts = [str(record[name]).strip() for name in columns.texts if record.get(name) is not None]
    text = ". ".join(text for text in texts if text) or None
    return ItemRow(item_id, Content(text, _image(path, number, record, columns)))


def _image(path: Path, number: int, record: Record, columns: ItemColumns) -> Path | None:
    value = record.get(columns.image) if columns.image else None
    if not value:
        return None
    image = path.parent / str(value)
    if not image.is_file():
        raise DataError(f"{path}, row {number}, column {columns.image}: no file {image}; correct it or leave it empty.")
    return image


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}).") from error


def _csv(path: Path) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, record in enumerate(reader, start=1):
                if None in record or None in record.values():
                    raise DataError(
                        f"{path}, row {number}: {'more' if None in record else 'fewer'} cells than the header."
                    )
                yield record
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, near line {reader.line_num + 1}: {error}; the file must be UTF-8 CSV.") from error


def _ndjson(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}, row {number}: not JSON ({error}); one object per line is expected."
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, row {number}: {type(record).__name__}, expected an object.")
            yield record


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".ndjson": _ndjson,
    ".jsonl": _ndjson,
}
