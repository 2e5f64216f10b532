"""One row per pair is the same model, and the scene is one in which a difference would show."""

import numpy as np
import pytest
import torch

from benchmarks.bundles import drawn_model
from benchmarks.scene import Scene
from benchmarks.tiled import GIVEN, TiledModel, one_candidate_a_request, tiled_inputs
from models_export.parity import score_in_torch
from service.contract.encoder import ModelInputs
from training.layers.ragged import CandidateRows

NOW_MS = 1_790_000_000_000
N = 9


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(n_items=800, n_users=20)


@pytest.fixture(scope="module")
def inputs(scene: Scene) -> ModelInputs:
    return scene.encoder.encode(scene.batch([3], N, NOW_MS))


def tiled_logits(model: torch.nn.Module, inputs: ModelInputs) -> np.ndarray:
    given = tiled_inputs(inputs)
    with torch.no_grad():
        return TiledModel(model)(*(torch.from_numpy(given[name]) for name in GIVEN)).numpy()


@pytest.mark.parametrize("name", ["din", "daian"])
def test_tiled_scores_are_those_of_the_two_phases(name: str, scene: Scene, inputs: ModelInputs) -> None:
    model = drawn_model(name, scene.encoder.sizes)
    expected = score_in_torch(model, inputs).logits
    found = tiled_logits(model, inputs)
    assert np.abs(found - expected).max() < 1e-5
    assert expected.std() > 0.01, "weights under which all candidates score alike would prove nothing"


def test_another_history_would_be_seen(scene: Scene, inputs: ModelInputs) -> None:
    """The saboteur: the same rows with one behaviour exchanged score otherwise by far more than is allowed."""
    model = drawn_model("daian", scene.encoder.sizes)
    other = inputs.history_fields.copy()
    other[0, -1] = inputs.candidate_fields[0]
    difference = np.abs(tiled_logits(model, inputs._replace(history_fields=other)) - tiled_logits(model, inputs))
    assert difference.max() > 1e-4


def test_the_layout_is_put_back() -> None:
    before = CandidateRows.of, CandidateRows.pad
    with one_candidate_a_request():
        assert CandidateRows.pad is not before[1]
    assert (CandidateRows.of, CandidateRows.pad) == before


def test_a_scene_has_full_histories_and_related_behaviours(scene: Scene, inputs: ModelInputs) -> None:
    assert (inputs.history_age[0] > 0).sum() == scene.n_behaviours
    assert 10 <= (inputs.related_age[0] > 0).sum() < scene.n_behaviours
    assert len(set(inputs.candidate_fields[:, 0].tolist())) == N
    assert (inputs.candidate_fields[:, 0] > 1).all(), "every item is known"
    assert inputs.candidate_similarity.std() > 0.1


def test_a_scene_is_the_same_every_time() -> None:
    rows = [Scene(n_items=300, n_users=5).row(4, 6, NOW_MS) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0] != Scene(n_items=300, n_users=5).row(5, 6, NOW_MS)


def test_behaviours_lie_inside_the_window_and_before_the_request() -> None:
    scene = Scene(n_items=3000, n_related=1000, window_days=180)
    row = scene.row(1, 2, NOW_MS, n_behaviours=1000)
    ages = [NOW_MS - one["at"] for one in row["behaviours"]]
    assert len(ages) == 1000
    assert 0 < min(ages) < max(ages) < 180 * 86_400_000
    assert scene.row(1, 2, NOW_MS, n_behaviours=0)["behaviours"] == []
