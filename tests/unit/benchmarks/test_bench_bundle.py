"""`daian bench`: what it asks is the bundle's own, whole and now; and it runs where there is no torch."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from service.bench.bundle import BenchPlan, golden_rows, moved_to_now, request_of, with_candidates
from service.bench.served import BenchError, cpu_s, pss_mb, tree
from service.contract.bundle import Bundle
from tests.small_bundle import N_ITEMS, NOW, make_encoder, write_small_bundle

LATER = NOW + 5_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_small_bundle(tmp_path_factory.mktemp("bundles"))


def test_golden_requests_are_asked_by_users_of_their_own(bundle: Bundle) -> None:
    rows = golden_rows(bundle)
    assert len({row["user"]["user"] for row in rows}) == len(rows) == 3
    assert all(row["user"]["user"].startswith("bench-") for row in rows), "nobody's history is written over"


def test_behaviours_are_as_long_ago_as_they_were(bundle: Bundle) -> None:
    rows = golden_rows(bundle)
    for before, after in zip(rows, moved_to_now(rows, LATER), strict=True):
        assert after["requested_at"] == LATER
        ages = [[row["requested_at"] - one["at"] for one in row["behaviours"]] for row in (before, after)]
        assert ages[0] == ages[1]


def test_candidates_are_different_items_of_the_catalogue(bundle: Bundle) -> None:
    rows, encoder = golden_rows(bundle), make_encoder()
    for row in with_candidates(rows, encoder, 50):
        assert len(set(row["candidates"])) == 50
        assert (encoder.catalogue.rows(row["candidates"]) > 0).all()
    assert {len(row["candidates"]) for row in with_candidates(rows, encoder, 10 * N_ITEMS)} == {N_ITEMS}


def test_a_request_names_user_trigger_and_candidates(bundle: Bundle) -> None:
    row = golden_rows(bundle)[0]
    head, _, body = request_of(row).partition(b"\r\n\r\n")
    asked = json.loads(body)
    assert head.startswith(b"POST /v1/rank HTTP/1.1")
    assert f"content-length: {len(body)}" in head.decode().lower()
    assert (asked["user"], asked["trigger"], asked["candidates"]) == ("bench-0", row["trigger"], row["candidates"])


def test_a_process_tree_is_read_from_proc() -> None:
    code = "sum(range(30_000_000)); print('x', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:  # type: ignore[call-overload]
        child.stdout.readline()
        assert child.pid in tree(os.getpid())
        assert cpu_s(child.pid) > 0.02
        assert 1 < pss_mb(child.pid) < 1000
        child.kill()
    assert child.pid not in tree(os.getpid())
    assert cpu_s(child.pid) == pss_mb(child.pid) == 0


def test_the_plan_is_what_the_command_says() -> None:
    assert BenchPlan().candidates == (100, 500)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rounds": 0}, "rounds: 0"),
        ({"candidates": (5, 0)}, "candidates: 0"),
        ({"candidates": ()}, "candidates: 0"),
        ({"seconds": 0.0}, "seconds: 0"),
        ({"seconds": float("nan")}, "seconds: nan"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        BenchPlan(**given)


@pytest.mark.e2e
def test_the_command_measures_a_bundle_without_torch(bundle: Bundle) -> None:
    """Real server, real store; torch and the packages that need it are made impossible to import."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'training', 'models_export', 'pyarrow')));"
        "from service.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    options = ["--candidates", "20", "--rounds", "1", "--seconds", "0.5", "--json"]
    command = [sys.executable, "-c", code, "bench", str(bundle.path.parents[1]), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["candidates"] == 20
    assert found["n_failed"] == 0
    assert 0 < found["server_efficiency"]["median"] < 2
    assert found["p50_ms"]["median"] <= found["p99_ms"]["median"]
    assert {"parse", "encode", "candidate_graph", "total"} <= found["stages_ms"].keys()
