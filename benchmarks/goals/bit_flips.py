"""G15: one flipped bit in a file of requests is never read as data.

A file is written as the training side writes it; copies with one bit of their pages flipped are read as it reads them.
Called by `__main__.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.goals.lab import Lab
from benchmarks.goals.outcome import Outcome, none_of
from service.contract.requests import RequestBatch
from tests.unit.training.data.shop import SCHEMA, random_requests
from training.data.errors import DataError
from training.data.request_files import read_requests, write_requests

N_REQUESTS = 40
PER_ROW_GROUP = 20


@dataclass
class Flips:
    """What became of the copies; `n_unseen` is what the same bytes give a reader that does not check its pages."""

    n: int = 0
    n_silent: int = 0
    n_refused: int = 0
    n_unseen: int = 0


def flipped(content: bytes, seed: int, n: int) -> list[bytes]:
    """Copies with one bit of the pages flipped; the footer, which follows them, is left as it is."""
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = np.random.default_rng(seed).integers(4 * 8, pages * 8, n)
    return [content[: at // 8] + bytes([content[at // 8] ^ (1 << at % 8)]) + content[at // 8 + 1 :] for at in places]


def tried(folder: Path, n: int) -> Flips:
    """Every copy read twice: with our reader, and with one that does not check."""
    batch, clicks = random_requests(N_REQUESTS)
    path, broken, found = folder / "whole.parquet", folder / "broken.parquet", Flips()
    with write_requests(path, SCHEMA, PER_ROW_GROUP) as writer:
        writer.write(batch, clicks)
    rows, whole = batch.to_rows(), pq.read_table(path)
    for content in flipped(path.read_bytes(), 0, n):
        broken.write_bytes(content)
        found.n += 1
        try:
            parts = list(read_requests(broken))
            is_same = RequestBatch.concat([part for part, _ in parts]).to_rows() == rows
            found.n_silent += not (is_same and np.array_equal(np.concatenate([one for _, one in parts]), clicks))
        except DataError:
            found.n_refused += 1
        try:
            found.n_unseen += not pq.read_table(broken, page_checksum_verification=False).equals(whole)
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            continue
    return found


def measure(lab: Lab) -> Outcome:
    """G15."""
    found = tried(lab.folder, lab.sizes.n_flips)
    how = (
        f"one bit flipped in {found.n:,} copies of a file of requests; {found.n_refused:,} were refused by name, the "
        f"others read as what was written; a reader that does not check the pages took {found.n_unseen:,} for data"
    )
    return Outcome(how, [none_of("flips that were read as other data", found.n_silent, found.n)])
