"""Catalogue: every item's raw fields, vector and popularity, mapped from disk and shared by all workers.

Built by training.data, shipped in the bundle, read by the Encoder, the retriever and explanations. Row 0 is the
unknown item; items are rows 1..M. Raw values are dictionary-coded (a list of distinct values and a code a row).

    catalogue.json  ids.bin  ids.offsets.npy  ids.rows.npy  ids.hashes.npy  ids.positions.npy
    field.<name>.codes.npy + field.<name>.values.json   (texts)      field.<name>.numbers.npy   (numbers)
    codes.npy  norms.npy  popularity.npy
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Int64, UInt8, UInt64

from service.contract.errors import SchemaError
from service.contract.hash_index import HashIndex, hash_values
from service.contract.mapped_array import all_below, content_of, open_array
from service.contract.similarity import cosine, norms_of, products_of_pairs, products_with_one, quantise

UNKNOWN_ROW = 0
_FORMAT = 1
_ASCII = 127
_AT_ONCE = 65_536


class TextColumn:
    """A raw text field: `values[codes[row]]`; code 0 is a missing value, which includes the unknown item."""

    def __init__(self, codes: np.ndarray, values: Sequence[str | None]) -> None:
        self.codes = codes
        self.values = tuple(values)

    @classmethod
    def from_values(cls, name: str, raw: Sequence[object]) -> "TextColumn":
        """`raw` without the unknown item. Raises SchemaError for a value that is neither text nor None."""
        distinct: dict[str | None, int] = {None: 0}
        codes = np.zeros(len(raw) + 1, np.int32)
        for row, value in enumerate(raw, start=1):
            if value is not None and not isinstance(value, str):
                raise SchemaError(f"item field {name}, item {row}: {value!r:.80} among texts; give str, or None")
            codes[row] = distinct.setdefault(value, len(distinct))
        return cls(codes, tuple(distinct))

    def __getitem__(self, row: int) -> str | None:
        return self.values[int(self.codes[row])]

    def content(self) -> Iterator[memoryview | bytes]:
        """All that it holds, in pieces, for a digest; no two different columns give the same bytes."""
        yield content_of(self.codes)
        yield from (json.dumps(value).encode() + b"\n" for value in self.values)


class NumberColumn:
    """A raw number field; NaN is a missing value, which includes the unknown item."""

    def __init__(self, numbers: Float[np.ndarray, " M1"]) -> None:
        self.numbers = numbers

    def __getitem__(self, row: int) -> float | None:
        number = float(self.numbers[row])
        return None if np.isnan(number) else number

    def content(self) -> Iterator[memoryview | bytes]:
        """All that it holds, for a digest."""
        yield content_of(self.numbers)


class Catalogue:
    """All items. Arrays have M + 1 rows, the first of them for the unknown item (no vector, no field)."""

    def __init__(
        self,
        index: HashIndex,
        id_bytes: UInt8[np.ndarray, " X"],
        id_offsets: Int64[np.ndarray, " M2"],
        id_hashes: UInt64[np.ndarray, " M1"],
        columns: Mapping[str, TextColumn | NumberColumn],
        codes: Int8[np.ndarray, "M1 D"],
        norms: Float32[np.ndarray, " M1"],
        popularity: Float32[np.ndarray, " M1"],
    ) -> None:
        self._index = index
        self._id_bytes = id_bytes
        self._id_offsets = id_offsets
        self.id_hashes = id_hashes
        self.columns = dict(columns)
        self.codes = codes
        self.norms = norms
        self.popularity = popularity

    @classmethod
    def build(
        cls,
        item_ids: Sequence[str],
        fields: Mapping[str, Sequence[object]],
        vectors: Float32[np.ndarray, "M D"] | None = None,
        codes: Int8[np.ndarray, "M D"] | None = None,
        has_vector: Bool[np.ndarray, " M"] | None = None,
        popularity: Float32[np.ndarray, " M"] | None = None,
    ) -> "Catalogue":
        """From raw columns, one value an item; a column of numbers (or None) becomes a number field, else text.

        Give `vectors` (quantised here) or ready `codes`, or neither. `has_vector` False clears a row. Raises
        SchemaError for repeated ids, columns of another length, NaN in vectors.
        """
        n_items = len(item_ids)
        codes = _codes_of(n_items, vectors, codes, has_vector)
        index = HashIndex.from_values(item_ids)
        encoded = [item_id.encode("utf-8", "surrogatepass") for item_id in item_ids]
        offsets = np.cumsum([0, 0] + [len(part) for part in encoded], dtype=np.int64)
        return cls(
            index=index,
            id_bytes=np.frombuffer(b"".join(encoded), np.uint8),
            id_offsets=offsets,
            id_hashes=np.concatenate([np.zeros(1, np.uint64), hash_values(item_ids, n_items)]),
            columns={name: _column(name, raw, n_items) for name, raw in fields.items()},
            codes=codes,
            norms=norms_of(codes),
            popularity=_with_unknown(popularity if popularity is not None else np.zeros(n_items, np.float32), n_items),
        )

    def _check(self, folder: Path) -> None:
        """Raises SchemaError for arrays by which a look-up would fail later, in the middle of a request."""
        n_rows = len(self.norms)
        lengths = {"ids.offsets": len(self._id_offsets) - 1, "ids.rows": len(self.id_hashes), "codes": len(self.codes),
                   "popularity": len(self.popularity), "ids.hashes": len(self._index.hashes) + 1}  # fmt: skip
        for name, column in self.columns.items():
            lengths[f"field.{name}"] = len(column.numbers if isinstance(column, NumberColumn) else column.codes)
            if isinstance(column, TextColumn) and not all_below(column.codes, len(column.values)):
                raise SchemaError(f"{folder}/field.{name}.codes.npy names values that its values.json has not")
        for name, n in lengths.items():
            if n != n_rows:
                raise SchemaError(f"{folder}/{name} has {n} rows, norms.npy {n_rows}")
        offsets, content = self._id_offsets, self._id_bytes
        if offsets[0] != 0 or offsets[-1] != len(content) or (np.diff(offsets) < 0).any():
            raise SchemaError(f"{folder}/ids.offsets.npy does not cut ids.bin into ids")
        if len(content) and content.max() > _ASCII:
            for start in range(0, n_rows, _AT_ONCE):
                self.ids(range(start, min(start + _AT_ONCE, n_rows)))  # what is no text is a ValueError

    @property
    def n_items(self) -> int:
        """M, without the unknown item."""
        return len(self.norms) - 1

    @property
    def dimensions(self) -> int:
        """D of the vectors; 0 when no item has one."""
        return int(self.codes.shape[1])

    @property
    def has_vector(self) -> Bool[np.ndarray, " M1"]:
        """Which rows can be compared."""
        return self.norms > 0

    def hashes(self, item_ids: Sequence[str | None]) -> UInt64[np.ndarray, " Q"]:
        """The 64-bit hashes by which ids are compared; equal for two spellings of one id."""
        return hash_values(item_ids, len(item_ids))

    def rows(self, item_ids: Sequence[str | None]) -> Int64[np.ndarray, " Q"]:
        """The row of each id, 0 where unknown. Never raises."""
        return self.rows_of_hashes(self.hashes(item_ids))

    def rows_of_hashes(self, hashes: UInt64[np.ndarray, " Q"]) -> Int64[np.ndarray, " Q"]:
        """The same for ids hashed before."""
        return self._index.find_hashes(hashes) + 1

    def row(self, item_id: str | None) -> int:
        """The same for one id."""
        return self._index.find_one(item_id) + 1

    def ids(self, rows: Sequence[int] | Int64[np.ndarray, " Q"]) -> list[str]:
        """The id of each row, as it was given when the catalogue was built; "" for the unknown item."""
        places = np.asarray(rows, np.int64)
        starts, ends = self._id_offsets.take(places).tolist(), self._id_offsets.take(places + 1).tolist()
        content = self._id_bytes.data
        return [str(content[start:end], "utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]

    def digest(self, names: Iterable[str]) -> str:
        """SHA-256 of the ids and of these raw fields: equal for the same items with the same values in the same order.

        A name that the catalogue has not is left out.
        """
        found = hashlib.sha256(content_of(self.id_hashes))
        for name in sorted(set(names) & set(self.columns)):
            column = self.columns[name]
            found.update(f"{name} {type(column).__name__}\n".encode())
            for piece in column.content():
                found.update(piece)
        return found.hexdigest()

    def raw(self, row: int) -> dict[str, str | float | None]:
        """The raw fields of one item, for people to read."""
        return {name: column[row] for name, column in self.columns.items()}

    def similarity(
        self, left: Int64[np.ndarray, " *left"], right: Int64[np.ndarray, " *right"]
    ) -> Float32[np.ndarray, " *pairs"]:
        """Exact cosine of rows `left` and `right` (broadcast, one dimension); MISSING (-2) without a vector."""
        if len(left) == 1:
            products = products_with_one(self.codes, int(left[0]), right)
            return cosine(products, self.norms[left], self.norms[right])
        left, right = np.broadcast_arrays(left, right)
        return cosine(products_of_pairs(self.codes, left, right), self.norms[left], self.norms[right])

    def save(self, folder: Path) -> None:
        """Writes the catalogue into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._index.save(folder / "ids")
        (folder / "ids.bin").write_bytes(self._id_bytes.tobytes())
        arrays = {"ids.offsets": self._id_offsets, "ids.rows": self.id_hashes, "codes": self.codes}
        arrays |= {"norms": self.norms, "popularity": self.popularity}
        kinds = {}
        for name, column in self.columns.items():
            kinds[name] = "number" if isinstance(column, NumberColumn) else "text"
            if isinstance(column, NumberColumn):
                arrays[f"field.{name}.numbers"] = column.numbers
            else:
                arrays[f"field.{name}.codes"] = column.codes
                (folder / f"field.{name}.values.json").write_text(json.dumps(column.values), "utf-8")
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        description = {"format": _FORMAT, "n_items": self.n_items, "dimensions": self.dimensions, "fields": kinds}
        (folder / "catalogue.json").write_text(json.dumps(description, indent=2), "utf-8")

    @classmethod
    def open(cls, folder: Path) -> "Catalogue":
        """Maps what save wrote. Raises SchemaError when the folder does not hold a catalogue."""
        try:
            description = json.loads((folder / "catalogue.json").read_text("utf-8"))
            if description["format"] != _FORMAT:
                raise SchemaError(f"{folder}: catalogue format {description['format']}, this version reads {_FORMAT}")
            blob = (folder / "ids.bin").stat().st_size
            found = cls(
                index=HashIndex.open(folder / "ids"),
                # an empty file cannot be mapped; a plain view, for the reason that open_array gives
                id_bytes=np.asarray(np.memmap(folder / "ids.bin", np.uint8, "r")) if blob else np.empty(0, np.uint8),
                id_offsets=_mapped(folder, "ids.offsets"),
                id_hashes=_mapped(folder, "ids.rows"),
                columns=dict(_open_columns(folder, description["fields"])),
                codes=_mapped(folder, "codes"),
                norms=_mapped(folder, "norms"),
                popularity=_mapped(folder, "popularity"),
            )
            found._check(folder)
            return found
        except (OSError, KeyError, ValueError) as error:
            raise SchemaError(
                f"{folder} holds no readable catalogue ({error}): write one with Catalogue.save"
            ) from error


