"""A run becomes a bundle: complete, described, and current only after its gates."""

import json
import shutil
from pathlib import Path

import pytest

import models_export.export
from models_export.errors import ParityError
from models_export.export import ExportPlan, compare_bundle, export
from service.contract.bundle import Bundle, current_path, read_bundle
from service.contract.encoder import Encoder
from service.contract.errors import BundleError
from tests.parity.conftest import bundle, encoder, run, world

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
