"""What the demo keeps, what it makes anew, and what it refuses."""

import json
from pathlib import Path

import pytest

import models_export.demo
from models_export.demo import DemoPlan, Steps, _data, _key, _numbers, _recipes, _train
from training.config import TrainConfig
from training.data.synthetic import World
from training.evaluate import Numbers
from training.recipes import daian_demo, din_demo


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models_export.demo, "HOME", tmp_path / "kept")
    monkeypatch.setattr(models_export.demo, "SHORT_WORLD", World(n_requests=300, n_users=40, n_items=120, seed=1))
    return tmp_path / "kept"


def test_the_simulated_shop_is_made_once(capsys: pytest.CaptureFixture[str]) -> None:
    first = _data(DemoPlan(short=True), Steps(7))
    made_at = (first / "dataset.json").stat().st_mtime_ns
    assert _data(DemoPlan(short=True), Steps(7)) == first
    assert (first / "dataset.json").stat().st_mtime_ns == made_at
    assert capsys.readouterr().out.count("is there from before") == 1
    assert _recipes(first) == ("daian_demo", "din_demo")


def test_a_prepared_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "wikispeedia"}))
    assert _data(DemoPlan(data=tmp_path), Steps(7)) == tmp_path
    assert _recipes(tmp_path) == ("daian_wikispeedia", "din_wikispeedia")


def test_a_folder_of_something_else_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="daian data prepare logs"):
        _data(DemoPlan(data=tmp_path), Steps(7))


def test_a_run_is_kept_until_recipe_or_data_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(_name: str, _data: Path, out: Path) -> dict[str, float]:
        trained.append(out.name)
        out.mkdir(parents=True)
        (out / "weights.pt").write_bytes(b"weights")
        return {}

    config: list[TrainConfig] = [daian_demo()]
    monkeypatch.setattr(models_export.demo, "run_training", train)
    monkeypatch.setattr(models_export.demo, "recipe", lambda _: config[0])
    (tmp_path / "dataset.json").write_text("{}")
    first = _train("daian_demo", tmp_path, Steps(7))
    assert _train("daian_demo", tmp_path, Steps(7)) == first
    assert trained == [first.name]
    config[0] = din_demo()
    assert _train("daian_demo", tmp_path, Steps(7)) != first
    config[0] = daian_demo()
    (tmp_path / "dataset.json").write_text('{"n_levels": 5}')
    assert _train("daian_demo", tmp_path, Steps(7)) != first
    assert len(trained) == 3


def test_keys_follow_content_not_order() -> None:
    assert _key({"a": 1, "b": 2}) == _key({"b": 2, "a": 1}) != _key({"a": 1, "b": 3})


def test_the_counting_lines_are_computed_once_for_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Numbers | None] = []

    def evaluate(run: Path, _data: Path, _split: str, lines: Numbers | None) -> Numbers:
        given.append(lines)
        return {run.name: {"auc": 0.7}, "click_rate": {"auc": 0.6}}

    monkeypatch.setattr(models_export.demo, "evaluate", evaluate)
    numbers = _numbers([tmp_path / "daian", tmp_path / "din"], tmp_path, print)
    assert given == [None, {"click_rate": {"auc": 0.6}}]
    assert set(numbers) == {"daian", "din", "click_rate"}


def test_steps_number_themselves_and_say_how_long_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(2)
    with steps.step("First") as tell:
        tell("a note")
    with pytest.raises(ValueError, match="broken"), steps.step("Second"):
        raise ValueError("broken")
    out = capsys.readouterr().out
    assert "[1/2] First\n      a note\n      done in 0." in out
    assert "[2/2] Second" in out
    assert out.count("done in") == 1
