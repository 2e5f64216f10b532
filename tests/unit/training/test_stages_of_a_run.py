"""Whole runs of what a stage may meet: a shop without vectors, and one stage against three."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.checkpoint import load_tensors
from training.config import DataConfig, TrainConfig
from training.data.dataset import SPLITS, Items, PreparedWriter, open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.data.synthetic import World, simulate
from training.recipes import daian_demo
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
