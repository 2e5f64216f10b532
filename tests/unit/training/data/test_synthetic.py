"""The simulated shop: the same seed gives the same bytes, nobody sees the future, the truth behind it is consistent."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from training.data.dataset import SPLITS, Dataset, open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.data.synthetic import DAY_MS, FIRST_DAY_MS, N_DAYS, World, simulate

WORLD = World(n_requests=1600, n_users=80, n_items=300, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    simulate(out, WORLD)
    return out


def requests_of(folder: Path, split: str) -> tuple[RequestBatch, np.ndarray]:
    parts = [part for path in split_files(folder, split) for part in read_requests(path)]  # type: ignore[arg-type]
    return RequestBatch.concat([batch for batch, _ in parts]), np.concatenate([clicks for _, clicks in parts])


def all_requests(folder: Path) -> tuple[RequestBatch, np.ndarray]:
    parts = [requests_of(folder, split) for split in SPLITS]
    return RequestBatch.concat([batch for batch, _ in parts]), np.concatenate([clicks for _, clicks in parts])


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flat(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", WORLD)
    simulate(tmp_path / "other", World(WORLD.n_requests, WORLD.n_users, WORLD.n_items, seed=6))
    assert digest(folder) == digest(tmp_path / "again")
    assert digest(folder)["train/00000.parquet"] != digest(tmp_path / "other")["train/00000.parquet"]


def test_six_days_of_training_one_of_validation_one_of_test(folder: Path) -> None:
    dataset: Dataset = open_dataset(folder)
    days = {split: [(at - FIRST_DAY_MS) // DAY_MS for at in window] for split, window in dataset.windows.items()}
    assert days == {"train": [0, N_DAYS - 3], "validation": [N_DAYS - 2] * 2, "test": [N_DAYS - 1] * 2}
    assert sum(dataset.report[split]["requests"] for split in SPLITS) == WORLD.n_requests


def test_a_request_sees_its_users_earlier_events_all_of_them_and_none_of_later(folder: Path) -> None:
    requests, clicks = all_requests(folder)
    owner = requests.behaviour_request
    assert (requests.behaviour_at < requests.requested_at[owner]).all()
    seen: dict[str, set[tuple[int, str, str]]] = defaultdict(set)
    clicked: dict[str, set[str]] = defaultdict(set)
    for r in range(requests.n_requests):
        user = requests.user["user"][r]
        mine = slice(requests.behaviour_offsets[r], requests.behaviour_offsets[r + 1])
        history = set(
            zip(
                requests.behaviour_at[mine].tolist(),
                requests.behaviour_item[mine],
                requests.behaviour_type[mine],
                strict=True,
            )
        )
        if user is None:
            assert not history
            continue
        oldest = min((at for at, _, _ in history), default=0)
        known = {event for event in seen[user] if event[0] > oldest or len(history) < HistoryRules().kept}
        assert known <= history, "what was known once stays known, until the newest crowd it out"
        new_clicks = {item for _, item, kind in history - seen[user] if kind == "click"}
        assert new_clicks <= clicked[user] | {requests.trigger[r]}, (
            "behaviours are clicks made before, or the opening one"
        )
        seen[user] = history
        shown = slice(requests.candidate_offsets[r], requests.candidate_offsets[r + 1])
        clicked[user] |= set(requests.candidate[shown][clicks[shown] == 1]) | {requests.trigger[r]}


def test_pages_show_distinct_launched_items_without_the_trigger(folder: Path) -> None:
    requests, _ = all_requests(folder)
    for r in range(requests.n_requests):
        page = requests.candidate[requests.candidate_offsets[r] : requests.candidate_offsets[r + 1]].tolist()
        assert 2 <= len(page) == len(set(page)) <= 20
        assert requests.trigger[r] not in page


def test_the_world_has_what_real_ones_have(folder: Path) -> None:
    requests, clicks = all_requests(folder)
    clicks_of_page = np.bincount(requests.candidate_request, clicks, requests.n_requests)
    assert (clicks_of_page == 0).any()
    assert (clicks_of_page > 1).mean() > 0.2, "several clicks on a page"
    assert 0.05 < clicks.mean() < 0.15
    assert any(user is None for user in requests.user["user"])
    catalogue = open_catalogue(folder)
    assert 0 < (~catalogue.has_vector[1:]).mean() < 0.06
    shown = np.sort(np.bincount(catalogue.rows(requests.candidate.tolist())))[::-1]
    assert shown[: WORLD.n_items // 10].sum() > 0.25 * shown.sum(), "a tenth of the items gets a good part of the views"
    train = set(requests_of(folder, "train")[0].candidate)
    assert set(requests_of(folder, "test")[0].candidate) - train, "items that are cold on the test day"


def test_the_truth_predicts_the_clicks_and_nothing_single_does(folder: Path) -> None:
    requests, clicks = all_requests(folder)
    truth = pq.read_table(folder / "truth.parquet")
    assert truth.column("request_id").to_pylist() == requests.request_id.tolist()
    assert flat(truth, "candidate").tolist() == requests.candidate.tolist()
    probability = flat(truth, "probability").astype(np.float64)
    assert 0.7 < roc_auc_score(clicks, probability) < 0.9
    assert probability.mean() == pytest.approx(clicks.mean(), abs=4 * np.sqrt(clicks.mean() / len(clicks)))
    for low, high in ((0.02, 0.05), (0.1, 0.2), (0.3, 0.6)):
        band = (probability > low) & (probability < high)
        deviation = np.sqrt((probability[band] * (1 - probability[band])).sum()) / band.sum()
        assert abs(clicks[band].mean() - probability[band].mean()) < 4 * deviation
    shuffled = np.random.default_rng(0).permutation(clicks)
    n_positive = clicks.sum()
    assert abs(roc_auc_score(shuffled, probability) - 0.5) < 3 / np.sqrt(12 * n_positive) * 1.1


def test_intents_are_distributions_and_some_are_specific_some_broad(folder: Path) -> None:
    truth = pq.read_table(folder / "truth.parquet")
    intent = np.array(truth.column("intent").to_pylist())
    assert intent.shape == (WORLD.n_requests, 6)
    assert np.allclose(intent.sum(axis=1), 1)
    assert (intent[:, -2:].sum(axis=1) > 0.6).mean() > 0.1
    assert (intent[:, :3].sum(axis=1) > 0.6).mean() > 0.1
    share = np.array(truth.column("click_share").to_pylist())
    assert np.allclose(share.sum(axis=1)[share.any(axis=1)], 1)


def test_what_specific_visitors_click_is_more_similar_to_the_trigger(folder: Path) -> None:
    requests, clicks = all_requests(folder)
    catalogue = open_catalogue(folder)
    triggers = catalogue.rows(requests.trigger.tolist())[requests.candidate_request]
    similarity = catalogue.similarity(triggers, catalogue.rows(requests.candidate.tolist()))
    intent = np.array(pq.read_table(folder / "truth.parquet").column("intent").to_pylist())
    specific = (intent[:, -2:].sum(axis=1) > 0.5)[requests.candidate_request]
    counted = (clicks == 1) & (similarity > -1)
    assert similarity[counted & specific].mean() > similarity[counted & ~specific].mean() + 0.15
