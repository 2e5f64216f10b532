"""Broken and hostile bundles: refused with the file and the reason, and the service that was asked serves on.

C1 to C6, C8, G13. The table is tried on a running `daian serve`, its workers counted. Mutants are tried twice: as they
are, which the hashes find, and with hashes that fit, which is as if nobody looked at hashes: then a child is all there
is between them and a worker. `DAIAN_TEST_MUTANTS` asks for more of them (`make soak`: 10,000).
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import service.contract.bundle
from service.contract.bundle import current_path, read_bundle
from service.contract.errors import BundleError
from tests.chaos.bundle_mutants import Lot, tried
from tests.chaos.hostile_bundles import BY_HASH, EVERY, Hostile, mutate, rehash
from tests.chaos.service_process import ServiceProcess, free_port, service_process
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.e2e
Record = Callable[[str, object], None]
N_MUTANTS = int(os.environ.get("DAIAN_TEST_MUTANTS", "60"))
N_FITTING = int(os.environ.get("DAIAN_TEST_MUTANTS", "20"))  # with hashes that fit: each costs two processes
SEED = int(os.environ.get("DAIAN_TEST_FUZZ_SEED", "20261122"))
ROWS = [pytest.param(one, id=f"{kind}: {one.name}") for kind, rows in EVERY for one in rows]


# --- a running service ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A service that answers with v1, and who may promote at it."""

    service: ServiceProcess
    admin: httpx.Client
    root: Path
    workers: set[int]

    def promoted(self, version: str) -> httpx.Response:
        return self.admin.post("/v1/admin/models/daian:promote", json={"version": version})

    def ranked_by(self) -> str:
        """The version that answers a ranking."""
        asked = {"trigger": "i0", "candidates": ["i7", "i9"], "deadline_ms": 20_000}
        answer = httpx.post(f"{self.service.url}/v1/rank", json=asked, timeout=60)
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        return str(answer.json()["model"]["version"])


@contextmanager
def asking(root: Path, folder: Path, prelude: str = "") -> Iterator[Asked]:
    write_small_bundle(root)
    port = free_port()
    given = {"DAIAN_ADMIN_PORT": str(port), "DAIAN_BUNDLE_POLL_S": "0", "DAIAN_MAX_DEADLINE_MS": "60000",
             "DAIAN_REDIS_READ_BUDGET_MS": "1000", "DAIAN_REDIS_POOL_WAIT_MS": "1000"}  # fmt: skip
    with (
        service_process(root, folder, (), prelude, **given) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=200) as admin,
    ):
        yield Asked(service, admin, root, service.workers())


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asking(tmp_path_factory.mktemp("bundles"), tmp_path_factory.mktemp("service")) as found:
        yield found


def copied(root: Path, version: str) -> Path:
    """v1 under another version, as an exporter would have named it."""
    path: Path = shutil.copytree(root / "daian/v1", root / "daian" / version)
    rehash(path, version=version)
    return path


@pytest.mark.parametrize("hostile", ROWS)
def test_c1_g13_it_is_refused_by_file_and_reason_and_the_service_serves_on(
    asked: Asked, hostile: Hostile, record_property: Record
) -> None:
    pointer = (asked.root / "current").read_bytes()
    path = copied(asked.root, "v2")
    try:
        hostile.spoil(path)
        answer = asked.promoted("v2")
    finally:
        shutil.rmtree(path)
    served_by, workers = asked.ranked_by(), asked.service.workers()
    record_property("G13", f"hostile bundles of the table that a service took: {int(served_by != 'v1')} of 1")
    record_property("G13", f"workers lost to them: {len(asked.workers - workers)} of {len(asked.workers)}")
    assert (answer.status_code, answer.json().get("code")) == (422, "bundle_refused"), answer.text
    where = re.escape(str(path)) if hostile.said[0] in "/:" else "^"
    assert re.search(where + hostile.said, answer.json()["detail"]), answer.json()["detail"]
    assert (served_by, workers) == ("v1", asked.workers)
    assert (asked.root / "current").read_bytes() == pointer


def test_a_copy_that_nobody_spoilt_is_taken(asked: Asked) -> None:
    copied(asked.root, "v3")
    assert asked.promoted("v3").status_code == 200
    assert asked.ranked_by() == "v3"
    assert asked.service.workers() == asked.workers


NO_HASHES_AND_NO_CHILD = """
import service.bundle_trial, service.contract.bundle
service.bundle_trial.Trial.run = lambda *_: None
service.contract.bundle.compare = lambda *_: None
"""


