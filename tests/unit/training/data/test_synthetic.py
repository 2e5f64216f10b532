"""The simulated shop: the same seed gives the same bytes, nobody sees the future, the truth behind it is consistent."""

import hashlib
import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from training.data import synthetic, world_visits
from training.data.dataset import SPLITS, Dataset, open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.data.synthetic import DAY_MS, FIRST_DAY_MS, N_DAYS, PRESETS, World, simulate
from training.data.world_shop import Shop, make_shop
from training.data.world_users import make_users
from training.data.world_visits import N_CHANCES, draw_triggers, launched_instead

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


# ---- the properties that docs/world.md states, in a world large enough to measure them ------------------------------

MEASURED = World(n_requests=9_600, n_users=900, n_items=1_500, seed=3)


class Log(NamedTuple):
    """A world's log and truth, a row each candidate; `shop` and `users` as the generator drew them."""

    requests: RequestBatch
    clicks: np.ndarray
    place: np.ndarray
    similarity: np.ndarray
    attractiveness: np.ndarray
    probability: np.ndarray
    population: np.ndarray
    trigger: np.ndarray  # items, -1 for none
    candidate: np.ndarray
    shop: Shop


def log_of(world: World, out: Path) -> Log:
    simulate(out, world)
    requests, clicks = all_requests(out)
    owner = requests.candidate_request
    catalogue, truth = open_catalogue(out), pq.read_table(out / "truth.parquet")
    trigger, candidate = (catalogue.rows(ids.tolist()) for ids in (requests.trigger[owner], requests.candidate))
    return Log(
        requests=requests,
        clicks=clicks,
        place=np.arange(len(owner)) - requests.candidate_offsets[owner],
        similarity=catalogue.similarity(trigger, candidate),
        attractiveness=flat(truth, "attractiveness").astype(np.float64),
        probability=flat(truth, "probability").astype(np.float64),
        population=np.array(truth.column("population").to_pylist(), dtype=object)[owner],
        trigger=trigger - 1,
        candidate=candidate - 1,
        shop=make_shop(np.random.default_rng(world.seed), world.n_items, N_DAYS * DAY_MS),
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return log_of(MEASURED, tmp_path_factory.mktemp("measured") / "data")


def test_the_files_do_not_depend_on_how_many_pages_are_made_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk in (37, 100_000):
        monkeypatch.setattr(synthetic, "_CHUNK", chunk)
        simulate(tmp_path / str(chunk), WORLD)
        assert digest(folder) == digest(tmp_path / str(chunk))


def test_without_waves_the_chunk_would_show(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: all visits of a chunk at once, each user's second as if it did not know of the first."""
    monkeypatch.setattr(synthetic, "_waves", lambda user: [np.arange(len(user))])
    simulate(tmp_path / "at-once", WORLD)
    assert digest(folder) != digest(tmp_path / "at-once")


def test_memory_does_not_grow_with_the_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_CHUNK", 256)

    def peak(n_requests: int) -> int:
        tracemalloc.start()
        simulate(tmp_path / str(n_requests), World(n_requests, n_users=2_000, n_items=300, seed=1))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    first = peak(5_000)  # several chunks a day, and more than one row group
    assert peak(15_000) < 1.2 * first


def test_click_rate_and_pages_of_several_clicks(log: Log) -> None:
    clicks_of_page = np.bincount(log.requests.candidate_request, log.clicks)
    assert log.clicks.mean() == pytest.approx(0.08, abs=0.008)
    assert 0.3 < (clicks_of_page > 1).mean() < 0.6
    assert np.diff(log.requests.candidate_offsets).mean() > 18


def test_places_bias_the_clicks_and_the_oracle_is_free_of_them(log: Log, tmp_path: Path) -> None:
    examined = log.probability / log.attractiveness
    device = log.requests.context["device"][log.requests.candidate_request]
    for phone, bias in ((True, 0.25), (False, 0.2)):
        mine = (device == "phone") == phone
        assert np.allclose(examined[mine], (1.0 + log.place[mine]) ** -bias, rtol=1e-4)
    high, low = log.place < 5, log.place >= 15
    assert log.clicks[high].mean() / log.clicks[low].mean() > 1.3 * (
        log.attractiveness[high].mean() / log.attractiveness[low].mean()
    )
    free = log_of(replace(MEASURED, n_requests=1_600, position_bias=0), tmp_path / "free")
    assert np.array_equal(free.probability, free.attractiveness), "switched off, the bias is gone"


def test_broad_visitors_click_what_goes_together_and_the_catalogue_does_not_show_it(log: Log) -> None:
    partners = log.shop.goes_with[log.shop.leaf[log.trigger]]
    together = (log.shop.leaf[log.candidate][:, None] == partners).any(axis=1)
    elsewhere = ~together & (log.shop.top[log.candidate] != log.shop.top[log.trigger])
    rate = {
        (kind, name): log.clicks[mine & (log.population == kind)].mean()
        for kind in ("broad", "specific")
        for name, mine in (("together", together), ("elsewhere", elsewhere))
    }
    assert rate["broad", "together"] > 1.3 * rate["broad", "elsewhere"]
    assert rate["broad", "together"] > 1.5 * rate["specific", "together"]
    known = log.similarity > -2
    assert abs(log.similarity[together & known].mean() - log.similarity[elsewhere & known].mean()) < 0.05
    assert (log.shop.top[log.candidate][together] != log.shop.top[log.trigger][together]).all()


def test_cosines_fall_with_the_distance_in_the_tree(log: Log) -> None:
    known, shop = log.similarity > -2, log.shop
    means = []
    inner = np.zeros(len(known), dtype=bool)
    for group in (shop.product, shop.topic, shop.leaf, shop.top):
        here = group[log.trigger] == group[log.candidate]
        means.append(log.similarity[known & here & ~inner].mean())
        inner |= here
    means.append(log.similarity[known & ~inner].mean())
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.8
    assert 0.4 < means[1] < 0.7
    assert abs(means[4]) < 0.1


def test_a_long_tail_of_items_is_rarely_shown(log: Log) -> None:
    shown = np.sort(np.bincount(log.candidate, minlength=MEASURED.n_items))[::-1]
    assert 0.3 < shown[: MEASURED.n_items // 10].sum() / shown.sum() < 0.7
    assert (shown < 20).mean() > 0.1


def test_late_items_are_shown_after_their_launch_and_not_before(log: Log) -> None:
    at = log.requests.requested_at[log.requests.candidate_request] - FIRST_DAY_MS
    launched = log.shop.launched_at[log.candidate]
    assert (at >= launched).all()
    assert (log.requests.requested_at - FIRST_DAY_MS >= log.shop.launched_at[log.trigger][log.place == 0]).all()
    assert 0.03 < (launched > 0).mean() < 0.1
    assert 0.05 < (log.shop.launched_at > 0).mean() < 0.15
    shuffled = np.random.default_rng(0).permutation(log.shop.launched_at)
    assert (at < shuffled[log.candidate]).any(), "the saboteur: other launches would be noticed"


def most_surprising_trigger(at: int, n_pages: int = 40_000) -> float:
    """How far an item's pages at a moment are from what its popularity explains, in standard deviations; the farthest.

    Visitors without a last click open by popularity in a favourite leaf (45 %) or in the whole shop; when the drawn
    item is not launched, another of its leaf by popularity among what is.
    """
    random = np.random.default_rng(11)
    shop = make_shop(random, 400, N_DAYS * DAY_MS)
    users = make_users(random, 200, shop)
    user = random.integers(0, 200, n_pages)
    trigger = draw_triggers(random.random((n_pages, N_CHANCES)), np.full(n_pages, at), user, shop, users)
    n_leaves = len(shop.goes_with)
    launched = np.where(shop.launched_at <= at, shop.popularity, 0.0)
    in_leaf = np.bincount(shop.leaf, launched, n_leaves)
    assert (in_leaf > 0).all(), "no leaf of this shop is empty: nobody has to look further"
    favourite = np.bincount(users.favourite_leaves[user].ravel(), minlength=n_leaves) / (3 * n_pages)
    of_leaf = 0.45 * favourite + 0.55 * np.bincount(shop.leaf, shop.popularity) / shop.popularity.sum()
    expected = n_pages * of_leaf[shop.leaf] * launched / in_leaf[shop.leaf]
    found = np.bincount(trigger, minlength=400)
    assert found[launched == 0].sum() == 0
    return float((np.abs(found - expected) / np.sqrt(expected + 1)).max())


@pytest.mark.parametrize("day", [0, 3, 7])
def test_popularity_explains_how_often_each_item_is_the_trigger(day: int) -> None:
    assert most_surprising_trigger(day * DAY_MS) < 5


def test_one_item_instead_of_all_unlaunched_ones_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: the rule until 2026-11-22."""

    def one_for_all(_: np.ndarray, at: np.ndarray, item: np.ndarray, shop: Shop) -> np.ndarray:
        return np.where(shop.launched_at[item] <= at, item, np.argmin(shop.launched_at))

    monkeypatch.setattr(world_visits, "launched_instead", one_for_all)
    assert most_surprising_trigger(0) > 20


def test_redrawing_with_the_number_that_drew_the_item_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: numbers that are not fresh (here: always the same) single out neighbours."""

    def stale(chance: np.ndarray, at: np.ndarray, item: np.ndarray, shop: Shop) -> np.ndarray:
        return launched_instead(np.full_like(chance, 0.5), at, item, shop)

    monkeypatch.setattr(world_visits, "launched_instead", stale)
    assert most_surprising_trigger(0) > 20


def test_where_a_leaf_has_nothing_launched_the_top_does_and_else_the_whole_shop() -> None:
    shop = make_shop(np.random.default_rng(2), 400, N_DAYS * DAY_MS)
    item = np.full(2_000, int(np.flatnonzero(shop.top == 1)[0]))
    chance, at = np.random.default_rng(3).random(len(item)), np.full(len(item), 5)

    def instead(unlaunched: np.ndarray) -> np.ndarray:
        later = shop._replace(launched_at=np.where(unlaunched, 9, 0))
        found = launched_instead(chance, at, item, later)
        assert np.array_equal(found, launched_instead(chance, at, item, later)), "the same numbers, the same items"
        return found

    assert np.array_equal(instead(np.zeros(400, dtype=bool)), item), "what is launched stays"
    own_leaf = instead(np.arange(400) == item[0])
    assert set(shop.leaf[own_leaf]) == {shop.leaf[item[0]]}
    assert item[0] not in own_leaf
    own_top = instead(shop.leaf == shop.leaf[item[0]])
    assert set(shop.top[own_top]) == {1}
    assert shop.leaf[item[0]] not in shop.leaf[own_top]
    anywhere = instead(shop.top == 1)
    assert set(shop.top[anywhere]) == set(shop.top) - {1}
    assert set(instead(np.arange(400) != 7)) == {7}


def test_specific_and_broad_click_rates_run_against_each_other_over_the_levels(log: Log) -> None:
    rate = {
        (kind, name): log.clicks[(log.population == kind) & mine].mean()
        for kind in ("broad", "specific")
        for name, mine in (("near", log.similarity > 0.8), ("far", (log.similarity > -2) & (log.similarity < 0.2)))
    }
    assert rate["specific", "near"] > 2 * rate["specific", "far"]
    assert rate["broad", "near"] < 1.3 * rate["broad", "far"]


def test_half_of_the_visits_have_two_peaks(folder: Path) -> None:
    wish = np.array(pq.read_table(folder / "truth.parquet").column("wish").to_pylist())
    assert np.allclose(wish.sum(axis=1), 1, atol=1e-5)
    assert 0.35 < (np.sort(wish, axis=1)[:, -2] > 0.25).mean() < 0.65


@pytest.mark.parametrize(
    "wrong",
    [{"n_requests": 7}, {"n_users": 1}, {"n_items": 49}, {"seed": -1}, {"click_rate": 0.0}, {"position_bias": -0.1}],
)
def test_worlds_that_cannot_be_made_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give at least|need a rate"):
        World(**wrong)  # type: ignore[arg-type]


def test_presets() -> None:
    assert PRESETS["demo"] == World()
    assert [PRESETS[name].n_requests for name in ("small", "full")] == [16_000, 400_000]
