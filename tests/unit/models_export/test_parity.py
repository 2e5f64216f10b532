"""The comparison itself: it passes what is equal, and names the case and the difference of what is not."""

from pathlib import Path

import numpy as np
import pytest
import torch

import models_export.parity
from models_export.errors import ParityError
from models_export.graph import example_inputs, export_graphs
from models_export.parity import (
    TOLERANCE,
    ExportedModel,
    ParityReport,
    check_exportable,
    compare,
    score_in_torch,
)
from tests.unit.models_export.two_phases import SIZES, Faults, TwoPhases
from training.models import build_model
from training.models.wdl import WdlConfig


@pytest.fixture(scope="module")
def model() -> TwoPhases:
    torch.manual_seed(1)
    return TwoPhases().eval()


@pytest.fixture(scope="module")
def folder(model: TwoPhases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs")
    export_graphs(model, SIZES, {}).save(path)
    return path


def test_equal_scores_pass_and_the_report_says_how_equal(model: TwoPhases, folder: Path) -> None:
    cases = [(f"N={n}", example_inputs(SIZES, 3, 1, n).map(torch.Tensor.numpy)) for n in (1, 8)]
    report = compare(model, ExportedModel(folder), iter(cases))
    assert report.n_cases == 2
    assert 0 <= report.max_difference <= TOLERANCE
    assert report.to_dict()["tolerance"] == TOLERANCE


def test_other_weights_are_named_by_case_and_size(model: TwoPhases, folder: Path) -> None:
    torch.manual_seed(2)
    other = TwoPhases().eval()
    case = ("the usual", example_inputs(SIZES, 3, 1, 4).map(torch.Tensor.numpy))
    with pytest.raises(ParityError, match=r"the usual: logits differ by [0-9.e-]+ .*allowed is 1e-05"):
        compare(other, ExportedModel(folder), iter([case]))
    assert compare(model, ExportedModel(folder), iter([case])).n_cases == 1


def test_no_case_is_no_proof(model: TwoPhases, folder: Path) -> None:
    with pytest.raises(ParityError, match="without a single case"):
        compare(model, ExportedModel(folder), iter([]))


def test_tables_stay_on_disk(folder: Path) -> None:
    exported = ExportedModel(folder)
    assert exported.tables
    assert all(isinstance(table, np.memmap) for table in exported.tables.values())


def test_a_mask_of_infinity_is_refused_before_the_training() -> None:
    """An empty history makes its softmax NaN (in both): a new visitor would get no page."""
    with pytest.raises(ParityError, match="empty history: logits of PyTorch are not finite"):
        check_exportable(TwoPhases(Faults(infinite_mask=True)), SIZES)


def test_the_dry_run_leaves_model_and_chance_alone(model: TwoPhases) -> None:
    inputs = example_inputs(SIZES, 3, 1, 4).map(torch.Tensor.numpy)
    before, state = score_in_torch(model, inputs).logits, torch.get_rng_state()
    assert check_exportable(model, SIZES).max_difference <= TOLERANCE
    np.testing.assert_array_equal(score_in_torch(model, inputs).logits, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_dry_run_copies_no_large_table(model: TwoPhases, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def looked_at(trial: TwoPhases, *_: object) -> ParityReport:
        seen.append(trial.items[0].weight.shape[0])
        return ParityReport(1, 0.0, "")

    monkeypatch.setattr(models_export.parity, "check_as_it_stands", looked_at)
    check_exportable(model, SIZES)
    assert seen == [100]
    assert model.items[0].weight.shape[0] == 600


def test_the_dry_run_keeps_tables_of_hashes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = build_model(WdlConfig(top=(8, 4)), SIZES)
    assert check_exportable(wide, SIZES).max_difference <= TOLERANCE
    monkeypatch.setattr(models_export.parity, "HashedCross", type(None))  # the saboteur: shortened like ids
    with pytest.raises(IndexError):
        check_exportable(wide, SIZES)
