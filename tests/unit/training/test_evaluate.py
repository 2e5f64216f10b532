"""What is written and read back, and when a relative improvement means something. Runs are in test_train."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import DaianError
from training.evaluate import add_rela_impr, best_line, judge_of, lines_of, saved_numbers
from training.evaluate_inside import NO_EXPORTER, latency
from training.recipes import TABLES
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


def test_a_run_is_judged_as_its_table_is() -> None:
    assert judge_of("wikispeedia/daian") == TABLES["wikispeedia"].judged_by == "auc_per_request"
    assert judge_of("small/daian") == "gauc_request"
    assert judge_of("daian_demo") == "gauc_request"


def test_the_best_line_is_the_best_by_what_is_judged_by() -> None:
    numbers = {
        "popularity": {"gauc_request": 0.7, "auc_per_request": 0.6},
        "click_rate": {"gauc_request": 0.6, "auc_per_request": 0.7},
    }
    assert best_line(numbers) == "popularity"
    assert best_line(numbers, "auc_per_request") == "click_rate"


def test_latency_is_what_the_exporter_measured_or_why_there_is_none() -> None:
    def timing(runs: Mapping[str, Path], data: Path, say: Callable[[str], None]) -> dict[str, Any]:
        assert data == Path("shop")
        say("exporting")
        return {"n_candidates": 100, "rows": {name: {"median_ms": 1.5} for name in runs}}

    def refusing(runs: Mapping[str, Path], data: Path, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: ARG001
        raise DaianError("a loop over requests")

    assert latency(Path("run"), Path("shop"), timing) == {"n_candidates": 100, "median_ms": 1.5}
    assert latency(Path("run"), Path("shop"), refusing) == {"missing": "a loop over requests"}
    assert latency(Path("run"), Path("shop"), None) == {"missing": NO_EXPORTER}
    assert "missing" in latency(Path("run"), Path("shop"), lambda *_: {"rows": {}})
