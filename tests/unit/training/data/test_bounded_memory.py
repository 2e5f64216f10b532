"""Reading a file ten times what the reader may take: an epoch's batches stay within the allowance, and would not if the
file were read whole.

The peak is the kernel's own count of a process of its own (VmHWM), so that nothing that arrow, numpy or Python keep to
themselves is overlooked. Its allocator has one arena and gives freed memory back: how many arenas there are and what
they hoard depends on the threads' luck, and is no part of what reading needs.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.contract.requests import RequestBatch
from tests.unit.training.data.shop import NOW_MS, SCHEMA, prepare_small
from training.data.fit_encoder import fit_encoder
from training.data.request_files import row_group_sizes, write_requests

ALLOWANCE_BYTES = 16 << 20
ROW_GROUP_REQUESTS = 16
POOL_REQUESTS = 16  # a row group; their statistics in the footer, two long ids for each, are in memory too
N_CANDIDATES = 50
ID_BYTES = 600  # of chance, twice as many hexadecimal digits: no compression makes the file a small one
ONE_ARENA = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "1048576"}

READ = """
import sys
from pathlib import Path

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from training.data.batches import Batches, BatchPlan


def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def epoch(file, encoder, pool_requests):
    plan = BatchPlan(batch_candidates=1000, pool_requests=pool_requests, n_ahead=2)
    return sum(len(batch.clicks) for batch in Batches([file], encoder, plan).epoch())


folder, pool_requests = Path(sys.argv[1]), int(sys.argv[2])
encoder = Encoder.open(folder / "encoder", Catalogue.open(folder / "catalogue"))
epoch(folder / "few.parquet", encoder, pool_requests)  # imports, thread stacks, the readers' own buffers
before = memory("VmRSS")
print(epoch(folder / "many.parquet", encoder, pool_requests), memory("VmHWM") - before)
"""


def write_pages(path: Path, n_requests: int, chance: np.random.Generator) -> None:
    """Requests with long ids that nobody has seen."""
    with write_requests(path, SCHEMA, ROW_GROUP_REQUESTS) as writer:
        for start in range(0, n_requests, ROW_GROUP_REQUESTS):
            rows = [
                {
                    "request_id": f"r{number}",
                    "requested_at": NOW_MS + number,
                    "user": {"user": f"u{number % 5}"},
                    "context": {},
                    "trigger": "i1",
                    "behaviours": [],
                    "candidates": [chance.bytes(ID_BYTES).hex() for _ in range(N_CANDIDATES)],
                }
                for number in range(start, min(start + ROW_GROUP_REQUESTS, n_requests))
            ]
            batch = RequestBatch.from_rows(rows)
            writer.write(batch, np.zeros(batch.n_candidates, np.int8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a small request file and one that is ten times the allowance, in bytes on disk."""
    made = tmp_path_factory.mktemp("large")
    prepare_small(made / "data")
    encoder = fit_encoder(made / "data")
    encoder.save(made / "encoder")
    encoder.catalogue.save(made / "catalogue")
    chance = np.random.default_rng(1)
    n_few, n_bytes = 6 * POOL_REQUESTS, 10 * ALLOWANCE_BYTES
    write_pages(made / "few.parquet", n_few, chance)
    a_request = (made / "few.parquet").stat().st_size / n_few
    write_pages(made / "many.parquet", int(1.05 * n_bytes / a_request), chance)
    assert (made / "many.parquet").stat().st_size >= n_bytes
    return made


def read(folder: Path, pool_requests: int) -> tuple[int, int]:
    """Candidates of an epoch over the large file, and by how many bytes the memory of the process that read it grew."""
    command = [sys.executable, "-c", READ, str(folder), str(pool_requests)]
    done = subprocess.run(command, env=os.environ | ONE_ARENA, capture_output=True, text=True, timeout=280, check=True)
    n_candidates, grown = done.stdout.split()
    return int(n_candidates), int(grown)


def n_candidates(folder: Path) -> int:
    return N_CANDIDATES * sum(row_group_sizes(folder / "many.parquet"))


def test_an_epoch_over_ten_times_the_allowance_stays_within_it(folder: Path) -> None:
    seen, grown = read(folder, POOL_REQUESTS)
    assert seen == n_candidates(folder)
    assert grown < ALLOWANCE_BYTES


def test_saboteur_read_whole_the_file_would_not_fit(folder: Path) -> None:
    seen, grown = read(folder, n_candidates(folder))
    assert seen == n_candidates(folder)
    assert grown > 10 * ALLOWANCE_BYTES
