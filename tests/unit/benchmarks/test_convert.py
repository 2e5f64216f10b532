"""The peers' rows hold exactly what our models see: every id, padding, similarity bin and click of every candidate."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.convert import heights, rows_of
from benchmarks.peers.rows import Heights, Rows, Scores, shuffled
from benchmarks.peers.terms import Terms
from benchmarks.peers.train_ours import OURS, model_config, run_config
from training.config import from_dict, to_dict
from training.data.batches import Batches, BatchPlan
from training.data.dataset import split_files
from training.data.fit_encoder import fit_encoder
from training.data.pools import KeptPools
from training.data.synthetic import World, simulate
from training.layers.similarity_bins import SimilarityBins
from training.models import build_model
from training.scores import score_batches

N_BINS, N_HISTORY = 20, 50


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, World(n_requests=300, n_users=60, n_items=120, seed=5))
    return folder


@pytest.fixture(scope="module")
def pools(world: Path) -> KeptPools:
    return KeptPools(fit_encoder(world))


def batches(world: Path, pools: KeptPools) -> Batches:
    plan = BatchPlan(batch_candidates=256, shuffle=False)
    return Batches(split_files(world, "test"), pools.encoder, plan, pools)


@pytest.fixture(scope="module")
def rows(world: Path, pools: KeptPools) -> Rows:
    return rows_of(batches(world, pools).epoch(), pools.encoder.sizes, N_BINS, N_HISTORY)


def test_every_request_arrives_unchanged(world: Path, pools: KeptPools, rows: Rows) -> None:
    bins = SimilarityBins(pools.encoder.sizes.level_edges, N_BINS, 1)
    seen = 0
    for batch in batches(world, pools).epoch():
        inputs = batch.inputs
        n_places = inputs.history_age.shape[1]
        similarity = bins.bins(inputs.candidate_similarity).numpy()
        for place in range(len(batch.request_group)):
            candidates = np.flatnonzero(inputs.candidate_request.numpy() == place)
            (row,) = np.flatnonzero(rows.code == batch.request_group[place])
            mine = np.flatnonzero(rows.request == row)
            np.testing.assert_array_equal(rows.user[row], inputs.user_fields[place])
            np.testing.assert_array_equal(rows.context[row], inputs.context_fields[place])
            np.testing.assert_array_equal(rows.trigger[row], inputs.trigger_fields[place])
            np.testing.assert_array_equal(rows.history[row, :n_places], inputs.history_fields[place])
            np.testing.assert_array_equal(rows.age[row, :n_places], inputs.history_age[place])
            assert not rows.history[row, n_places:].any()
            assert not rows.age[row, n_places:].any()
            np.testing.assert_array_equal(rows.candidate[mine], inputs.candidate_fields[candidates])
            np.testing.assert_array_equal(rows.similarity[mine], similarity[candidates])
            np.testing.assert_array_equal(rows.click[mine], batch.clicks[candidates])
            seen += len(mine)
    assert seen == len(rows.click) > 100
    assert len(rows.code) == batches(world, pools).n_requests


def test_scores_of_ours_lie_in_the_order_of_the_rows(world: Path, pools: KeptPools, rows: Rows) -> None:
    model = build_model(model_config("din", Terms()), pools.encoder.sizes)
    scored = score_batches(model, batches(world, pools).epoch()).in_order()
    np.testing.assert_array_equal(scored.request, rows.code[rows.request])
    np.testing.assert_array_equal(scored.clicks, rows.click)


def test_ids_stay_below_the_heights(pools: KeptPools, rows: Rows) -> None:
    found = heights(pools.encoder.sizes, N_BINS)
    for ids, of_fields in ((rows.user, found.user), (rows.context, found.context), (rows.candidate, found.item)):
        assert (ids.max(axis=0) < of_fields).all()
    assert (rows.history.max(axis=(0, 1)) < found.item).all()
    assert rows.age.max() < found.age
    assert 0 < rows.similarity.max() < found.similarity


def test_a_history_that_does_not_fit_is_refused(world: Path, pools: KeptPools) -> None:
    with pytest.raises(ValueError, match="give the rows more"):
        rows_of(batches(world, pools).epoch(), pools.encoder.sizes, N_BINS, n_history=2)


def test_behaviours_come_first(rows: Rows) -> None:
    places = np.arange(rows.age.shape[1])
    np.testing.assert_array_equal(rows.age > 0, places < rows.n_behaviours[:, None])


def test_rows_heights_and_terms_come_back_from_disk(rows: Rows, pools: KeptPools, tmp_path: Path) -> None:
    rows.save(tmp_path / "test.npz")
    for name, array in vars(Rows.open(tmp_path / "test.npz")).items():
        np.testing.assert_array_equal(array, getattr(rows, name))
    made, terms = heights(pools.encoder.sizes, N_BINS), Terms(seeds=(3, 4))
    made.save(tmp_path / "heights.json")
    terms.save(tmp_path / "terms.json")
    assert Heights.open(tmp_path / "heights.json") == made
    assert Terms.open(tmp_path / "terms.json") == terms


def test_scores_come_back_from_disk_and_leave_nothing_half_written(tmp_path: Path) -> None:
    made = Scores(np.array([0.25, 0.5], np.float32), {"seconds": 1.5, "validation": [0.6, 0.7]})
    made.save(tmp_path / "ours-din-1.npz")
    found = Scores.open(tmp_path / "ours-din-1.npz")
    np.testing.assert_array_equal(found.scores, made.scores)
    assert found.facts == made.facts
    assert [path.name for path in tmp_path.iterdir()] == ["ours-din-1.npz"]


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own() -> None:
    first, second = shuffled(1000, 96, seed=1, epoch=0), shuffled(1000, 96, seed=1, epoch=1)
    assert sorted(np.concatenate(first)) == list(range(1000)) == sorted(np.concatenate(second))
    assert all(90 <= len(batch) <= 110 for batch in first)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(shuffled(1000, 96, seed=1, epoch=0)))


@pytest.mark.parametrize("name", OURS)
def test_our_models_are_built_in_the_widths_of_the_comparison(name: str, pools: KeptPools) -> None:
    terms = Terms(width=12)
    config = run_config(name, terms, seed=7)
    assert from_dict(to_dict(config)) == config
    model = build_model(config.model, pools.encoder.sizes)
    widths = {weight.shape[1] for name, weight in model.named_parameters() if "tables" in name and "linear" not in name}
    assert widths == {12}
