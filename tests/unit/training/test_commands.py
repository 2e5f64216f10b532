"""What `daian evaluate` refuses before it scores, hands on and prints; what data that cannot be used leaves behind."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import training.evaluate
from models_export.errors import ExportError
from service.contract.errors import DaianError
from training import commands
from training.data.dataset import Split
from training.data.errors import DataError
from training.data.synthetic import World, simulate
from training.evaluate import Evaluation, Exporter
from training.progress import RunProgress
from training.scores import Scored

FOUND = Evaluation(
    run="m",
    data="shop",
    split="test",
    numbers={"m": {"auc": 0.7, "gauc_user": 0.7, "gauc_request": 0.7, "auc_per_request": 0.7, "log_loss": math.nan}},
    measures={},
    tests=[{"against": "din", "sentence": "m is better than din."}],
    warnings=["shop is not the data set"],
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Calls of the evaluation, which does nothing, on any folder."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("training.data.dataset.open_dataset", lambda _: None)

    def evaluate_fully(*given: object) -> Evaluation:
        calls.append(given)
        return FOUND

    monkeypatch.setattr(training.evaluate, "evaluate_fully", evaluate_fully)
    return calls


def test_the_report_is_printed_and_written_and_the_warning_is_not_part_of_it(
    asked: list[tuple[object, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.evaluate(Path("run"), data=Path("shop"), report=tmp_path / "report.md")
    assert asked == [(Path("run"), Path("shop"), "test", None, Exporter(None, commands.time_graphs()), None)]
    shown = capsys.readouterr()
    assert "m is better than din." in shown.out
    assert shown.out == (tmp_path / "report.md").read_text()
    assert shown.err == "warning: shop is not the data set\n"


def test_json_is_json_and_nothing_else(asked: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    commands.evaluate(Path("run"), data=Path("shop"), split="validation", as_json=True)
    assert asked[0][2] == "validation"
    printed = json.loads(capsys.readouterr().out)
    assert printed["numbers"]["m"]["log_loss"] is None
    assert printed["warnings"] == FOUND.warnings


def test_a_report_whose_name_ends_in_html_is_a_page(asked: list[tuple[object, ...]], tmp_path: Path) -> None:
    commands.evaluate(Path("run"), data=Path("shop"), report=tmp_path / "new" / "report.html")
    assert len(asked) == 1
    text = (tmp_path / "new" / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "m is better than din." in text


def test_a_folder_without_data_is_named_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from service.cli import run; print(run(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "evaluate", "run", "--data", str(tmp_path / "shop")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
    assert f"{tmp_path / 'shop'}: no dataset.json; make one with `daian data prepare`" in done.stderr


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.HTML"])
def test_a_report_of_another_kind_is_refused_before_anything_is_scored(
    asked: list[tuple[object, ...]], name: str
) -> None:
    with pytest.raises(DaianError, match=r"\.html or \.md"):
        commands.evaluate(Path("run"), data=Path("shop"), report=Path(name))
    assert asked == []


def test_a_bundle_without_an_exporter_is_refused_before_anything_is_scored(
    asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "entry_points", lambda group: [])  # noqa: ARG005
    with pytest.raises(DaianError, match="extra `export`"):
        commands.evaluate(Path("run"), data=Path("shop"), against=Path("bundles"))
    assert asked == []


def test_a_bundle_is_scored_by_what_the_entry_point_names(
    asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scorer(bundle: Path, data: Path, split: Split) -> tuple[str, Scored]:
        raise AssertionError(bundle, data, split)

    class Named:
        def load(self) -> object:
            return scorer

    monkeypatch.setattr(commands, "entry_points", lambda group: [Named()] if group == "daian.bundle_scores" else [])
    commands.evaluate(Path("run"), data=Path("shop"), against=Path("bundles"), judged_by="auc_per_request")
    assert asked == [(Path("run"), Path("shop"), "test", Path("bundles"), Exporter(scorer, None), "auc_per_request")]


def test_graphs_are_timed_by_what_the_entry_point_names() -> None:
    from models_export.latency import time_graphs

    assert commands.time_graphs() is time_graphs


# --- data that cannot be trained on -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, World(n_requests=200, n_users=40, n_items=60, seed=5))
    return folder


def without(shop: Path, gone: str, folder: Path) -> Path:
    """A copy of the shop that lacks one of its parts; "." is a shop that is not there at all."""
    if gone != ".":
        shutil.copytree(shop, folder)
        shutil.rmtree(folder / gone)
    return folder


@pytest.mark.parametrize("gone", [".", "train", "validation"])
def test_data_that_cannot_be_trained_on_leaves_no_run_folder(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(commands, "export_check", lambda: None)
    data = without(shop, gone, tmp_path / "data")
    with pytest.raises(DataError, match=str(data)):
        commands.train("daian_demo", data=data, out=tmp_path / "runs" / "one")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("gone", [".", "train"])
def test_data_that_cannot_be_compared_on_leaves_no_folder(shop: Path, tmp_path: Path, gone: str) -> None:
    data = without(shop, gone, tmp_path / "data")
    with pytest.raises(DataError, match=str(data)):
        commands.compare("small", data=data, out=tmp_path / "out", rows="din")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_exported_leaves_no_run_folder(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object) -> None:
        raise ExportError("no graph")

    monkeypatch.setattr(commands, "export_check", lambda: refuse)
    with pytest.raises(ExportError):
        commands.train("daian_demo", data=shop, out=tmp_path / "runs" / "one")
    assert not (tmp_path / "runs").exists()
    # and if the curves were begun at once, there would be one
    monkeypatch.setattr(RunProgress, "__enter__", lambda self: self._point("loss", 0.0, 0) or self)
    with pytest.raises(ExportError):
        commands.train("daian_demo", data=shop, out=tmp_path / "runs" / "one")
    assert (tmp_path / "runs" / "one").exists()