def test_c1_a_service_that_looks_at_no_hash_and_asks_no_child_serves_a_stranger(tmp_path: Path) -> None:
    wrong = next(one for one in BY_HASH if one.name == "a wrong hash")
    with asking(tmp_path / "bundles", tmp_path / "service", NO_HASHES_AND_NO_CHILD) as asked:
        wrong.spoil(copied(asked.root, "v2"))
        assert asked.promoted("v2").status_code == 200
        assert asked.ranked_by() == "v2"


# --- mutants ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1, current, with a pre-ranker: every kind of file that a bundle has."""
    root = tmp_path_factory.mktemp("mutants")
    write_small_bundle(root, prerank=True)
    return root


def mutants(path: Path, seed: int, numbers: Iterable[int], with_manifest: bool) -> Iterator[Path]:
    """For each number one file of the bundle with some of its bytes changed; whole again afterwards."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size]
    files = [file for file in files if with_manifest or file.name != "manifest.json"]
    for number in numbers:
        dice = random.Random(f"{seed}/{number}")
        file = dice.choice(files)
        whole = file.read_bytes()
        mutate(file, dice)
        yield file
        file.write_bytes(whole)


def opened_of(root: Path) -> tuple[int, int]:
    """How many mutants are opened by whoever follows the pointer, and how many refusals name no file."""
    n_opened = n_unnamed = 0
    for file in mutants(current_path(root), SEED, range(N_MUTANTS), with_manifest=True):
        try:
            read_bundle(current_path(root))
            n_opened += 1
        except BundleError as error:
            n_unnamed += str(file) not in str(error)
    return n_opened, n_unnamed


@pytest.mark.timeout(7200)
def test_g13_no_mutant_is_opened(root: Path, record_property: Record) -> None:
    n_opened, n_unnamed = opened_of(root)
    record_property("G13", f"mutated bundles that were opened: {n_opened} of {N_MUTANTS}")
    record_property("G13", f"refusals that do not name the mutated file: {n_unnamed} of {N_MUTANTS}")
    assert (n_opened, n_unnamed) == (0, 0), f"of seed {SEED}"


def test_g13_without_the_hashes_mutants_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.contract.bundle, "compare", lambda *_: None)
    assert opened_of(root)[0] > N_MUTANTS / 2


def with_fitting_hashes(root: Path, folder: Path, n: int) -> Lot:
    """What becomes of mutants that the hashes do not tell: tried in a child, those that pass served by a worker.

    On every core one after the other, each core with a copy of the bundle.
    """
    n_parts, lot = len(os.sched_getaffinity(0)), Lot()

    def part(first: int) -> Lot:
        path = Path(shutil.copytree(root / "daian", folder / str(first) / "daian")) / "v1"
        numbers = range(first, n, n_parts)
        found = tried(_rehashed(path, numbers))
        found.died = [(what, numbers[place]) for what, place in found.died]
        return found

    with ThreadPoolExecutor(n_parts) as threads:
        for found in threads.map(part, range(n_parts)):
            lot.add(found)
    return lot


def _rehashed(path: Path, numbers: Iterable[int]) -> Iterator[Path]:
    manifest = (path / "manifest.json").read_bytes()
    for _ in mutants(path, SEED, numbers, with_manifest=False):
        rehash(path)
        yield path
        (path / "manifest.json").write_bytes(manifest)


@pytest.mark.timeout(14_400)
def test_g13_with_fitting_hashes_no_worker_dies(root: Path, tmp_path: Path, record_property: Record) -> None:
    lot = with_fitting_hashes(root, tmp_path, N_FITTING)
    record_property("G13", f"workers that died of mutants with fitting hashes: {lot.n_workers_died} of {lot.n}")
    record_property("G13", f"note: {lot.told()}")
    print(f"\n{lot.told()}")
    assert (lot.n, lot.n_workers_died) == (N_FITTING, 0), f"of seed {SEED}: {lot.died}"
    assert lot.n_served_5xx == 0
    assert lot.n_refused > lot.n / 5


DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_g13_a_worker_that_dies_is_counted(root: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(root / "daian/v1", tmp_path / "daian/v1"))
    assert tried(iter([path])).n_served == 1
    assert tried(iter([path]), worker=DIES).n_workers_died == 1
    assert tried(iter([path]), trial=DIES).n_children_died == 1
