"""A model that holds counts of the training days (POSO) takes them into its graph: whole numbers, one an item."""

from pathlib import Path

import pytest
import torch

import models_export.parity
from models_export.errors import ParityError
from models_export.graph import export_graphs
from models_export.parity import TOLERANCE, check_parity
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from tests.parity.weights import with_large_weights
from training.data.dataset import split_files
from training.data.request_files import read_requests
from training.facts import training_facts
from training.models.poso import Poso, PosoConfig, count_impressions


def test_the_counts_are_in_the_graph(
    world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Poso(PosoConfig(top=(32, 16)), encoder.sizes)
    with_large_weights(model)
    count_impressions(model, "clicks", training_facts(world, encoder))
    assert len(torch.unique(model.item_bucket)) > 3
    export_graphs(model, encoder.sizes, {}).save(tmp_path)
    requests: RequestBatch = next(iter(read_requests(split_files(world, "validation")[0])))[0]
    assert check_parity(model, tmp_path, encoder, requests).max_difference <= TOLERANCE
    # the saboteur: other counts than those exported are found, and only by the comparison
    model.item_bucket.fill_(1)
    with pytest.raises(ParityError, match="logits differ"):
        check_parity(model, tmp_path, encoder, requests)
    monkeypatch.setattr(models_export.parity, "TOLERANCE", float("inf"))
    assert check_parity(model, tmp_path, encoder, requests).max_difference > TOLERANCE
