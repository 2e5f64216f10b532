"""HashIndex: from strings to positions through a sorted array of 64-bit hashes that can be mapped from disk.

Used by Vocabulary and Catalogue. A Python dict of a million ids costs each worker 117 MB of its own; this costs 16 MB
that all workers share. Only hashes are compared: an unknown string is taken for a known one with a chance of
(number of known) / 2^64 per look-up. Two *known* values with one hash are refused when the index is built.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
import xxhash
from jaxtyping import Int64, UInt64

from service.contract.errors import SchemaError
from service.contract.mapped_array import all_below, content_of, open_array


def hash_values(values: Sequence[str | None], count: int) -> UInt64[np.ndarray, " V"]:
    """xxh64 of the NFC form of each value; None hashes to 0, which no caller may treat as found."""
    digest = xxhash.xxh64_intdigest
    if _all_ascii(values):  # nearly every batch: no Python per value
        return np.fromiter(map(digest, map(str.encode, values)), np.uint64, count)
    return np.fromiter(map(hash_value, values), np.uint64, count)


def hash_value(value: str | None) -> int:
    """The same for one value."""
    return 0 if value is None else xxhash.xxh64_intdigest(_key(value))


def _all_ascii(values: Sequence[str | None]) -> TypeGuard[Sequence[str]]:
    try:
        return "".join(values).isascii()  # type: ignore[arg-type]
    except TypeError:
        return False


def _key(value: str) -> bytes:
    if value.isascii():
        return value.encode()
    return unicodedata.normalize("NFC", value).encode("utf-8", "surrogatepass")


class HashIndex:
    """Sorted `hashes` and, for each, its `position` in the order in which the values were given."""

    def __init__(self, hashes: UInt64[np.ndarray, " V"], positions: Int64[np.ndarray, " V"]) -> None:
        self.hashes = hashes
        self.positions = positions

    @classmethod
    def from_values(cls, values: Sequence[str]) -> "HashIndex":
        """Builds the index. Raises SchemaError for a repeated value."""
        hashes = hash_values(values, len(values))
        order = np.argsort(hashes, kind="stable")
        repeated = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(repeated):
            first, second = order[repeated[0]], order[repeated[0] + 1]
            raise SchemaError(f"{values[first]!r} and {values[second]!r} are one id (after NFC); give each value once")
        return cls(hashes[order], order.astype(np.int64))

    def find(self, values: Sequence[str | None]) -> Int64[np.ndarray, " Q"]:
        """The position of each value, -1 where it is not in the index."""
        return self.find_hashes(hash_values(values, len(values)))

    def find_hashes(self, wanted: UInt64[np.ndarray, " Q"]) -> Int64[np.ndarray, " Q"]:
        """The same for values that were hashed before."""
        if len(self.hashes) == 0:
            return np.full(len(wanted), -1, np.int64)
        at = self.hashes.searchsorted(wanted)
        found = (self.hashes.take(at, mode="clip") == wanted) & (wanted != 0)
        return np.where(found, self.positions.take(at, mode="clip"), np.int64(-1))

    def find_one(self, value: str | None) -> int:
        """The position of one value, as `find` has it: a live request looks up a handful, each in an index of its own,
        and for one value an array costs more than the search.
        """
        wanted = hash_value(value)
        at = int(self.hashes.searchsorted(np.uint64(wanted)))
        if wanted == 0 or at == len(self.hashes) or int(self.hashes[at]) != wanted:
            return -1
        return int(self.positions[at])

    def digest(self) -> str:
        """SHA-256 over the content: the same values in the same order give the same digest."""
        digest = hashlib.sha256(content_of(self.hashes))
        digest.update(content_of(self.positions))
        return digest.hexdigest()

    def save(self, stem: Path) -> None:
        """Writes `<stem>.hashes.npy` and `<stem>.positions.npy`."""
        np.save(stem.with_name(stem.name + ".hashes.npy"), self.hashes)
        np.save(stem.with_name(stem.name + ".positions.npy"), self.positions)

    @classmethod
    def open(cls, stem: Path) -> "HashIndex":
        """Maps what save wrote. Raises SchemaError where a position leads out of the index."""
        hashes = open_array(stem.with_name(stem.name + ".hashes.npy"))
        positions = open_array(stem.with_name(stem.name + ".positions.npy"))
        if hashes.shape != positions.shape or not all_below(positions, len(hashes)):
            raise SchemaError(f"{stem}.positions.npy has not one place below {len(hashes)} for each hash")
        return cls(hashes, positions)
