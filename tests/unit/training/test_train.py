"""A whole run on a simulated shop: it learns, is found again on disk, and killed anywhere ends with the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import train as train_module
from training.baselines import LINES
from training.checkpoint import CheckpointError, load_tensors, open_run
from training.config import DataConfig, TrainConfig
from training.data.dataset import open_catalogue
from training.data.fit_encoder import fit_encoder
from training.data.pools import KeptPools
from training.data.synthetic import World, simulate
from training.evaluate import evaluate, lines_of, saved_numbers
from training.models import MODELS, spec_of
from training.recipes import TABLES, daian_demo, din_demo, row_config
from training.rows import ROWS
from training.train import train

SMALL_WORLD = World(n_requests=500, n_users=80, n_items=100, seed=5)


class Silent:
    """Takes the numbers and keeps the stages' names; can stop the run at a step, as a killed process would."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.left = dies_after
        self.stages: list[str] = []

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:  # noqa: ARG002
        self.left -= 1
        if not self.stages or self.stages[-1] != stage:
            self.stages.append(stage)
        if self.left < 0:
            raise KeyboardInterrupt

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """Nothing to see here."""

    def note(self, stage: str, text: str) -> None:
        """Nor here."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, SMALL_WORLD)
    return folder


def quick() -> TrainConfig:
    """Three stages with several checkpoints in each, and dropout so that the random state counts."""
    model = replace(daian_demo().model, dropout=0.1, joint_epochs=2, uim_epochs=2)
    return replace(
        daian_demo(), model=model, data=DataConfig(batch_candidates=512), checkpoint_every=2, evaluate_every=5
    )


def test_a_run_killed_again_and_again_ends_with_the_same_bits(world: Path, tmp_path: Path) -> None:
    numbers = train(quick(), world, tmp_path / "whole", Silent())
    broken = tmp_path / "broken"
    seen: list[str] = []
    for _ in range(60):
        recorder = Silent(dies_after=6)
        try:
            resumed = train(quick(), world, broken, recorder)
            break
        except KeyboardInterrupt:
            seen += recorder.stages
    assert set(seen) == {"intent", "interests", "joint"}  # it was killed in each of the stages
    whole, pieces = load_tensors(tmp_path / "whole" / "weights.pt"), load_tensors(broken / "weights.pt")
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert resumed == numbers


def test_without_the_random_state_it_would_not(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(quick(), model=replace(quick().model, uim_epochs=1, joint_epochs=1))
    train(config, world, tmp_path / "whole", Silent())
    monkeypatch.setattr(train_module.torch, "set_rng_state", lambda _state: None)
    for dies_after in (8, 10**9):
        try:
            train(config, world, tmp_path / "broken", Silent(dies_after))
        except KeyboardInterrupt:
            continue
    whole, pieces = load_tensors(tmp_path / "whole" / "weights.pt"), load_tensors(tmp_path / "broken" / "weights.pt")
    assert not all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_finished_run_is_found_again_and_evaluated_beside_counting(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = replace(din_demo(), model=replace(din_demo().model, max_epochs=1))
    numbers = train(config, world, run, Silent())
    opened = open_run(run, open_catalogue(world))
    assert opened.config == config
    assert not opened.model.training
    table = evaluate(run, world, "test")
    assert list(table) == ["din_demo", *(name for name in LINES if "goal" not in name)]
    saved = json.loads((run / "metrics.json").read_text())
    assert saved == {"validation": numbers, "test": table}
    assert evaluate(run, world, "test", lines_of(table)) == table == saved_numbers(run, "test")


def test_a_folder_of_another_run_is_refused(world: Path, tmp_path: Path) -> None:
    config = replace(din_demo(), model=replace(din_demo().model, max_epochs=1))
    with pytest.raises(KeyboardInterrupt):
        train(config, world, tmp_path / "run", Silent(dies_after=0))
    with pytest.raises(CheckpointError, match="another config"):
        train(replace(config, seed=2), world, tmp_path / "run", Silent())
    with pytest.raises(CheckpointError, match="not finished"):
        open_run(tmp_path / "run", open_catalogue(world))


def test_a_model_that_cannot_be_exported_is_refused_before_the_first_step(world: Path, tmp_path: Path) -> None:
    def refuse(*_args: object) -> None:
        raise RuntimeError("this graph has no ONNX form")

    with pytest.raises(RuntimeError, match="ONNX"):
        train(din_demo(), world, tmp_path / "run", Silent(dies_after=0), refuse)
    assert not (tmp_path / "run").exists()


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, World(n_requests=6_000, n_users=400, n_items=400, seed=6))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_more_than_popularity(larger_world: Path, tmp_path: Path, name: str) -> None:
    rows = [row for row in ROWS if spec_of(row_config("small", row).model).name == name]
    assert rows, f"add a row for {name} to training/rows.py: a model that nobody trains proves nothing"
    # What is clicked here follows the trigger: a model that is not told of it has little more than popularity to learn.
    row = next((row for row in rows if ROWS[row].group != "trigger-free"), rows[0])
    # The quicker attention unit and three epochs: whether it learns is asked here, not how well.
    size = replace(TABLES["small"].size, attention="dot", epochs=3)
    config = replace(row_config("small", row), model=ROWS[row].config(size))
    train(config, larger_world, tmp_path / "run", Silent())
    table = evaluate(tmp_path / "run", larger_world, "test")
    assert table[config.name]["gauc_request"] > table["popularity"]["gauc_request"] + 0.02


def test_runs_that_share_encoded_requests_end_with_the_same_bits(world: Path, tmp_path: Path) -> None:
    train(quick(), world, tmp_path / "alone", Silent())
    kept = KeptPools(fit_encoder(world))
    for run in ("first", "second"):
        train(quick(), world, tmp_path / run, Silent(), pools=kept)
    assert kept.n_bytes > 0
    alone = load_tensors(tmp_path / "alone" / "weights.pt")
    for run in ("first", "second"):
        shared = load_tensors(tmp_path / run / "weights.pt")
        assert all(torch.equal(alone[name], shared[name]) for name in alone)
