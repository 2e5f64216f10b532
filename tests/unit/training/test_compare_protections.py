"""What keeps a comparison honest without being seen, each beside its twin: the same with the protection off."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.training.test_train import SMALL_WORLD
from training import compare as compare_module
from training import compare_worker
from training.checkpoint import save_run_start
from training.compare import CompareError, Comparison, RowState, Runner, planned_rows, read_states
from training.compare_pool import Done, Said, WorkerPool
from training.compare_worker import DataInMemory, Task, code_sha256, work
from training.data import pools
from training.data.dataset import split_files
from training.data.fit_encoder import fit_encoder
from training.data.synthetic import simulate
from training.recipes import row_config
from training.report_numbers import why_not_timed
from training.report_page import Paragraph
from training.report_sections import mixed_code
from training.search import Search


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, SMALL_WORLD)
    return folder


# A folder of one comparison takes no other.


@pytest.fixture
def planned(world: Path, tmp_path: Path) -> Comparison:
    comparison = Comparison("small", world, tmp_path / "out", ("din",), n_seeds=1)
    compare_module._begin(comparison)
    return comparison


def others(planned: Comparison, tmp_path: Path) -> dict[str, Comparison]:
    other_world = tmp_path / "other"
    simulate(other_world, replace(SMALL_WORLD, seed=6))
    return {
        "table": replace(planned, table="wikispeedia"),
        "data": replace(planned, data=other_world),
        "search": replace(planned, n_trials=1),
    }


def test_another_table_other_data_and_another_search_are_refused(planned: Comparison, tmp_path: Path) -> None:
    assert list(read_states(planned)) == ["din"]
    for other in others(planned, tmp_path).values():
        with pytest.raises(CompareError, match="another table, data or search"):
            read_states(other)


def test_without_the_plan_check_each_of_them_would_be_mixed_in(
    planned: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""
    monkeypatch.setattr(compare_module, "check_plan", lambda _comparison: True)
    for other in others(planned, tmp_path).values():
        assert list(read_states(other)) == ["din"]


# No run pays for the encoding of requests, which a process does once.


def encodings_on_the_clock(world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many row groups are encoded while the training of a process's first run is timed."""
    encoded: list[int] = []
    real = pools.encode_labelled

    def counting(*given: Any) -> Any:
        encoded.append(1)
        return real(*given)

    def train(_config: object, data: Path, _folder: Path, _recorder: object, pools: Any) -> dict[str, float]:
        before = len(encoded)
        for split in ("train", "validation"):
            pools.read([(path, 0) for path in split_files(data, split)])
        return {"encoded": len(encoded) - before}

    monkeypatch.setattr(pools, "encode_labelled", counting)
    monkeypatch.setattr(compare_worker, "train", train)
    monkeypatch.setattr(compare_worker, "_held", None)
    encoder = folder / "encoder"
    fit_encoder(world).save(encoder)
    config = row_config("small", "din")
    found = work(Task("run", "din", "seed-1", world, folder / "run", encoder, config), lambda _text: None)
    return int(found["validation"]["encoded"])


def test_requests_are_encoded_before_the_clock_starts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    assert encodings_on_the_clock(world, tmp_path, monkeypatch) == 0


