"""What a run has cost, from what its folder keeps; what nobody wrote down is said and not made up."""

import json
from pathlib import Path

import pytest
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from training.evaluate_cost import CURVES, cost_of, training_time


def curves(folder: Path, *times: float) -> Path:
    """One process's points at these times of day; its file."""
    before = set((folder / CURVES).glob("events.*"))
    writer = SummaryWriter(str(folder / CURVES), filename_suffix=f".{len(before)}")
    for step, time in enumerate(times):
        writer.add_scalar("joint/loss", 0.5, step, walltime=time)
    writer.close()
    (file,) = set((folder / CURVES).glob("events.*")) - before
    return file


def test_parameters_are_counted_apart_by_table_and_network(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    assert cost_of(tmp_path, model)["parameters"] == {"tables": 40, "network": 15}


def test_a_run_of_a_comparison_has_measured_its_time(tmp_path: Path) -> None:
    curves(tmp_path, 0.0, 1e6)
    measured = {"seconds": 32.5, "cpu_seconds": 26.5, "test": {}}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    assert training_time(tmp_path) == {"seconds": 32.5, "cpu_seconds": 26.5}
    (tmp_path / "measured.json").write_text(json.dumps({"seconds": None, "cpu_seconds": None}))
    assert "interrupted" in training_time(tmp_path)["missing"]


def test_curves_tell_the_time_of_every_sitting_and_not_of_the_pause_between(tmp_path: Path) -> None:
    curves(tmp_path, 1000.0, 1010.0, 1030.0)
    curves(tmp_path, 9000.0, 9005.0)
    assert training_time(tmp_path) == {"seconds": pytest.approx(35.0), "sittings": 2}


def test_what_a_killed_process_left_half_written_is_passed_over(tmp_path: Path) -> None:
    file = curves(tmp_path, 1000.0, 1010.0, 1030.0)
    file.write_bytes(file.read_bytes()[:-7])
    assert training_time(tmp_path) == {"seconds": pytest.approx(10.0), "sittings": 1}


def test_a_folder_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    assert "neither measured.json nor curves" in training_time(tmp_path)["missing"]
    curves(tmp_path, 1000.0)
    assert "missing" in training_time(tmp_path), "one point is no span"