def _mapped(folder: Path, name: str) -> np.ndarray:
    return open_array(folder / f"{name}.npy")


def _open_columns(folder: Path, kinds: Mapping[str, str]) -> Iterator[tuple[str, TextColumn | NumberColumn]]:
    for name, kind in kinds.items():
        if kind == "number":
            yield name, NumberColumn(_mapped(folder, f"field.{name}.numbers"))
        else:
            values = json.loads((folder / f"field.{name}.values.json").read_text("utf-8"))
            yield name, TextColumn(_mapped(folder, f"field.{name}.codes"), values)


def _column(name: str, raw: Sequence[object], n_items: int) -> TextColumn | NumberColumn:
    if len(raw) != n_items:
        raise SchemaError(f"item field {name} has {len(raw)} values for {n_items} items")
    numbers = [value for value in raw if isinstance(value, int | float | np.integer | np.floating)]
    if numbers and len(numbers) == sum(value is not None for value in raw):
        values = [np.nan, *(np.nan if value is None else float(value) for value in raw)]  # type: ignore[arg-type]
        return NumberColumn(np.array(values, np.float64))
    return TextColumn.from_values(name, raw)


def _codes_of(
    n_items: int,
    vectors: Float32[np.ndarray, "M D"] | None,
    codes: Int8[np.ndarray, "M D"] | None,
    has_vector: Bool[np.ndarray, " M"] | None,
) -> Int8[np.ndarray, "M1 D"]:
    if vectors is not None:
        codes = quantise(vectors)[0]
    if codes is None:
        codes = np.zeros((n_items, 0), np.int8)
    if len(codes) != n_items:
        raise SchemaError(f"{len(codes)} vectors for {n_items} items: one row an item, zeros where there is none")
    if has_vector is not None:
        codes = np.where(has_vector[:, None], codes, np.int8(0))
    return np.concatenate([np.zeros((1, codes.shape[1]), np.int8), codes])


def _with_unknown(popularity: Float32[np.ndarray, " M"], n_items: int) -> Float32[np.ndarray, " M1"]:
    if len(popularity) != n_items:
        raise SchemaError(f"{len(popularity)} popularities for {n_items} items")
    return np.concatenate([np.zeros(1, np.float32), popularity.astype(np.float32)])
