"""The first load of a bundle happens in a child: whatever the files do, it is the child that suffers."""

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

import pytest

from service import bundle_trial as module
from service.bundle_trial import Trial, TrialPlan, check_room, memory_left
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.manifest import with_digest
from tests.small_bundle import candidate_graph, write_small_bundle

PLAN = TrialPlan(chunk=256, ort_threads=1, timeout_s=120)


def stub(code: str, timeout_s: float = 60) -> Trial:
    """A child that says which file it reads, and then does `code`."""
    said = 'import os, signal, sys, time; print(\'{"reading": "/b/request.onnx"}\', flush=True); '
    return Trial(TrialPlan(256, 1, timeout_s), (sys.executable, "-c", said + code))


def test_a_good_bundle_passes(bundle: Bundle) -> None:
    Trial(PLAN).run(bundle.path)


def test_c5_not_a_number_is_refused_with_the_line(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, candidates=candidate_graph(nan_for_item=3))
    with pytest.raises(BundleError, match=r"v1/golden\.jsonl, line 1 .*differ by nan"):
        Trial(PLAN).run(bundle.path)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended its reader by SIGSEGV"),
        ("raise MemoryError('no room')", "ended its reader with code 1 .MemoryError: no room"),
        ("sys.exit(7)", "ended its reader with code 7 .without a word"),
    ],
)
def test_c8_a_child_that_dies_is_a_refusal_that_names_the_file(bundle: Bundle, code: str, reason: str) -> None:
    with pytest.raises(BundleError, match=f"^/b/request.onnx: {reason}"):
        stub(code).run(bundle.path)


def test_c8_a_child_that_never_ends_is_ended(bundle: Bundle) -> None:
    started_s = time.monotonic()
    with pytest.raises(BundleError, match=r"^/b/request\.onnx: took too long"):
        stub("time.sleep(100)", timeout_s=6).run(bundle.path)  # long enough for the child to say the file
    assert time.monotonic() - started_s < 60


def test_stopping_ends_the_child_and_starts_no_other(bundle: Bundle) -> None:
    trial = stub("time.sleep(100)")
    threading.Timer(1.0, trial.stop).start()
    started_s = time.monotonic()
    with pytest.raises(BundleError):
        trial.run(bundle.path)
    assert time.monotonic() - started_s < 60
    with pytest.raises(BundleError, match="about to stop"):
        trial.run(bundle.path)


def test_the_child_gets_no_setting_and_no_secret_and_an_empty_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAIAN_REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    seen = tmp_path / "seen.json"
    stub(f"import json; json.dump([dict(os.environ), os.listdir()], open({str(seen)!r}, 'w'))").run(bundle.path)
    environment, files = json.loads(seen.read_text())
    assert "secret" not in json.dumps(environment)
    assert files == []


def test_c8_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(module.resource, "setrlimit", lambda kind, both: limits.append((kind, both)))
    monkeypatch.setattr(module.os, "nice", lambda _: 0)
    bundle = write_small_bundle(tmp_path)
    assert module.main(bundle.path, 256, 1) == 0
    kind, (soft, hard) = limits[0]
    assert kind == module.resource.RLIMIT_DATA
    assert soft == hard == module.MEMORY_BASE + module.MEMORY_FACTOR * module.bundle_size(bundle.path)


def test_c8_a_child_beyond_its_memory_is_a_refusal(bundle: Bundle) -> None:
    hungry = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({1 << 28}, {1 << 28})); bytearray({1 << 29})"
    with pytest.raises(BundleError, match="MemoryError"):
        stub(hungry).run(bundle.path)


def test_c9_a_bundle_larger_than_what_is_left_is_refused_before_anything_is_read(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = module.bundle_size(bundle.path)
    monkeypatch.setattr(module, "memory_left", lambda: int(2.3 * size))
    check_room(bundle.path)
    monkeypatch.setattr(module, "memory_left", lambda: int(2.1 * size))
    with pytest.raises(BundleError, match="of memory are left"):
        Trial(PLAN).run(bundle.path)


def test_c9_what_is_left_is_the_smaller_of_machine_and_cgroup(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert memory_left(tmp_path, meminfo) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    assert memory_left(tmp_path, meminfo) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_left(tmp_path, meminfo) == 5000 * 1024
    assert memory_left(tmp_path / "nowhere", tmp_path / "nothing") is None


def test_a_table_cut_short_with_a_fitting_hash_is_refused_by_name(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path)
    table = bundle.path / "tables" / "table.item.npy"
    table.write_bytes(table.read_bytes()[:-100])
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["files"]["tables/table.item.npy"] = hashlib.sha256(table.read_bytes()).hexdigest()
    (bundle.path / "manifest.json").write_text(json.dumps(with_digest(manifest)))
    with pytest.raises(BundleError, match=r"table\.item\.npy is not a table"):
        Trial(PLAN).run(bundle.path)
