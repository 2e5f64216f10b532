"""Every model of the registry gives in ONNX Runtime what it gives in PyTorch, over all odd requests."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

import models_export.parity
from models_export.errors import ParityError
from models_export.graph import export_graphs
from models_export.parity import TOLERANCE, ExportedModel, check_parity
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.file_guard import check_graph
from tests.parity.weights import with_large_weights
from training.data.dataset import split_files
from training.data.request_files import read_requests
from training.models import MODELS, build_model


@pytest.fixture(scope="module")
def requests(world: Path) -> RequestBatch:
    batch, _ = next(iter(read_requests(split_files(world, "validation")[0])))
    return batch


@pytest.fixture(scope="module", params=sorted(MODELS))
def exported(
    request: pytest.FixtureRequest, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """A model of the registry at its paper's sizes and the folder of its graphs."""
    model = with_large_weights(build_model(MODELS[request.param].config(), encoder.sizes))
    folder = tmp_path_factory.mktemp(request.param)
    export_graphs(model, encoder.sizes, {}, min_table_bytes=1).save(folder)
    return model, folder


def test_same_logits_for_every_odd_request(
    exported: tuple[nn.Module, Path], encoder: Encoder, requests: RequestBatch
) -> None:
    model, folder = exported
    report = check_parity(model, folder, encoder, requests)
    assert report.n_cases == 3 * 5 * 3
    assert report.max_difference <= TOLERANCE


def test_the_service_would_let_its_graphs_in(exported: tuple[nn.Module, Path]) -> None:
    _, folder = exported
    for name in ("request.onnx", "candidates.onnx"):
        check_graph(name, (folder / name).read_bytes())


def test_a_changed_table_is_found(
    exported: tuple[nn.Module, Path], encoder: Encoder, requests: RequestBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = exported
    path = next(path for path in sorted((folder / "tables").glob("*.npy")) if "items" in path.name)
    table = np.load(path)
    np.save(path, table + np.float32(1e-3))
    try:
        with pytest.raises(ParityError, match=r"behaviours, .*N=.*logits differ by"):
            check_parity(model, folder, encoder, requests)
        # the saboteur: without the comparison the changed model passes
        monkeypatch.setattr(models_export.parity, "TOLERANCE", np.inf)
        assert check_parity(model, folder, encoder, requests).max_difference > TOLERANCE
    finally:
        np.save(path, table)


def test_scores_do_not_depend_on_the_chunk(
    exported: tuple[nn.Module, Path], encoder: Encoder, requests: RequestBatch
) -> None:
    """Large lists are scored in parts against the clock; a candidate's score is its own."""
    _, folder = exported
    runner = ExportedModel(folder)
    row = requests.take(np.array([0])).to_rows()[0]
    inputs = encoder.encode(RequestBatch.from_rows([row]))
    whole = runner.score(inputs).logits
    parts = [
        runner.score(
            inputs._replace(
                candidate_fields=inputs.candidate_fields[i : i + 1],
                candidate_similarity=inputs.candidate_similarity[i : i + 1],
                candidate_request=inputs.candidate_request[i : i + 1],
            )
        ).logits
        for i in range(len(whole))
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=TOLERANCE)
