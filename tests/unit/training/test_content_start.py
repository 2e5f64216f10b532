"""Item ids that start from content: near where contents are near, small and random where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.contract.encoder import Encoder
from training.content_start import components, encoded_ids, start_from_content
from training.data.fit_encoder import fit_encoder
from training.data.synthetic import World, simulate
from training.layers.embedding import BehaviourTables
from training.models import build_model
from training.models.daian import DaianConfig


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder: Path = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, World(n_requests=400, n_users=50, n_items=120, seed=2))
    return fit_encoder(folder)


def test_components_keep_the_geometry_that_they_can(encoder: Encoder) -> None:
    rows = np.flatnonzero(encoder.catalogue.has_vector)
    found = components(encoder.catalogue, rows, encoder.catalogue.dimensions)
    vectors = encoder.catalogue.codes[rows] / encoder.catalogue.norms[rows][:, None]
    centred = vectors - vectors.mean(0)
    assert np.allclose(found @ found.T, centred @ centred.T, atol=1e-4)
    assert (np.diff(found.var(axis=0)) <= 1e-6).all()  # the leading ones first


def test_every_network_starts_from_content_and_items_without_a_vector_stay_weak(encoder: Encoder) -> None:
    torch.manual_seed(0)
    model = build_model(DaianConfig(), encoder.sizes)
    start_from_content(model, encoder, 0.2)
    rows = np.arange(1, encoder.catalogue.n_items + 1)
    ids, has_vector = encoded_ids(encoder, rows), encoder.catalogue.has_vector[rows]
    tables = [module.item_ids.weight for module in model.modules() if isinstance(module, BehaviourTables)]
    assert len(tables) == 2  # UIM has its own
    for weight in tables:
        told = weight[ids[has_vector & (ids > 1)]]
        assert told.std().item() == pytest.approx(0.2, rel=0.01)
        assert weight[0].abs().max() == 0
        assert weight[1].abs().max() < 0.06
        if (~has_vector & (ids > 1)).any():
            assert weight[ids[~has_vector & (ids > 1)]].abs().max() < 0.06
