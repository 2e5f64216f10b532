"""A small simulated world and an encoder fitted on it, shared by all parity tests of a session."""

from pathlib import Path

import pytest
import torch

from service.contract.bundle import Bundle
from service.contract.encoder import Encoder
from tests.parity.weights import with_large_weights
from training.data.fit_encoder import fit_encoder
from training.data.synthetic import World, simulate

WORLD = World(n_requests=1_200, n_users=120, n_items=300, seed=5)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    simulate(folder, WORLD)
    return folder


@pytest.fixture(scope="session")
def encoder(world: Path) -> Encoder:
    return fit_encoder(world)


@pytest.fixture(scope="session")
def run(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small DIN, as training leaves it; its weights are drawn instead of learnt."""
    from training.checkpoint import save_run_start, save_weights
    from training.models import build_model
    from training.recipes import din_demo

    folder = tmp_path_factory.mktemp("runs") / "din"
    save_run_start(folder, din_demo(), encoder, data_sha256="")
    torch.manual_seed(3)
    model = build_model(din_demo().model, encoder.sizes)
    save_weights(folder, with_large_weights(model))
    return folder


@pytest.fixture(scope="session")
def bundle(run: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of that run, as `daian export` publishes it. Tests copy it before they touch it."""
    from models_export.export import ExportPlan, export

    return export(ExportPlan(run, world, tmp_path_factory.mktemp("bundles")), tell=lambda _: None)
