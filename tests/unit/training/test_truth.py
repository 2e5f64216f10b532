"""The oracle of a simulated world: it beats what counts and cosines know, and shares of it are computed right."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.data.shop import prepare_small
from training.baselines import baseline_numbers
from training.data.dataset import open_catalogue, split_files
from training.data.errors import DataError
from training.data.labels import group_codes
from training.data.request_files import read_requests
from training.data.synthetic import World, simulate
from training.metrics import js_of_means
from training.scores import Scored
from training.truth import ORACLES, Truth, intent_to_truth, oracle_numbers, read_truth, share_of_oracle

WORLD = World(n_requests=4_800, n_users=300, n_items=400, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    simulate(out, WORLD)
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    found = read_truth(folder, "test")
    assert found is not None
    return found


def scored_by(truth: Truth, logits: np.ndarray, intent: np.ndarray | None = None) -> Scored:
    """A model that gives these logits and intents, its requests in another order than the truth's."""
    order = np.random.default_rng(0).permutation(len(truth.request))
    first = np.cumsum(truth.n_candidates) - truth.n_candidates
    index = np.concatenate([np.arange(first[r], first[r] + truth.n_candidates[r]) for r in order])
    sizes = truth.n_candidates[order]
    return Scored(
        logits=logits[index],
        clicks=truth.clicks[index],
        user=np.repeat(truth.user[order], sizes),
        request=np.repeat(truth.request[order], sizes),
        requests=truth.request[order],
        has_intent=np.ones(len(order), dtype=bool),
        intent_label=np.zeros((len(order), 6), dtype=np.float32),
        intent=None if intent is None else intent[order].astype(np.float32),
    )


def test_the_truth_lies_in_the_order_of_the_request_files(folder: Path, truth: Truth) -> None:
    parts = [part for path in split_files(folder, "test") for part in read_requests(path)]
    codes = [group_codes(batch) for batch, _ in parts]
    assert np.array_equal(truth.request, np.concatenate([request for _, request in codes]))
    assert np.array_equal(truth.user, np.concatenate([user for user, _ in codes]))
    assert np.array_equal(truth.clicks, np.concatenate([clicks for _, clicks in parts]))


def test_the_oracle_beats_counts_and_cosines_and_places_add_little(folder: Path, truth: Truth) -> None:
    oracles = oracle_numbers(truth)
    lines = baseline_numbers(folder, "test")
    best_line = max(numbers["gauc_request"] for numbers in lines.values())
    assert oracles["attractiveness"]["gauc_request"] > oracles["foreseeable"]["gauc_request"] > best_line + 0.02
    training_days = read_truth(folder, "train")
    assert training_days is not None
    many = oracle_numbers(training_days)
    assert 0 < many["with_position"]["gauc_request"] - many["attractiveness"]["gauc_request"] < 0.02


def test_the_oracle_gains_all_of_itself_and_chance_gains_nothing(truth: Truth) -> None:
    for name in ORACLES:
        share = share_of_oracle(scored_by(truth, truth.scores[name]), truth, name)
        assert list(share.values()) == pytest.approx([1, 1, 1])
    constant = share_of_oracle(scored_by(truth, np.zeros_like(truth.scores["attractiveness"])), truth)
    assert list(constant.values()) == pytest.approx([0, 0, 0])
    inverted = share_of_oracle(scored_by(truth, -truth.scores["attractiveness"]), truth)
    assert list(inverted.values()) == pytest.approx([-1, -1, -1])


def test_a_share_depends_on_the_oracle_and_places_take_it_past_one(folder: Path) -> None:
    truth = read_truth(folder, "train")
    assert truth is not None
    by = {name: scored_by(truth, truth.scores[name]) for name in ORACLES}
    share = {name: share_of_oracle(by["foreseeable"], truth, name)["gauc_request"] for name in ORACLES}
    assert share["with_position"] < share["attractiveness"] < 0.97 < share["foreseeable"] == pytest.approx(1)
    knows_places = share_of_oracle(by["with_position"], truth, "attractiveness")
    assert knows_places["gauc_request"] > 1, "attractiveness is no upper bound for logged clicks"
    with pytest.raises(ValueError, match="give one of attractiveness, foreseeable, with_position"):
        share_of_oracle(by["foreseeable"], truth, "probability")