def test_without_the_warm_up_the_first_run_would_pay(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(DataInMemory, "warm", lambda _self: None)
    assert encodings_on_the_clock(world, tmp_path, monkeypatch) > 0


# Runs of other code are not taken for runs of this one.


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a file of a small program; the hash of it all."""
    for package in ("training", "contract"):
        (tmp_path / package).mkdir()
    monkeypatch.setattr(compare_worker, "training", SimpleNamespace(__file__=str(tmp_path / "training/__init__.py")))
    monkeypatch.setattr(
        compare_worker, "contract_encoder", SimpleNamespace(__file__=str(tmp_path / "contract/encoder.py"))
    )

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return code_sha256.__wrapped__()

    return write


def test_the_hash_knows_every_python_file_by_name_and_content(tree: Callable[[str, str], str]) -> None:
    found = [
        tree("training/loop.py", "a = 1"),
        tree("training/loop.py", "a = 2"),
        tree("training/models/din.py", ""),
        tree("training/models/dien.py", ""),
        tree("contract/encoder.py", "b = 1"),
    ]
    assert len(set(found)) == len(found)
    assert tree("training/models/notes.txt", "no code") == found[-1]
    assert tree("contract/encoder.py", "b = 1") == found[-1]


def tried_before(world: Path, folder: Path, code: str) -> dict[str, Any] | None:
    """Whether a trial that this code made is taken for the first seed."""
    config = row_config("small", "din")
    save_run_start(folder / "trial-0", config, fit_encoder(world), "")
    (folder / "trial-0" / "measured.json").write_text(json.dumps({"code_sha256": code}))
    return compare_worker._tried_before(Task("run", "din", "seed-1", world, folder / "seed-1", folder, config, True))


def test_a_trial_of_other_code_is_trained_again(world: Path, tmp_path: Path) -> None:
    assert tried_before(world, tmp_path / "a", code_sha256()) is not None
    assert tried_before(world, tmp_path / "b", "0" * 64) is None


def test_without_the_hash_it_would_be_taken_over(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(compare_worker, "code_sha256", lambda: "0" * 64)
    assert tried_before(world, tmp_path / "b", "0" * 64) is not None


# A timing that fails is told in the report, not only on the screen.


class Pool(WorkerPool):
    """Works nothing off: its only task is over, as given."""

    def __init__(self, failure: str | None) -> None:
        self.failure = failure

    def add(self, task: Any) -> None:
        self.task = task

    def events(self) -> Iterator[Done | Said]:
        if self.failure is None:
            self.task.folder.write_text(json.dumps({"rows": {"din": {"median_ms": 1.5}}}))
        yield Done(self.task, None, self.failure, "Traceback")


class Nobody:
    def planned(self, n_tasks: int) -> None: ...

    def says(self, worker: int, row: str, name: str, text: str) -> None: ...

    def done(self, row: str, name: str, text: str) -> None: ...


def timed(planned: Comparison, failure: str | None) -> str | None:
    """What the report says of latencies after a timing that ended so."""
    (row,) = planned_rows(planned)
    state = RowState(row, Search((0.1,), 1), runs={"seed-1": {}})
    Runner(planned, {"din": state}, Pool(failure), Nobody()).time()
    path = planned.out / "timing.json"
    known = json.loads(path.read_text())["rows"] if path.is_file() else {}
    latency = {"latency_ms": known["din"]["median_ms"]} if "din" in known else {}
    return why_not_timed(planned.out, {"din": {"title": "DIN", "numbers": {}, "n_levels": None, **latency}})


def test_a_timing_that_failed_is_in_the_report_until_one_succeeds(planned: Comparison) -> None:
    before = why_not_timed(planned.out, {"din": {"title": "DIN", "numbers": {}, "n_levels": None}})
    assert str(before).startswith("the graphs were not timed yet")
    assert timed(planned, "RuntimeError: no space left") == "timing failed: RuntimeError: no space left"
    assert "Traceback" in (planned.out / "timing_failed.txt").read_text()
    assert timed(planned, None) is None
    assert not (planned.out / "timing_failed.txt").exists()
    later = {"din": {"title": "DIN", "numbers": {}, "n_levels": None}}
    assert str(why_not_timed(planned.out, later)).startswith("not timed: DIN;")
    assert why_not_timed(planned.out, {"n": {"title": "n = 4", "numbers": {}, "n_levels": 4}}) is None


def test_without_the_file_the_failure_would_not_be_told(planned: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(compare_module, "keep_failure_of_timing", lambda _out, _event: None)
    assert "no space left" not in str(timed(planned, "RuntimeError: no space left"))


def said(*codes: list[str]) -> list[str]:
    rows = {str(at): {"numbers": {}, "code_sha256": code} for at, code in enumerate(codes)}
    return [block.text for block in mixed_code({"rows": rows}) if isinstance(block, Paragraph)]


def test_a_report_of_runs_of_different_code_says_so() -> None:
    (text,) = said(["a" * 64], ["a" * 64, "b" * 64])
    assert text.startswith("Mixed: ")
    assert "aaaaaaaaaaaa, bbbbbbbbbbbb" in text
    (text,) = said(["a" * 64], ["unknown"])
    assert text.startswith("Mixed: ")


def test_without_the_hashes_nothing_would_be_said() -> None:
    """The twin: the same runs, as if the code had left no trace in them."""
    assert said(["a" * 64], ["a" * 64]) == []
