"""The load test judges: objectives that hold end it well, one that does not fails it and says which."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.service_process import ServiceProcess, service_process
from tests.small_bundle import write_small_bundle

LOCUSTFILE = Path(__file__).parents[2] / "deploy" / "locustfile.py"
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_small_bundle(root)
    return root


@pytest.fixture(scope="module")
def service(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    # What is judged here are the objectives: no ranking is to be refused for a busy machine.
    patient = {"DAIAN_DEADLINE_MS": "20000", "DAIAN_MAX_DEADLINE_MS": "20000", "DAIAN_REDIS_TIMEOUT_MS": "5000"}
    with service_process(bundles, tmp_path_factory.mktemp("service"), **patient) as found:  # type: ignore[arg-type]
        yield found


def load(service: ServiceProcess, bundles: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--host", service.url]
    command += ["--bundles", str(bundles), "--rate", "20", "--run-time", "3s", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_run_within_its_objectives_ends_well(service: ServiceProcess, bundles: Path) -> None:
    code, said = load(service, bundles, "--max-p99-ms", "60000", "--max-failed", "0.5", "--max-degraded", "1")
    assert (code, said.count("  met: "), said.count("MISSED")) == (0, 3, 0), said


@pytest.mark.parametrize(
    ("options", "missed"),
    [(("--max-p99-ms", "0.001", "--max-degraded", "1"), "p99 of ranks"), (("--max-degraded", "-1"), "lack a part")],
)
def test_an_objective_that_is_missed_fails_the_run(
    service: ServiceProcess, bundles: Path, options: tuple[str, ...], missed: str
) -> None:
    code, said = load(service, bundles, *options)
    assert code == 1, said
    assert any("MISSED" in line and missed in line for line in said.splitlines()), said


def test_without_a_service_nothing_is_judged_well(bundles: Path, service: ServiceProcess) -> None:
    nobody = ServiceProcess(service.process, service.host, 1, service.log, 0.0)
    code, said = load(nobody, bundles)
    assert code == 1, said
    assert "MISSED: arrivals that failed" in said


@pytest.mark.parametrize(("cases", "asked"), [(["odd", "ordinary"], ["ordinary"]), (["odd"], ["odd"])])
def test_pages_that_are_odd_on_purpose_are_not_asked_for(tmp_path: Path, cases: list[str], asked: list[str]) -> None:
    """Else a service of which nothing is wrong would miss the objective for ranks that lack a part."""
    (tmp_path / "daian" / "v1").mkdir(parents=True)
    (tmp_path / "current").write_text('{"name": "daian", "version": "v1"}')
    lines = [json.dumps({"case": case, "request": {"trigger": case}}) for case in cases]
    (tmp_path / "daian" / "v1" / "golden.jsonl").write_text("\n".join(lines))
    code = f"import sys; sys.path.insert(0, {str(LOCUSTFILE.parent)!r}); import json, locustfile, pathlib\n"
    code += f"print(json.dumps([one['trigger'] for one in locustfile.golden_rows(pathlib.Path({str(tmp_path)!r}))]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == asked
