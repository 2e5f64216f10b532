"""From one raw value to its id: Vocabulary for ids and categories, NumberBins for numbers.

Fitted by training.data.fit_encoder on the training days, used by the Encoder alone. In both, PAD = 0 is "nothing
here" (a missing value), OOV = 1 "unknown", known values start at 2.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from service.contract.hash_index import HashIndex
from service.contract.mapped_array import open_array

PAD = 0
OOV = 1
FIRST_KNOWN = 2


class Vocabulary:
    """The known values of one field, in id order."""

    def __init__(self, index: HashIndex, values_file: Path | None = None, values: Sequence[str] = ()) -> None:
        self._index = index
        self._values_file = values_file
        self._values = tuple(values)

    @classmethod
    def from_values(cls, values: Sequence[str]) -> "Vocabulary":
        """Ids are given in the order of `values`. Raises SchemaError for a repeated value."""
        return cls(HashIndex.from_values(values), values=values)

    @property
    def n_ids(self) -> int:
        """Known values and the two reserved ids: the height of an embedding table."""
        return len(self._index.hashes) + FIRST_KNOWN

    @property
    def values(self) -> tuple[str, ...]:
        """The known values in id order (read from disk when the vocabulary was opened from there)."""
        if self._values_file is not None:
            return tuple(json.loads(line) for line in self._values_file.read_text("utf-8").splitlines())
        return self._values

    def encode(self, values: Sequence[object]) -> Int64[np.ndarray, " Q"]:
        """None is PAD, a value that is not known is OOV. Values that are no strings are looked up as `str(value)`."""
        texts = [value if value is None or isinstance(value, str) else str(value) for value in values]
        ids = self._ids(self._index.find(texts))
        missing = np.fromiter((text is None for text in texts), np.bool_, len(texts))
        ids[missing] = PAD
        return ids

    def encode_one(self, value: object) -> int:
        """The same for one value."""
        if value is None:
            return PAD
        position = self._index.find_one(value if isinstance(value, str) else str(value))
        return OOV if position < 0 else position + FIRST_KNOWN

    def encode_hashes(self, hashes: UInt64[np.ndarray, " Q"]) -> Int64[np.ndarray, " Q"]:
        """The same for values hashed before (the catalogue's own ids); a hash of 0 is OOV."""
        return self._ids(self._index.find_hashes(hashes))

    def _ids(self, positions: Int64[np.ndarray, " Q"]) -> Int64[np.ndarray, " Q"]:
        return np.where(positions >= 0, positions + FIRST_KNOWN, np.int64(OOV))

    def digest(self) -> str:
        """SHA-256 of values and order."""
        return self._index.digest()

    def save(self, stem: Path) -> None:
        """Writes the index (mapped when opened) and the values, one JSON string a line, for people and tools."""
        self._index.save(stem)
        # JSON escapes keep every value on one line, odd separators included
        lines = [json.dumps(value) + "\n" for value in self.values]
        stem.with_name(stem.name + ".values.jsonl").write_text("".join(lines), "utf-8")

    @classmethod
    def open(cls, stem: Path) -> "Vocabulary":
        """Maps what save wrote."""
        return cls(HashIndex.open(stem), values_file=stem.with_name(stem.name + ".values.jsonl"))


class NumberBins:
    """Bins of a number: `edges` (ascending) cut the line into len(edges) + 1 bins, a value on an edge lies above it."""

    def __init__(self, edges: Float32[np.ndarray, " E"]) -> None:
        self.edges = edges

    @property
    def n_ids(self) -> int:
        """Bins and the two reserved ids."""
        return len(self.edges) + 1 + FIRST_KNOWN

    def encode(self, values: Sequence[object]) -> Int64[np.ndarray, " Q"]:
        """None and NaN are PAD, what cannot be read as a number is OOV."""
        ids = np.empty(len(values), np.int64)
        numbers = np.empty(len(values), np.float64)
        for position, value in enumerate(values):
            numbers[position], ids[position] = _number(value)
        bins = np.searchsorted(self.edges, numbers, side="right")
        return np.where(ids == FIRST_KNOWN, bins + FIRST_KNOWN, ids)

    def encode_one(self, value: object) -> int:
        """The same for one value."""
        number, id_ = _number(value)
        return id_ if id_ != FIRST_KNOWN else FIRST_KNOWN + int(self.edges.searchsorted(np.float64(number), "right"))

    def digest(self) -> str:
        """SHA-256 of the edges."""
        return hashlib.sha256(self.edges.tobytes()).hexdigest()

    def save(self, stem: Path) -> None:
        """Writes the edges."""
        np.save(stem.with_name(stem.name + ".edges.npy"), self.edges)

    @classmethod
    def open(cls, stem: Path) -> "NumberBins":
        """Reads what save wrote."""
        return cls(open_array(stem.with_name(stem.name + ".edges.npy")))


def _number(value: object) -> tuple[float, int]:
    if value is None:
        return 0.0, PAD
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0, OOV
    return (0.0, PAD) if np.isnan(number) else (number, FIRST_KNOWN)
