"""Who is a rival, and which of them is the best; constants beside predicted intents by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.rules import SimilarityScale
from tests.unit.training.test_train import SMALL_WORLD
from training.checkpoint import save_run_start
from training.compare import Comparison, RowState, encoder_folder, planned_rows
from training.data.dataset import split_files
from training.data.fit_encoder import fit_encoder
from training.data.labels import make_labels
from training.data.request_files import read_requests
from training.data.synthetic import simulate
from training.recipes import TABLES
from training.report_intents import constant_intents, constants_to_observed
from training.report_numbers import _add_relative, _add_truth, best_rival, row_numbers, tried
from training.report_sections import searched
from training.rows import ROWS
from training.search import Search


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, SMALL_WORLD)
    return folder


@pytest.mark.parametrize(("base", "expected"), [(0.6, 100.0), (0.5, np.nan), (0.45, np.nan)])
def test_rela_impr_over_chance_or_less_says_nothing(base: float, expected: float) -> None:
    rows = {name: {"numbers": {"auc": {"mean": mean}}} for name, mean in (("din", base), ("daian", 0.7))}
    found: dict[str, Any] = {"rows": rows, "lines": {}, "strongest_line": None, "judged_by": "auc"}
    _add_relative(found, {})
    assert found["rows"]["daian"]["rela_impr"] == pytest.approx(expected, nan_ok=True)


def test_ablations_have_a_parent_and_only_ours_are_no_rivals(world: Path, tmp_path: Path) -> None:
    asked = Comparison("small", world, tmp_path, tuple(ROWS), levels=(3,))
    rows = {row.name: row_numbers(RowState(row, Search((0.1,), 1)), "gauc_request") for row in planned_rows(asked)}
    ablations = {name: row for name, row in rows.items() if row["group"] == "ablation"}
    assert all(row["ablation_of"] in ROWS for row in ablations.values())
    assert {name for name, row in ablations.items() if row["is_rival"]} >= {"dihn_scalar", "dian_mean"}
    assert not any(row["is_rival"] for name, row in rows.items() if name.startswith("daian"))


def test_the_best_rival_is_the_best_on_validation_not_on_test() -> None:
    def row(validation: float, test: float, is_rival: bool = True) -> dict[str, Any]:
        numbers = {"gauc_request": {"mean": test}}
        return {"is_rival": is_rival, "numbers": numbers, "validation": {"mean": validation}}

    rows = {"lucky": row(0.60, 0.70), "best": row(0.65, 0.64), "daian": row(0.8, 0.8, False), "old": row(np.nan, 0.9)}
    assert best_rival({**rows, "failed": {"is_rival": True}}) == "best"
    assert best_rival({}) is None


def test_constants_are_shares_and_are_told_from_what_was_observed(world: Path) -> None:
    constants = constant_intents(world, SimilarityScale(n_levels=6))
    assert set(constants) == {"uniform", "training_mean"}
    assert all(constant.sum() == pytest.approx(1) for constant in constants.values())
    observed = {"specific": {"n_requests": 3, "observed": constants["training_mean"].tolist()}, "broad": {}}
    found = constants_to_observed(constants, observed)
    assert set(found) == {"specific"}
    assert found["specific"]["training_mean"] == pytest.approx(0, abs=1e-9)
    assert found["specific"]["uniform"] > 1e-4


def test_constants_have_the_levels_of_the_comparisons_encoder(world: Path, tmp_path: Path) -> None:
    """A shop leaves its range to be fitted: over other edges the mean of training would be a constant of nothing."""
    shop = shutil.copytree(world, tmp_path / "shop")
    about = json.loads((shop / "dataset.json").read_text())
    (shop / "dataset.json").write_text(json.dumps({**about, "similarity_range": None}))
    asked, own = Comparison("small", shop, tmp_path / "out", ("daian",)), fit_encoder(shop)
    own.save(encoder_folder(asked, None))
    read = [requests for path in split_files(shop, "train") for requests in read_requests(path)]
    labels = [make_labels(*requests, own.encode(requests[0]).candidate_similarity, own.scale) for requests in read]
    mean = np.concatenate([label.intent[label.has_intent] for label in labels]).mean(axis=0)
    found = {"rows": {"daian": {"intent": {"all": {"n_requests": 1, "observed": mean.tolist()}}}}}
    _add_truth(found, asked, {})
    assert found["rows"]["daian"]["constants_to_observed"]["all"]["training_mean"] == pytest.approx(0, abs=1e-9)
    by_other_edges = constant_intents(shop, SimilarityScale(n_levels=6))["training_mean"]
    assert np.abs(by_other_edges - mean).max() > 0.02, "the twin: the edges of [0, 1] give another mean"


def test_learning_rates_are_those_that_the_runs_recorded_not_those_of_todays_table(world: Path, tmp_path: Path) -> None:
    (row,) = planned_rows(Comparison("small", world, tmp_path, ("din",)))
    encoder, rates = fit_encoder(world), (0.123, 0.456)
    assert not set(rates) & set(TABLES["small"].learning_rates)
    for at, rate in enumerate(rates):
        config = replace(row.config, optim=replace(row.config.optim, learning_rate=rate))
        save_run_start(tmp_path / f"trial-{at}", config, encoder, "")
    assert tried(tmp_path, {"learning_rate": 0.123}) == [0.123, 0.456]
    assert tried(tmp_path / "trial-0", {"learning_rate": 0.789}) == [0.789], "no trial: that of the seeds"
    assert tried(tmp_path / "trial-0", {"learning_rate": None}) == []


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ([[0.1, 0.2], [0.1, 0.2]], "Every row: 2 settings tried on validation, learning rates of 0.1, 0.2"),
        ([[0.1], [0.1]], "No search: learning rates of 0.1"),
        ([[0.1], [0.1, 0.2]], "Rows were searched differently: 1 to 2 settings"),
        ([], "No search: learning rates of unknown"),
    ],
)
def test_what_was_searched_is_said(tried: list[list[float]], said: str) -> None:
    assert searched(tried).startswith(said)
