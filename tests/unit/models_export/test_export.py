"""A run becomes a bundle: complete, described, and current only after its gates."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import models_export.export
import training.drift
from models_export.errors import ExportError, ParityError
from models_export.export import ExportPlan, compare_bundle, export
from service.contract.bundle import Bundle, current_path, read_bundle
from service.contract.encoder import Encoder
from service.contract.errors import BundleError
from tests.parity.conftest import bundle, encoder, run, world
from training.data.dataset import open_dataset, split_files
from training.data.request_files import read_requests, write_requests

__all__ = ["bundle", "encoder", "run", "world"]  # fixtures


def test_the_manifest_says_where_the_model_comes_from_and_what_was_proved(bundle: Bundle, encoder: Encoder) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["fingerprint"] == encoder.fingerprint
    assert manifest["model"]["model_name"] == "din"
    assert manifest["checks"]["parity"]["n_cases"] == 45
    assert manifest["checks"]["golden"]["n_cases"] >= 64
    assert manifest["graphs"]["exporter"] == "torch.onnx.export(dynamo=True)"
    assert manifest["index"]["recall"] > 0.95
    assert 0 < manifest["prior"] < 1
    assert set(manifest["data"]["windows"]) == {"train", "validation", "test"}
    assert manifest["history_rules"]["max_length"] == encoder.rules.max_length
    assert {"daian", "torch", "onnxruntime"} <= set(manifest["packages"])


def test_the_bundle_is_current_and_whole(bundle: Bundle) -> None:
    root = bundle.path.parent.parent
    assert current_path(root) == bundle.path
    assert read_bundle(bundle.path).open_encoder().fingerprint == bundle.manifest["fingerprint"]
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_parity_of_a_published_bundle_can_be_asked_again(bundle: Bundle, run: Path, world: Path) -> None:
    assert compare_bundle(run, world, bundle.path.parent.parent).n_cases == 45


def test_a_failed_gate_publishes_nothing(
    bundle: Bundle, run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bundles"
    shutil.copytree(bundle.path.parent.parent, root)

    def refuse(*_: object) -> None:
        raise ParityError("one behaviour, as_is, N=7: logits differ by 0.3")

    monkeypatch.setattr(models_export.export, "check_parity", refuse)
    with pytest.raises(ParityError):
        export(ExportPlan(run, world, root), tell=lambda _: None)
    assert current_path(root).name == bundle.version
    assert [path.name for path in (root / "daian").iterdir()] == [bundle.version]
    assert sorted(path.name for path in root.iterdir()) == ["current", "daian"]


def test_a_failed_gate_leaves_no_folder_that_it_made(
    run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ParityError("logits differ by 0.3")

    def folders_left() -> list[str]:
        with pytest.raises(ParityError):
            export(ExportPlan(run, world, tmp_path / "new" / "bundles"), tell=lambda _: None)
        return [path.name for path in tmp_path.iterdir()]

    monkeypatch.setattr(models_export.export, "_fill", refuse)
    assert folders_left() == []
    monkeypatch.setattr("training.data.whole_files.remove_empty", lambda _: None)
    assert folders_left() == ["new"]  # the saboteur: without a look back it stays


def test_without_promotion_the_pointer_stays(run: Path, world: Path, tmp_path: Path) -> None:
    made = export(ExportPlan(run, world, tmp_path, promote=False), tell=lambda _: None)
    assert read_bundle(made.path).version == made.version
    with pytest.raises(BundleError, match="current"):
        current_path(tmp_path)


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop, whose users' ids are spelt in another way in the latest days."""
    folder = tmp_path_factory.mktemp("shifted") / "data"
    shutil.copytree(world, folder)
    for path in split_files(folder, "test"):
        parts = list(read_requests(path))
        with write_requests(path, open_dataset(folder).schema) as file:
            for batch, clicks in parts:
                users = np.array([None if user is None else f"U-{user}" for user in batch.user["user"]], object)
                file.write(replace(batch, user={**batch.user, "user": users}), clicks)
    return folder


def test_days_that_are_as_ever_are_said_to_be(bundle: Bundle) -> None:
    drift = bundle.manifest["drift"]
    assert isinstance(drift, dict)
    assert (drift["split"], drift["above"], drift["drift_allowed"]) == ("test", [], False)
    assert drift["fields"]["user.user"]["unknown"] < drift["fields"]["user.user"]["unknown_limit"]


def test_shifted_days_are_refused_and_nothing_is_left(run: Path, shifted: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"user\.user: 9.\..% unknown, limit (?s:.*)--allow-drift"):
        export(ExportPlan(run, shifted, tmp_path / "bundles"), tell=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_without_the_limit_shifted_days_are_served(
    run: Path, shifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saboteur."""
    monkeypatch.setattr(training.drift, "UNKNOWN_LIMIT", 1.0)
    made = export(ExportPlan(run, shifted, tmp_path), tell=lambda _: None)
    assert made.manifest["drift"]["above"] == []  # type: ignore[index]


def test_shifted_days_may_be_allowed_and_the_manifest_says_so(run: Path, shifted: Path, tmp_path: Path) -> None:
    told: list[str] = []
    made = export(ExportPlan(run, shifted, tmp_path, allow_drift=True), tell=told.append)
    drift = read_bundle(made.path).manifest["drift"]
    assert isinstance(drift, dict)
    assert drift["drift_allowed"] is True
    assert [one.partition(":")[0] for one in drift["above"]] == ["user.user"]
    assert any("above their limits, allowed" in line for line in told)
