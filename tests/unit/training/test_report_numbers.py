"""Who is a rival, and which of them is the best; constants beside predicted intents by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.test_train import SMALL_WORLD
from training.compare import Comparison, RowState, planned_rows
from training.data.synthetic import simulate
from training.report_intents import constant_intents, constants_to_observed
from training.report_numbers import best_rival, row_numbers
from training.rows import ROWS
from training.search import Search


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, SMALL_WORLD)
    return folder


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
    constants = constant_intents(world)
    assert set(constants) == {"uniform", "training_mean"}
    assert all(constant.sum() == pytest.approx(1) for constant in constants.values())
    observed = {"specific": {"n_requests": 3, "observed": constants["training_mean"].tolist()}, "broad": {}}
    found = constants_to_observed(constants, observed)
    assert set(found) == {"specific"}
    assert found["specific"]["training_mean"] == pytest.approx(0, abs=1e-9)
    assert found["specific"]["uniform"] > 1e-4
