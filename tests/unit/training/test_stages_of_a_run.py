"""Whole runs of what a stage may meet: a shop without vectors, one stage against three, a model that needs facts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import train as train_module
from training.checkpoint import load_tensors
from training.config import DataConfig, TrainConfig
from training.data.dataset import SPLITS, Items, PreparedWriter, open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.data.synthetic import World, simulate
from training.models import din
from training.models.spec import ModelSpec, Stage, TrainingFacts
from training.recipes import daian_demo, din_demo
from training.train import train


class Told:
    """Counts the steps of each stage and keeps what is said."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.notes: list[str] = []

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:  # noqa: ARG002
        self.steps[stage] = step

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """Nothing to see here."""

    def note(self, stage: str, text: str) -> None:
        self.notes.append(f"{stage}: {text}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, World(n_requests=500, n_users=80, n_items=100, seed=5))
    return folder


@pytest.fixture(scope="module")
def without_vectors(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop, whose items were never embedded."""
    folder, catalogue = tmp_path_factory.mktemp("bare") / "shop", open_catalogue(world)
    rows = np.arange(1, catalogue.n_items + 1)
    ids = catalogue.ids(rows)
    names = [field.name for field in open_dataset(world).schema.item if field.name != "item"]
    dataset = replace(open_dataset(world), windows={}, report={})
    nothing: list[str | float | None] = [None] * len(ids)
    with PreparedWriter(folder, dataset, Items(ids, dict.fromkeys(names, nothing))) as writer:
        for split in SPLITS:
            for path in split_files(world, split):
                for batch, clicks in read_requests(path):
                    writer.write(split, batch, clicks)
    return folder


def config_of(patience: int = 100, **model: object) -> TrainConfig:
    changed = replace(daian_demo().model, uim_epochs=2, die_epochs=1, joint_epochs=2, **model)
    return replace(daian_demo(), model=changed, data=DataConfig(batch_candidates=512), patience=patience)


def test_a_shop_without_vectors_trains_daian_and_is_told_what_was_left_out(
    without_vectors: Path, tmp_path: Path
) -> None:
    told = Told()
    numbers = train(config_of(), without_vectors, tmp_path / "run", told)
    assert set(told.steps) == {"interests", "joint"}
    assert [note.partition(":")[0] for note in told.notes] == ["start", "intent"]
    assert numbers["gauc_request"] > 0
    assert "intent_kl" not in numbers
    assert load_tensors(tmp_path / "run" / "weights.pt")


def test_one_stage_takes_as_many_steps_as_three(world: Path, tmp_path: Path) -> None:
    three, one = Told(), Told()
    train(config_of(), world, tmp_path / "three", three)
    train(config_of(three_stages=False), world, tmp_path / "one", one)
    assert set(three.steps) == {"intent", "interests", "joint"}
    assert one.steps == {"joint": sum(three.steps.values())}
    epochs_of_all = 5 * three.steps["joint"] // 2
    assert one.steps["joint"] < epochs_of_all  # stages 1 and 2 see clicked requests only


def test_without_vectors_too(without_vectors: Path, tmp_path: Path) -> None:
    three, one = Told(), Told()
    train(config_of(), without_vectors, tmp_path / "three", three)
    train(config_of(three_stages=False), without_vectors, tmp_path / "one", one)
    assert one.steps == {"joint": sum(three.steps.values())}


def test_killed_in_the_middle_one_stage_still_ends_with_the_same_bits(world: Path, tmp_path: Path) -> None:
    class Dies(Told):
        def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
            super().step(stage, step, loss, n_candidates, seconds)
            if step == 11:
                raise KeyboardInterrupt

    config = replace(config_of(three_stages=False), checkpoint_every=3)
    numbers = train(config, world, tmp_path / "whole", Told())
    with pytest.raises(KeyboardInterrupt):
        train(config, world, tmp_path / "broken", Dies())
    assert train(config, world, tmp_path / "broken", Told()) == numbers
    whole, pieces = (load_tensors(tmp_path / name / "weights.pt") for name in ("whole", "broken"))
    assert all(bool((whole[name] == pieces[name]).all()) for name in whole)


# ---- a model that needs facts ---------------------------------------------------------------------------------------


class Hooks:
    """DIN in two stages, with hooks that move its weights by chance and by what they are told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_stage(self, model: nn.Module, stage: str, facts: TrainingFacts) -> None:
        """Adds noise to a layer, and the training days' clicks."""
        self.calls.append(stage)
        with torch.no_grad():
            bias = next(p for name, p in model.named_parameters() if name == "top.first.request.bias")
            bias += 0.1 * torch.randn(bias.shape) + 1e-4 * float(facts.item_clicks.sum())

    def after_training(self, model: nn.Module, facts: TrainingFacts) -> None:
        """Not to be called twice on the same weights: it would double the items' clicks."""
        self.calls.append("after")
        with torch.no_grad():
            model.behaviours.item_ids.weight += torch.from_numpy(facts.item_clicks).float().unsqueeze(1)

    def spec(self) -> ModelSpec:
        first, second = (Stage(name, trains=("",), intent="none") for name in ("first", "second"))
        hooks = {"before_stage": self.before_stage, "after_training": self.after_training}
        return replace(din.SPEC, stages=lambda _config: (first, second), **hooks)


def with_hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    hooks = Hooks()
    spec = hooks.spec()
    monkeypatch.setattr(train_module, "spec_of", lambda _config: spec)
    return hooks


def hooked_config() -> TrainConfig:
    return replace(din_demo(), data=DataConfig(batch_candidates=512), checkpoint_every=3)


def killed_at(recorded: int, world: Path, run: Path) -> dict[str, float] | None:
    """One life of a run: it dies after so many steps. None when it died."""

    class Dies(Told):
        left = recorded

        def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
            super().step(stage, step, loss, n_candidates, seconds)
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    try:
        return train(hooked_config(), world, run, Dies())
    except KeyboardInterrupt:
        return None


def same_bits(left: Path, right: Path) -> bool:
    one, other = (load_tensors(folder / "weights.pt") for folder in (left, right))
    return all(bool((one[name] == other[name]).all()) for name in one)


def test_hooks_are_called_when_a_stage_begins_and_when_all_is_over(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = with_hooks(monkeypatch)
    numbers = train(hooked_config(), world, tmp_path / "run", Told())
    assert hooks.calls == ["first", "second", "after"]
    table = load_tensors(tmp_path / "run" / "weights.pt")["behaviours.items.tables.0.weight"]
    assert table.abs().max() > 2  # the items' clicks, written after training, are what was saved
    assert train(hooked_config(), world, tmp_path / "run", Told()) == numbers
    assert hooks.calls == ["first", "second", "after", "after"]
    again = load_tensors(tmp_path / "run" / "weights.pt")["behaviours.items.tables.0.weight"]
    assert torch.equal(again, table)  # a finished run called again: written on the same weights, not twice


def test_a_run_with_hooks_killed_anywhere_ends_with_the_same_bits(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = with_hooks(monkeypatch)
    numbers = train(hooked_config(), world, tmp_path / "whole", Told())
    hooks.calls.clear()
    lives = 0
    while (found := killed_at(4, world, tmp_path / "broken")) is None:
        lives += 1
    assert lives >= 4
    assert same_bits(tmp_path / "whole", tmp_path / "broken")
    assert found == numbers
    # No stage begins without its hook; one that was killed in its middle goes on without it.
    assert list(dict.fromkeys(hooks.calls)) == ["first", "second", "after"]
    assert len(hooks.calls) < lives


def test_resumed_at_the_very_start_of_a_stage_the_hook_finds_what_it_found_before(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = with_hooks(monkeypatch)
    told = Told()
    train(hooked_config(), world, tmp_path / "whole", told)
    for steps in (told.steps["first"] + 1, 10**9):  # dies in the second stage, before its first checkpoint
        killed_at(steps, world, tmp_path / "broken")
    assert hooks.calls == ["first", "second", "after", "first", "second", "second", "after"]
    assert same_bits(tmp_path / "whole", tmp_path / "broken")


def test_a_hook_called_again_in_the_middle_would_be_seen(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = with_hooks(monkeypatch)
    train(hooked_config(), world, tmp_path / "whole", Told())
    honest = train_module.fit_stage

    def calls_again(model: nn.Module, stage: Stage, *rest: object) -> object:
        if rest[4] is not None:  # the stage's state: it is resumed in its middle
            hooks.before_stage(model, stage.name, train_module.training_facts(world, rest[0].encoder))
        return honest(model, stage, *rest)

    monkeypatch.setattr(train_module, "fit_stage", calls_again)
    for steps in (4, 10**9):
        killed_at(steps, world, tmp_path / "broken")
    assert not same_bits(tmp_path / "whole", tmp_path / "broken")


def test_without_hooks_nothing_is_counted(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*_given: object) -> None:
        raise AssertionError("a pass over the training requests that nobody asked for")

    monkeypatch.setattr(train_module, "training_facts", counted)
    train(replace(hooked_config(), model=replace(din_demo().model, max_epochs=1)), world, tmp_path / "run", Told())
    with_hooks(monkeypatch)
    with pytest.raises(AssertionError, match="nobody asked"):
        train(hooked_config(), world, tmp_path / "other", Told())
