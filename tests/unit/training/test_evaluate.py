"""What is written and read back, and when a relative improvement means something. Runs are in test_train."""

import json
import math
from pathlib import Path

import pytest

from training.evaluate import add_rela_impr, lines_of, saved_numbers
from training.train import write_metrics


def test_rela_impr_is_over_the_click_rates_gauc() -> None:
    numbers = {"m": {"gauc_request": 0.75}, "click_rate": {"gauc_request": 0.625}}
    add_rela_impr(numbers)
    assert numbers["m"]["rela_impr_gauc_request"] == pytest.approx(100.0)
    assert numbers["click_rate"]["rela_impr_gauc_request"] == pytest.approx(0.0)


@pytest.mark.parametrize("base", [0.5, 0.4, math.nan])
def test_there_is_none_over_chance_or_worse(base: float) -> None:
    numbers = {"m": {"gauc_request": 0.75}, "click_rate": {"gauc_request": base}}
    add_rela_impr(numbers)
    assert all(set(found) == {"gauc_request"} for found in numbers.values())


def refuse(word: str) -> float:
    raise AssertionError(f"{word} is no JSON")


def test_metrics_are_json_and_come_back_as_they_were(tmp_path: Path) -> None:
    numbers = {"m": {"auc": 0.7, "gauc_user": math.nan}, "popularity": {"auc": 0.5}}
    write_metrics(tmp_path, "validation", {"auc": math.nan})
    write_metrics(tmp_path, "test", numbers)
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse)["test"]["m"] == {"auc": 0.7, "gauc_user": None}
    saved = saved_numbers(tmp_path, "test")
    assert saved is not None
    assert saved["m"]["auc"] == 0.7
    assert math.isnan(saved["m"]["gauc_user"])
    assert lines_of(saved) == {"popularity": {"auc": 0.5}}


def test_an_infinite_number_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_metrics(tmp_path, "test", {"log_loss": math.inf})
    assert not (tmp_path / "metrics.json").exists()


def test_numbers_without_todays_lines_are_measured_again(tmp_path: Path) -> None:
    assert saved_numbers(tmp_path, "test") is None
    write_metrics(tmp_path, "test", {"m": {"auc": 0.7}, "cosine_random": {"auc": 0.6}})
    assert saved_numbers(tmp_path, "test") is None
