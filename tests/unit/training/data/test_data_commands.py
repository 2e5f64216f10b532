"""The data verbs of `daian`, called as a person calls them."""

import json
from pathlib import Path

import pytest
from cyclopts import App

from tests.unit.training.data.shop import ShopLogs, prepare_small
from training.data.commands import register_data
from training.data.dataset import open_dataset


def daian(*arguments: object) -> object:
    app = App("daian")
    register_data(app)
    return app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


def test_simulate_check_and_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--requests", 800, "--users", 40, "--items", 120, "--seed", 3)
    daian("data", "simulate", "--out", tmp_path / "d", *sizes)
    assert "simulated in" in capsys.readouterr().out
    assert open_dataset(tmp_path / "d").report["world"]["seed"] == 3
    assert daian("data", "check", tmp_path / "d") == 0
    assert "0 problems" in capsys.readouterr().out
    daian("data", "stats", tmp_path / "d", "--json")
    assert json.loads(capsys.readouterr().out)["train"]["requests"] == 600


def test_check_exits_1_when_something_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_small(tmp_path / "d")
    path = tmp_path / "d" / "train" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert daian("data", "check", tmp_path / "d", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert "00000.parquet" in found["problems"][0]
    assert found["n_problems"] == 1


def test_prepare_logs_and_its_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daian("data", "prepare", "logs", "--example")
    assert json.loads(capsys.readouterr().out)["impressions"]["clicked"] == "is_click"
    mapping = ShopLogs.random().write(tmp_path / "logs")
    daian("data", "prepare", "logs", "--mapping", mapping, "--out", tmp_path / "d")
    text = capsys.readouterr().out
    assert "test shop" in text
    assert "click rate" in text
    with pytest.raises(ValueError, match="--example"):
        daian("data", "prepare", "logs")


def test_join_writes_a_shard_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_small(tmp_path / "d")
    row = {"request_id": "new", "requested_at": 1_800_000_000_000, "user": {"user": "u1"}, "trigger": "i1"}
    (tmp_path / "log").write_text(json.dumps(row | {"candidates": ["i2", "i3"]}) + "\n")
    click = {"type": "click", "user": "u1", "item": "i3", "time": 1_800_000_001_000}
    (tmp_path / "clicks").write_text(json.dumps(click) + "\n" + json.dumps(click | {"time": 1_900_000_000_000}) + "\n")
    shard = tmp_path / "d" / "train" / "2027-01-15.parquet"
    logs = ("--requests", tmp_path / "log", "--clicks", tmp_path / "clicks")
    daian("data", "join", *logs, "--data", tmp_path / "d", "--out", shard)
    assert "joined_clicks 1" in capsys.readouterr().out
    assert shard.exists()


def test_embed_writes_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.csv").write_text("id,text\na,red shoe\nb,blue shoe\n")
    daian("embed", tmp_path / "items.csv", "--out", tmp_path / "v", "--encoder", "hashed-ngrams")
    assert "2 items" in capsys.readouterr().out
