"""The items of a shop's own tables: fields, and vectors from a column, from a `daian embed` folder, or encoded here.

Called by `prepare_logs`. Keeps all items in memory, as the catalogue does.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from training.data.column_health import ColumnHealth
from training.data.dataset import Items
from training.data.embed import embed, normalise, open_vectors
from training.data.errors import DataError
from training.data.item_files import ItemColumns
from training.data.log_tables import Rows, read_table
from training.data.mapping import LogMapping


def read_log_items(
    mapping: LogMapping, out: Path, encoder: str, health: ColumnHealth, now_ms: int, show_progress: bool
) -> Items:
    """Reads the items table. Raises DataError naming file, row and column for repeated ids and broken vectors.

    Texts and images are encoded into `<out>.vectors`, resumable, unless the mapping has ready vectors.
    """
    ids: list[str] = []
    seen: set[str] = set()
    columns: dict[str, list[str | float | None]] = {mapped.field.name: [] for mapped in mapping.items.fields}
    vectors: list[Float32[np.ndarray, "m D"]] = []
    for rows in read_table(mapping.items, mapping.time_unit, now_ms):
        ids += _new_ids(rows, mapping.items.roles["item"], seen)
        for name, values in columns.items():
            column = rows.columns[f"field.{name}"]
            health.add(f"items.{name}", column)
            values += column.to_pylist()
        if "vector" in mapping.items.roles:
            vectors.append(_vectors_of(rows, mapping.items.roles["vector"], _width(vectors)))
    if "vector" in mapping.items.roles:
        return Items(ids, columns, _joined(vectors))
    folder = mapping.vectors or _encoded(mapping, out, encoder, show_progress)
    return Items(ids, columns, None if folder is None else _aligned(folder, ids))


def _new_ids(rows: Rows, column: str, seen: set[str]) -> list[str]:
    ids = rows.columns["item"].to_pylist()
    for index, item_id in enumerate(ids):
        if not item_id:
            raise rows.refuse(index, column, "no value, but every item needs an id.")
        if item_id in seen:
            raise rows.refuse(index, column, f"{item_id!r:.80} came before; give each item once.")
        seen.add(item_id)
    return list(ids)


def _width(parts: list[Float32[np.ndarray, "_ _"]]) -> int:
    """How many numbers the vectors have; 0 while none was seen."""
    return max((part.shape[1] for part in parts), default=0)


def _vectors_of(rows: Rows, column: str, width: int) -> Float32[np.ndarray, "m D"]:
    """A row of zeros where the item has no vector. `width`: that of the vectors before, 0 without any."""
    lists = rows.columns["vector"]
    lists = lists.cast(pa.list_(pa.float32()))
    lengths = np.diff(lists.offsets.to_numpy())
    present = lists.is_valid().to_numpy(zero_copy_only=False) & (lengths > 0)
    width = width or (int(lengths[present][0]) if present.any() else 0)
    wrong = np.flatnonzero(present & (lengths != width))
    if len(wrong):
        raise rows.refuse(int(wrong[0]), column, f"{lengths[wrong[0]]} numbers, the others have {width}.")
    filled = np.zeros((rows.n_rows, width), np.float32)
    filled[present] = lists.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width) if width else 0
    broken = np.flatnonzero(~np.isfinite(filled).all(axis=1))
    if len(broken):
        raise rows.refuse(int(broken[0]), column, "NaN or infinity in a vector; leave the vector out instead.")
    return normalise(filled)


def _joined(parts: list[Float32[np.ndarray, "_ _"]]) -> Float32[np.ndarray, "M D"]:
    """All rows in one array; the first batches may have had no vector at all."""
    width = _width(parts)
    return np.concatenate([part if part.shape[1] else np.zeros((len(part), width), np.float32) for part in parts])


def _encoded(mapping: LogMapping, out: Path, encoder: str, show_progress: bool) -> Path | None:
    if not mapping.texts and mapping.image is None:
        return None
    if len(mapping.items.files) != 1:
        raise DataError(
            "items in several files cannot be encoded on the way; run `daian embed` and name its folder as vectors."
        )
    folder = out.with_name(f"{out.name}.vectors")
    columns = ItemColumns(mapping.items.roles["item"], mapping.texts, mapping.image)
    embed(mapping.items.files[0], folder, encoder, columns, show_progress=show_progress)
    return folder


def _aligned(folder: Path, ids: Iterable[str]) -> Float32[np.ndarray, "M D"]:
    """The vectors of a `daian embed` folder in the order of `ids`; zeros for items that it does not have."""
    opened = open_vectors(folder)
    place = {item_id: row for row, item_id in enumerate(opened.ids)}
    rows = np.array([place.get(item_id, -1) for item_id in ids], dtype=np.int64)
    if not (rows >= 0).any():
        raise DataError(f"{folder}: holds none of the items' ids; embed this items table.")
    return np.where((rows >= 0)[:, None], opened.vectors[rows], np.float32(0))
