"""What a bad disk does to training: a shard with a flipped byte is named and refused, a full disk costs one checkpoint.

The disk is full in a process of its own, by the limit that the kernel keeps on the size of its files: every write
beyond it fails, whoever makes it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service import cli
from training.checkpoint import CheckpointError, latest_checkpoint, load_tensors
from training.config import TrainConfig
from training.data.synthetic import World, simulate
from training.recipes import din_demo
from training.train import train

pytestmark = pytest.mark.e2e
WORLD = World(n_requests=400, n_users=60, n_items=80, seed=3)
ROOT = Path(__file__).resolve().parents[2]


class Silent:
    """A recorder that keeps nothing."""

    def step(self, *_given: object) -> None: ...
    def validation(self, *_given: object) -> None: ...
    def note(self, *_given: object) -> None: ...


def often() -> TrainConfig:
    """A run of some twenty steps that leaves a checkpoint every five."""
    return replace(din_demo(), checkpoint_every=5)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    simulate(tmp_path / "shop", WORLD)
    return tmp_path / "shop"


def in_a_process(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


# --- a shard with a flipped byte --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("place", [0.2, 0.5])
def test_training_on_a_shard_with_a_flipped_byte_names_it(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, place: float
) -> None:
    shard = sorted((shop / split).glob("*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    content[int(len(content) * place)] ^= 1
    shard.write_bytes(content)
    assert cli.run(["train", "din_demo", "--data", str(shop), "--out", str(tmp_path / "run")]) != cli.DONE
    said = capsys.readouterr().err
    assert f"{split}/{shard.name}" in said
    assert "damaged" in said
    assert not (tmp_path / "run" / "weights.pt").exists()


# --- a full disk ------------------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
from pathlib import Path
import training.train as module
from tests.e2e.test_training_faults import Silent, often

real, n_saved = module.save_checkpoint, 0

def save(*given):
    global n_saved
    n_saved += 1
    if n_saved == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    real(*given)

module.save_checkpoint = save
module.train(often(), Path({shop!r}), Path({run!r}), Silent())
"""


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(shop: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended = in_a_process(FULL_DISK.format(shop=str(shop), run=str(run)))
    assert ended.returncode != 0
    assert "File too large" in ended.stderr
    checkpoints = sorted((run / "checkpoints").glob("step-*.pt"))
    assert len(checkpoints) == 1
    assert checkpoints[0].stat().st_size > 20_000  # what came next did not fit
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    assert not (run / "weights.pt").exists()
    train(often(), shop, run, Silent())
    train(often(), shop, whole, Silent())
    again, never_stopped = (load_tensors(folder / "weights.pt") for folder in (run, whole))
    assert again.keys() == never_stopped.keys()
    assert all(torch.equal(again[name], one) for name, one in never_stopped.items())


SECOND_WRITE = """
import resource
from pathlib import Path
import torch
import training.checkpoint as module
{sabotage}
path = Path({path!r})
module.save_tensors(path, {{"step": 1, "weights": torch.zeros(10_000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
module.save_tensors(path, {{"step": 2, "weights": torch.ones(10_000)}})
"""


def test_a_full_disk_leaves_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    ended = in_a_process(SECOND_WRITE.format(path=str(path), sabotage=""))
    assert "File too large" in ended.stderr
    assert load_tensors(path)["step"] == 1


def test_written_in_place_a_full_disk_would_lose_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    in_place = "module.write_whole = lambda path, content: path.write_bytes(content)"
    ended = in_a_process(SECOND_WRITE.format(path=str(path), sabotage=in_place))
    assert "File too large" in ended.stderr
    with pytest.raises(CheckpointError):
        load_tensors(path)
