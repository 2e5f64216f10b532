"""A bundle scores a split as its run does in PyTorch, and `evaluate_fully` compares the two."""

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from models_export.bundle_scores import score_bundle
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from tests.architecture.tree import ROOT
from training.baselines import LINES
from training.bootstrap import Resampling
from training.checkpoint import open_run
from training.data.dataset import open_catalogue, open_dataset
from training.evaluate import Exporter, best_line, evaluate, evaluate_fully
from training.evaluation_report import evaluation_text, write_evaluation_report
from training.measures import Plan
from training.scores import check_same_split, load_scores, score_batches
from training.train import evaluation_batches

DAY_MS = 86_400_000
PLAN = Plan(Resampling(n=60, n_auc=5))


def test_a_bundle_scores_as_its_run(bundle: Bundle, run: Path, world: Path) -> None:
    opened = open_run(run, open_catalogue(world))
    batches = evaluation_batches(world, "test", opened.encoder, opened.config)
    expected = score_batches(opened.model, batches.epoch()).in_order()
    name, found = score_bundle(bundle.path, world, "test")
    assert name == f"{bundle.name}/{bundle.version}"
    check_same_split(expected, found)
    assert np.abs(expected.logits - found.logits).max() < 1e-4
    assert np.array_equal(expected.intent_label, found.intent_label)


def test_the_folder_of_bundles_means_the_current_one(bundle: Bundle, world: Path, tmp_path: Path) -> None:
    name, _ = score_bundle(bundle.path.parent.parent, world, "test")
    assert name == f"{bundle.name}/{bundle.version}"
    with pytest.raises(BundleError):
        score_bundle(tmp_path, world, "test")


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be written into."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_run_is_not_distinguishable_from_its_own_bundle(own_run: Path, bundle: Bundle, world: Path) -> None:
    found = evaluate_fully(own_run, world, "test", bundle.path, Exporter(score_bundle), plan=PLAN)
    live, line = found.tests
    assert live["against"] == f"{bundle.name}/{bundle.version}"
    assert live["difference"] == pytest.approx(0, abs=1e-4)
    assert "not distinguishable" in live["sentence"]
    best = best_line(found.numbers)
    assert best is not None
    assert line["against"] == LINES[best]
    assert " is worse than " in line["sentence"], "its weights were drawn, not learnt"
    assert list(found.measures) == ["din_demo", live["against"]]
    assert found.warnings == []
    assert found.notes == [
        f"The bundle was trained on the same data set, {open_dataset(world).name}, whose test split it has not seen."
    ]
    assert "see the warning" not in live["sentence"]
    shares = [row["oracle_shares"]["attractiveness"]["auc"]["mean"] for row in found.behind["rows"].values()]
    assert shares[0] == pytest.approx(shares[1], abs=1e-3)
    own, its = (row["random_trigger"]["mean"] for row in found.behind["rows"].values())
    assert own == pytest.approx(its, abs=1e-3), "the same permutation for both"
    assert own != found.numbers["din_demo"]["gauc_request"]


def test_a_bundle_that_knows_the_days_is_warned_of(own_run: Path, bundle: Bundle, world: Path, tmp_path: Path) -> None:
    """The same requests and the same bundle as above, but the data set says that they were a day earlier."""
    earlier = Path(shutil.copytree(world, tmp_path / "earlier"))
    saved = json.loads((earlier / "dataset.json").read_text())
    saved["windows"] = {split: [end - DAY_MS for end in window] for split, window in saved["windows"].items()}
    (earlier / "dataset.json").write_text(json.dumps(saved))
    found = evaluate_fully(own_run, earlier, "test", bundle.path, Exporter(score_bundle), "auc_per_request", PLAN)
    (warning,) = found.warnings
    assert "trained on days that it is tested on" in warning
    assert found.notes == []
    live, line = found.tests
    assert "see the warning" in live["sentence"]
    assert "see the warning" not in line["sentence"]
    assert {test["metric"] for test in found.tests} == {"auc_per_request"}
    text = evaluation_text(found)
    assert f"Warning: {warning}" in text
    assert "Judged by AUC per request." in text


def test_an_evaluation_stays_in_the_run_folder(own_run: Path, world: Path) -> None:
    found = evaluate_fully(own_run, world, "test", plan=PLAN)
    assert found.numbers == evaluate(own_run, world, "test")
    assert json.loads((own_run / "metrics.json").read_text())["test"] == found.numbers
    saved = json.loads((own_run / "measures_test.json").read_text())
    assert saved["measures"]["din_demo"]["ranking"]["auc"] == found.measures["din_demo"]["ranking"]["auc"]
    assert saved["tests"] == found.tests
    scored = load_scores(own_run / "scores_test.npz")
    assert (np.diff(scored.request) >= 0).all()
    value = found.measures["din_demo"]["ranking"]["gauc_request"]["value"]
    assert value == pytest.approx(found.numbers["din_demo"]["gauc_request"])


def test_other_data_is_said_and_not_written(own_run: Path, world: Path) -> None:
    config = json.loads((own_run / "config.json").read_text())
    (own_run / "config.json").write_text(json.dumps({**config, "data_sha256": "0" * 64}))
    found = evaluate_fully(own_run, world, "test", plan=PLAN)
    assert len(found.warnings) == 1
    assert "not the data set" in found.warnings[0]
    evaluate(own_run, world, "test")
    written = {path.name for path in own_run.iterdir()}
    assert not written & {"metrics.json", "measures_test.json", "scores_test.npz"}
    assert found.warnings[0] in evaluation_text(found)


def test_a_bundle_needs_someone_who_scores_it(own_run: Path, bundle: Bundle, world: Path) -> None:
    with pytest.raises(ValueError, match="score_bundle"):
        evaluate_fully(own_run, world, "test", bundle.path)


def test_the_text_holds_every_part(own_run: Path, world: Path, tmp_path: Path) -> None:
    found = evaluate_fully(own_run, world, "test", plan=PLAN)
    write_evaluation_report(found, tmp_path / "deep" / "report.md")
    text = (tmp_path / "deep" / "report.md").read_text()
    for word in ("NDCG@10", "expected calibration error", "cold", "7+", "similarity level", "share in the trigger's"):
        assert word in text
    assert found.tests[0]["sentence"] in text
    assert "nan" not in text.lower().replace("not distinguishable", "")
    for word in ("Under the trigger of another request", "Against the oracle", "share of foreseeable", "Not measured"):
        assert word in text
    assert "JS of the means" not in text, "DIN predicts no intent"
    relative = found.measures["din_demo"]["ranking"]["rela_impr_gauc_request"]
    assert relative["value"] == pytest.approx(found.numbers["din_demo"]["rela_impr_gauc_request"])
    assert "RelaImpr of GAUC per request over the click rate" in text
    assert min(found.cost["parameters"].values()) > 0
    assert f"{found.cost['parameters']['tables']:,} of them in embedding tables" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 50
    assert all(line.endswith("|") for line in tables)


def test_the_entry_point_names_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert (
        '[project.entry-points."daian.bundle_scores"]\nmodels_export = "models_export.bundle_scores:score_bundle"'
        in text
    )
    entry = EntryPoint("models_export", "models_export.bundle_scores:score_bundle", "daian.bundle_scores")
    assert entry.load() is score_bundle