def test_a_share_is_of_the_scored_requests_alone(truth: Truth) -> None:
    scored = scored_by(truth, truth.scores["attractiveness"])
    kept = np.isin(scored.request, scored.requests[:100])
    part = replace(scored, **{name: getattr(scored, name)[kept] for name in ("logits", "clicks", "user", "request")})
    assert list(share_of_oracle(part, truth).values()) == pytest.approx([1, 1, 1])


def test_scores_of_other_requests_are_refused(folder: Path, truth: Truth) -> None:
    scored = scored_by(truth, truth.scores["attractiveness"], truth.intent)
    other = read_truth(folder, "validation")
    assert other is not None
    with pytest.raises(ValueError, match="not in the truth"):
        share_of_oracle(scored, other)
    with pytest.raises(ValueError, match="not in the truth"):
        intent_to_truth(scored, other)
    with pytest.raises(ValueError, match="clicks"):
        share_of_oracle(replace(scored, clicks=1 - scored.clicks), truth)
    with pytest.raises(ValueError, match="other candidates"):
        share_of_oracle(scored, replace(truth, n_candidates=np.roll(truth.n_candidates, 1) + 1))
    four = np.full((len(scored.requests), 4), 0.25, np.float32)
    with pytest.raises(ValueError, match="4 levels, the truth has 6"):
        intent_to_truth(replace(scored, intent=four, intent_label=four), truth)


def test_the_true_intent_is_at_no_distance_and_another_populations_is(truth: Truth) -> None:
    exact = intent_to_truth(scored_by(truth, truth.clicks, truth.click_share), truth)
    assert set(exact) >= {"all", "specific", "broad", "broad_by_clicks"}
    for numbers in exact.values():
        assert numbers["js_of_means"] == pytest.approx(0, abs=1e-6)
        assert numbers["js_per_request"] == pytest.approx(0, abs=1e-6)
    mean = np.broadcast_to(truth.click_share[truth.broad].mean(axis=0), truth.click_share.shape)
    broad = intent_to_truth(scored_by(truth, truth.clicks, mean), truth)
    assert broad["specific"]["js_of_means"] > 5 * broad["broad"]["js_of_means"]
    by_hand = js_of_means(mean[truth.specific].astype(np.float32).astype(float), truth.click_share[truth.specific])
    assert broad["specific"]["js_of_means"] == pytest.approx(by_hand, rel=0.05), "but for requests without a share"
    wish = intent_to_truth(scored_by(truth, truth.clicks, truth.intent), truth)
    assert wish["all"]["wish_js_per_request"] == pytest.approx(0, abs=1e-6)
    assert intent_to_truth(scored_by(truth, truth.clicks), truth) == {}


def test_who_is_specific_or_broad_by_clicks_is_counted_on_the_training_days(folder: Path, truth: Truth) -> None:
    catalogue = open_catalogue(folder)
    levels: dict[int, list[int]] = defaultdict(list)
    for path in split_files(folder, "train"):
        for batch, clicks in read_requests(path):
            owner = batch.candidate_request
            triggers = catalogue.rows(batch.trigger.tolist())[owner]
            similarity = catalogue.similarity(triggers, catalogue.rows(batch.candidate.tolist()))
            for user, cosine in zip(group_codes(batch)[0][owner][clicks == 1], similarity[clicks == 1], strict=True):
                levels[int(user)] += [min(max(int(cosine * 6), 0), 5)] if cosine > -2 else []
    for row, user in enumerate(truth.user.tolist()):
        mine = np.array(levels.get(user, []))
        assert truth.clicks_specific[row] == (len(mine) > 0 and (mine == 5).mean() >= 0.5)
        assert truth.clicks_broad[row] == (len(mine) > 0 and (mine <= 1).mean() >= 0.5)
    assert any(user not in levels for user in truth.user.tolist()), "anonymous visitors clicked before as nobody"
    # the rule finds the hidden populations: more broad people among the broad by clicks than among the others
    assert truth.broad[truth.clicks_broad].mean() > truth.broad[~truth.clicks_broad].mean() + 0.1
    assert truth.specific[truth.clicks_broad].mean() < truth.specific[~truth.clicks_broad].mean() - 0.1


def test_a_folder_of_real_data_has_no_truth_and_a_foreign_truth_is_refused(folder: Path, tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    assert read_truth(tmp_path / "d", "test") is None
    (tmp_path / "d" / "truth.parquet").write_bytes((folder / "truth.parquet").read_bytes())
    with pytest.raises(DataError, match="simulate"):
        read_truth(tmp_path / "d", "test")
