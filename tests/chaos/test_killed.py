"""Killed and stuck: a publisher at any moment, a worker that is silent, everything at once. C1, D4, D12.

Each is told from its twin: a publisher that points first and writes then, a parent that never loses patience, a lock
that outlives who held it. Only processes that were started here are signalled.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.contract.bundle import current_path, read_bundle
from service.contract.errors import BundleError
from service.serving import STUCK_S
from tests.chaos.service_process import ServiceProcess, service_process, status_of
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.e2e
N_KILLS = int(os.environ.get("DAIAN_TEST_KILLS", "12"))
ROOT = Path(__file__).resolve().parents[2]
LONG_S = 60.0
PATIENT = {
    "DAIAN_DEADLINE_MS": "60000", "DAIAN_MAX_DEADLINE_MS": "60000", "DAIAN_REDIS_READ_BUDGET_MS": "1000",
    "DAIAN_REDIS_POOL_WAIT_MS": "1000", "DAIAN_REDIS_TIMEOUT_MS": "5000", "DAIAN_DRAIN_S": "0.5", "DAIAN_GRACE_S": "1",
}  # fmt: skip


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + LONG_S
    while not is_true():
        assert time.monotonic() < until_s, f"after {LONG_S:g} s still not so: {what}"
        time.sleep(0.05)


# --- a publisher of bundles -------------------------------------------------------------------------------------------

PUBLISHER = """
import hashlib, itertools, json, os, sys
from pathlib import Path
from service.contract.bundle import Bundle, point_to, write_bundle
from service.contract.manifest import with_digest

root, is_careful = Path(sys.argv[1]), sys.argv[2] == "careful"
content = {f"tables/part{number}.npy": bytes([number]) * 200_000 for number in range(12)}
hashes = {name: hashlib.sha256(one).hexdigest() for name, one in content.items()}

def fill(folder):
    (folder / "tables").mkdir()
    for name, one in content.items():
        (folder / name).write_bytes(one)

def point_first(version):
    '''What somebody would write who never had a publisher killed.'''
    path = root / "daian" / version
    path.mkdir(parents=True)
    told = {"name": "daian", "version": version, "fingerprint": "f", "files": hashes, "manifest_schema": 1,
            "contract_version": 1}
    (path / "manifest.json").write_text(json.dumps(with_digest(told)))
    point_to(root, Bundle(path, told, ""))
    fill(path)

for number in itertools.count():
    version = f"v{os.getpid():08d}-{number:06d}"
    if is_careful:
        point_to(root, write_bundle(root, "daian", version, {"fingerprint": "f"}, fill))
    else:
        point_first(version)
    if number == 0:
        print("published", flush=True)
"""


def n_broken_by_kills(root: Path, how: str, n: int) -> int:
    """How often `current` named a bundle that is not whole after a publisher was killed at random."""
    dice, n_broken = random.Random(20261122), 0
    for _ in range(n):
        with subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(root), how], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as publisher:
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == "published\n"
            time.sleep(dice.uniform(0, 0.2))
            publisher.kill()
        try:
            read_bundle(current_path(root))
        except BundleError:
            n_broken += 1
    return n_broken


def test_c1_whenever_a_publisher_is_killed_current_names_a_whole_bundle(tmp_path: Path) -> None:
    assert n_broken_by_kills(tmp_path, "careful", N_KILLS) == 0


def test_c1_pointed_at_first_and_written_then_it_does_not(tmp_path: Path) -> None:
    assert n_broken_by_kills(tmp_path, "careless", N_KILLS) > 0


# --- a worker that is stuck -------------------------------------------------------------------------------------------

NEVER_LOSES_PATIENCE = "import service.serving\nservice.serving.STUCK_S = 600"


@contextlib.contextmanager
def stuck_worker(tmp_path: Path, prelude: str = "") -> Iterator[tuple[ServiceProcess, int]]:
    """A service of two workers, one of which is stopped: to its parent like one that never lets the interpreter go."""
    write_small_bundle(tmp_path / "bundles")
    with service_process(tmp_path / "bundles", tmp_path, prelude=prelude, DAIAN_WORKERS="2", **PATIENT) as service:
        wait_for(lambda: service.n_bundles_opened() >= 2, "both workers answer")
        pid = sorted(service.workers())[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield service, pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_d4_a_stuck_worker_is_replaced_and_the_other_answers_meanwhile(tmp_path: Path) -> None:
    with stuck_worker(tmp_path) as (service, pid):
        assert status_of(f"{service.url}/livez") == 200
        wait_for(lambda: pid not in service.workers() and service.n_bundles_opened() >= 3, "another in its place")
        assert len(service.workers()) == 2
        assert service.process.poll() is None


def test_d4_without_an_end_to_patience_it_stays(tmp_path: Path) -> None:
    with stuck_worker(tmp_path, NEVER_LOSES_PATIENCE) as (service, pid):
        time.sleep(STUCK_S + 3)
        assert pid in service.workers()


# --- everything at once -----------------------------------------------------------------------------------------------

LOCK_BY_EXISTENCE = """
import service.embedded_store as module
def _locked(path, message):
    try:
        return path.open("xb")
    except FileExistsError:
        raise module.EmbeddedStoreError(message or f"{path} is there")
module._locked = _locked
"""


def kill_everything(tmp_path: Path) -> None:
    """A service of two workers with its own store acknowledges a click; then parent, workers and store die at once."""
    write_small_bundle(tmp_path / "bundles")
    with service_process(tmp_path / "bundles", tmp_path, DAIAN_WORKERS="2", **PATIENT) as service:
        event = {"event_id": "1", "type": "click", "user": "u", "item": "i8", "time": int(time.time() * 1000) - 2000}
        answer = httpx.post(f"{service.url}/v1/events", json={"events": [event]}, timeout=60)
        assert answer.json()["accepted"] == 1
        time.sleep(2.5)  # `everysec` may put a write off while the disk is syncing
        store = int((tmp_path / "store" / "server.pid").read_text())
        for pid in (service.process.pid, *service.workers(), store):
            os.kill(pid, signal.SIGKILL)
        service.process.wait()


def test_d12_started_again_it_serves_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    kill_everything(tmp_path)
    with service_process(tmp_path / "bundles", tmp_path, DAIAN_WORKERS="2", **PATIENT) as service:
        answer = httpx.post(f"{service.url}/v1/rank", json={"user": "u", "trigger": "i0"}, timeout=60)
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        assert answer.json()["behaviours"]["used"] == 1


def test_d12_a_lock_that_outlives_its_holder_would_want_a_hand(tmp_path: Path) -> None:
    kill_everything(tmp_path)
    with (
        pytest.raises(AssertionError, match="in use by another daian"),
        service_process(tmp_path / "bundles", tmp_path, prelude=LOCK_BY_EXISTENCE, **PATIENT),
    ):
        pass
