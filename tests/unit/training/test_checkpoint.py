"""Checkpoints that survive a crash, a flipped bit and a stranger's folder."""

import json
import os
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_tensors,
    read_config,
    save_checkpoint,
    save_tensors,
)
from training.data.synthetic import World, simulate
from training.recipes import din_demo
from training.train import train


def content(step: int) -> dict[str, object]:
    return {"step": step, "weights": {"w": torch.full((3,), float(step))}}


def test_tensors_and_plain_values_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.pt", content(7))
    found = load_tensors(tmp_path / "a.pt")
    assert found["step"] == 7
    assert torch.equal(found["weights"]["w"], torch.full((3,), 7.0))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_bit_is_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.pt"
    save_tensors(path, content(1))
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="hash"):
        load_tensors(path)


def test_the_newest_three_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000, 10000):
        save_checkpoint(tmp_path, step, content(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:09d}.pt" for n in (100, 1000, 10000)]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found["step"] == 10000


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, content(step))
    (tmp_path / "step-000000002.pt").write_bytes(b"half a file")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found["step"] == 1


def test_when_all_are_damaged_training_does_not_begin_again_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2):
        save_checkpoint(folder, step, content(step))
        (folder / f"step-{step:09d}.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged.*delete") as refused:
        latest_checkpoint(folder)
    assert str(folder) in str(refused.value)
    assert str(folder.parent) in str(refused.value)


def test_without_checkpoints_a_run_begins_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / "empty") is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def crash(*_args: object) -> None:
    raise OSError("the machine stops here")


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    save_tensors(path, content(1))
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="stops here"):
        save_tensors(path, content(2))
    assert load_tensors(path)["step"] == 1


def test_written_in_place_the_same_crash_would_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, whole: bytes) -> None:
        path.write_bytes(whole[: len(whole) // 2])
        crash()

    path = tmp_path / "a.pt"
    save_tensors(path, content(1))
    monkeypatch.setattr(checkpoint, "write_whole", in_place)
    with pytest.raises(OSError, match="stops here"):
        save_tensors(path, content(2))
    with pytest.raises(CheckpointError):
        load_tensors(path)


class Stops:
    """A recorder in the place of a killed process: the first step is the last."""

    def step(self, *_given: object) -> None:
        """Stops the run."""
        raise KeyboardInterrupt

    def validation(self, *_given: object) -> None:
        """Never reached."""

    def note(self, *_given: object) -> None:
        """Not listened to."""


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    """Two shops with the same fields: the vocabulary of one would quietly be trained on the other."""
    for seed in (1, 2):
        simulate(tmp_path / f"shop-{seed}", World(n_requests=200, n_users=30, n_items=60, seed=seed))
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(din_demo(), tmp_path / "shop-1", run, Stops())
    with pytest.raises(CheckpointError, match="other data"):
        train(din_demo(), tmp_path / "shop-2", run, Stops())
    with pytest.raises(KeyboardInterrupt):
        train(din_demo(), tmp_path / "shop-1", run, Stops())


def test_a_run_folder_from_before_data_was_noted_still_opens(tmp_path: Path) -> None:
    simulate(tmp_path / "shop", World(n_requests=200, n_users=30, n_items=60, seed=1))
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(din_demo(), tmp_path / "shop", run, Stops())
        found = json.loads((run / "config.json").read_text())
        found.pop("data_sha256", None)
        (run / "config.json").write_text(json.dumps(found))
    assert read_config(run)[0] == din_demo()
