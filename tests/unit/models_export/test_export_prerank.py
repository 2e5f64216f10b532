"""A bundle with a pre-ranker: TARQ-lite in its part, through the same gates, over one encoder; served as exported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models_export.export
from models_export.errors import ExportError
from models_export.export import PRERANK_FOLDER, ExportPlan, compare_bundle, export
from models_export.graph import STATE_PREFIX
from models_export.parity import TOLERANCE, ExportedModel, score_in_torch
from service import prerank
from service.contract.bundle import Bundle
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.prerank import PrerankPlan
from service.runtime import open_preranker
from tests.parity.conftest import encoder, run, world
from tests.parity.weights import with_large_weights
from training.checkpoint import open_run, save_run_start, save_weights
from training.data.dataset import open_catalogue, split_files
from training.data.request_files import read_requests
from training.models import build_model
from training.recipes import row_config

__all__ = ["encoder", "run", "world"]  # fixtures


@pytest.fixture(scope="module")
def tarq_run(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of TARQ-lite, as training leaves it; its weights are drawn instead of learnt."""
    folder, config = tmp_path_factory.mktemp("runs") / "tarq", row_config("small", "tarq_lite")
    save_run_start(folder, config, encoder, data_sha256="")
    torch.manual_seed(3)
    save_weights(folder, with_large_weights(build_model(config.model, encoder.sizes)))
    return folder


@pytest.fixture(scope="module")
def both(run: Path, tarq_run: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    plan = ExportPlan(run, world, tmp_path_factory.mktemp("bundles"), prerank=tarq_run)
    return export(plan, tell=lambda _: None)


def test_the_manifest_says_what_it_is_and_what_was_proved(both: Bundle) -> None:
    made = json.loads((both.path / "manifest.json").read_text(encoding="utf-8"))
    assert made["model"]["model_name"] == "din"
    assert made["prerank"]["model"]["model_name"] == "tarq_lite"
    assert made["prerank"]["checks"]["parity"]["n_cases"] == 45
    assert made["prerank"]["checks"]["parity"]["max_difference"] <= TOLERANCE
    assert made["prerank"]["checks"]["golden"]["n_cases"] >= 64
    assert f"{PRERANK_FOLDER}/" == prerank.FOLDER
    inside = {name for name in both.files if name.startswith(prerank.FOLDER)}
    assert {"prerank/request.onnx", "prerank/candidates.onnx", "prerank/golden.jsonl"} <= inside
    assert not any("teacher" in name for name in both.files)


def test_the_request_graph_makes_the_table_and_the_candidate_graph_reads_no_history(both: Bundle) -> None:
    graphs = json.loads((both.path / "manifest.json").read_text(encoding="utf-8"))["prerank"]["graphs"]
    made = {one["name"] for one in graphs["request"]["outputs"]}
    assert made == {f"{STATE_PREFIX}code_table", f"{STATE_PREFIX}top"}
    read = {one["name"] for one in graphs["candidates"]["inputs"]}
    assert not [name for name in read if name.startswith("history")]
    assert f"{STATE_PREFIX}code_table" in read


def test_served_it_chooses_as_pytorch_would(both: Bundle, tarq_run: Path, world: Path, encoder: Encoder) -> None:
    model = open_run(tarq_run, open_catalogue(world)).model
    preranker = open_preranker(both, encoder, PrerankPlan(200, 20), chunk=64, ort_threads=1)
    batch, _ = next(iter(read_requests(split_files(world, "validation")[0])))
    asked = encoder.catalogue.ids(np.arange(1, 201))
    inputs = encoder.encode(RequestBatch.from_rows([{**batch.take(np.array([0])).to_rows()[0], "candidates": asked}]))
    wanted = score_in_torch(model, inputs).logits
    found = ExportedModel(both.path / PRERANK_FOLDER).score(inputs).logits
    assert np.abs(found - wanted).max() <= TOLERANCE
    best = preranker.best(inputs, 20, Deadline.after_ms(10_000))
    assert best is not None
    assert wanted[best].min() >= np.sort(wanted)[-20] - TOLERANCE


def test_parity_of_either_run_can_be_asked_again(both: Bundle, run: Path, tarq_run: Path, world: Path) -> None:
    assert compare_bundle(tarq_run, world, both.path).n_cases == 45
    assert compare_bundle(run, world, both.path).n_cases == 45


def test_another_encoder_is_refused_and_nothing_published(
    run: Path, tarq_run: Path, world: Path, encoder: Encoder, tmp_path: Path
) -> None:
    stranger = strange_run(tarq_run, encoder, tmp_path / "stranger")
    with pytest.raises(ExportError, match=r"was trained with encoder .* train the pre-ranker on the data set"):
        export(ExportPlan(run, world, tmp_path / "bundles", prerank=stranger), tell=lambda _: None)
    assert not (tmp_path / "bundles").exists()


def test_without_the_comparison_it_would_be_exported(
    run: Path, tarq_run: Path, world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = strange_run(tarq_run, encoder, tmp_path / "stranger")
    unchecked = lambda folder, run, _: open_run(folder, run.encoder.catalogue)  # noqa: E731
    monkeypatch.setattr(models_export.export, "_open_preranker", unchecked)

    def begun(*_: object) -> None:
        raise RuntimeError("the export began")

    monkeypatch.setattr(models_export.export, "_fill", begun)
    with pytest.raises(RuntimeError, match="the export began"):
        export(ExportPlan(run, world, tmp_path / "bundles", prerank=stranger), tell=lambda _: None)


def strange_run(tarq_run: Path, encoder: Encoder, folder: Path) -> Path:
    """The same run, over an encoder with another history rule."""
    rules = replace(encoder.rules, related_threshold=encoder.rules.related_threshold + 0.05)
    other = Encoder(encoder.schema, encoder._vocabularies, rules, encoder.scale, encoder.catalogue)
    save_run_start(folder, row_config("small", "tarq_lite"), other, data_sha256="")
    shutil.copy(tarq_run / "weights.pt", folder / "weights.pt")
    return folder
