"""The report's numbers by hand on pages small enough to follow, and against the plain metrics on larger ones."""

import math
from typing import Any

import numpy as np
import pytest

from service.contract.catalogue import Catalogue
from service.contract.rules import SimilarityScale
from training.bootstrap import Resampling, intervals
from training.calibration import copc, ece, probabilities
from training.measures import Plan, measure
from training.metrics import auc, gauc, js_of_means, js_per_request
from training.paired import gauc_statistic
from training.scores import Scored
from training.split_facts import Candidates, Items, TrainingDays

CHANCE = np.random.default_rng(14)
PLAN = Plan(Resampling(n=100, n_auc=10), top=3, cold_below=5)
N_ITEMS, N_USERS, N_REQUESTS, N_SHOWN = 30, 40, 120, 6


class Shop:
    """Random pages of six over thirty items in five leaf categories; some users and items are new."""

    def __init__(self, with_leaves: bool = True, with_intent: bool = True) -> None:
        vectors = CHANCE.normal(size=(N_ITEMS, 4)).astype(np.float32)
        vectors[-3:] = 0
        catalogue = Catalogue.build([f"i{n}" for n in range(N_ITEMS)], {}, vectors=vectors)
        leaf = np.concatenate([[0], np.arange(N_ITEMS) % 5 + 1]) if with_leaves else np.zeros(N_ITEMS + 1, np.int64)
        self.items = Items(catalogue, SimilarityScale(0.0, 1.0, 3), leaf.astype(np.int64))
        n = N_REQUESTS * N_SHOWN
        requests = np.arange(N_REQUESTS) * 3
        item = CHANCE.integers(1, N_ITEMS + 1, n)
        logits = CHANCE.normal(-1, 1, n)
        self.scored = Scored(
            logits=logits,
            clicks=(CHANCE.random(n) < probabilities(logits)).astype(np.float32),
            user=np.repeat(CHANCE.integers(0, N_USERS, N_REQUESTS), N_SHOWN),
            request=np.repeat(requests, N_SHOWN),
            requests=requests,
            has_intent=CHANCE.random(N_REQUESTS) < 0.7,
            intent_label=CHANCE.dirichlet(np.ones(3), N_REQUESTS),
            intent=CHANCE.dirichlet(np.ones(3), N_REQUESTS) if with_intent else None,
        )
        trigger_leaf = np.repeat(self.items.leaf[CHANCE.integers(1, N_ITEMS + 1, N_REQUESTS)], N_SHOWN)
        level = np.where(item > N_ITEMS - 3, 0, CHANCE.integers(1, 4, n))
        self.candidates = Candidates(self.scored.request, item, self.items.leaf[item], trigger_leaf, level)
        users = np.arange(N_USERS - 10)  # the last ten were never seen
        self.training = TrainingDays(
            shown=CHANCE.integers(0, 10, N_ITEMS + 1),
            clicked=np.zeros(N_ITEMS + 1, np.int64),
            users=users,
            diversity=CHANCE.integers(-1, 10, len(users)),
            level_clicks=CHANCE.integers(0, 3, (len(users), 3)),
        )

    def measured(self) -> dict[str, Any]:
        return measure(self.scored, self.candidates, self.training, self.items, PLAN)


def inside(number: dict[str, float]) -> bool:
    return number["low"] <= number["value"] <= number["high"]


def test_ranking_and_calibration_are_the_plain_metrics() -> None:
    shop = Shop()
    found, scored = shop.measured(), shop.scored
    ranking, calibration = found["ranking"], found["calibration"]
    assert ranking["auc"]["value"] == pytest.approx(auc(scored.logits, scored.clicks))
    assert ranking["gauc_user"]["value"] == pytest.approx(gauc(scored.logits, scored.clicks, scored.user))
    assert all(inside(number) for number in ranking.values())
    predicted = probabilities(scored.logits)
    assert calibration["ece"]["value"] == pytest.approx(ece(predicted, scored.clicks))
    assert calibration["copc"]["value"] == pytest.approx(copc(predicted, scored.clicks))
    assert inside(calibration["copc"])
    assert sum(bar["n"] for bar in calibration["reliability"]) == len(scored.clicks)
    rates = [bar["n"] * bar["click_rate"]["value"] for bar in calibration["reliability"]]
    assert sum(rates) == pytest.approx(scored.clicks.sum())


def test_groups_are_the_gauc_of_their_rows() -> None:
    shop = Shop()
    found, scored = shop.measured(), shop.scored
    cold_item = shop.training.shown[shop.candidates.item] < 5
    for part, cold in (("by_item", cold_item), ("by_user", scored.user >= N_USERS - 10)):
        for name, rows in (("cold", cold), ("warm", ~cold)):
            group = found[part][name]
            logits, clicks, user = scored.logits[rows], scored.clicks[rows], scored.user[rows]
            assert group["n_candidates"] == rows.sum() > 0
            assert group["n_clicks"] == clicks.sum()
            assert group["n_users"] == len(np.unique(user))
            assert group["gauc_user"]["value"] == pytest.approx(gauc(logits, clicks, user))
            assert group["auc"]["value"] == pytest.approx(auc(logits, clicks))


def test_diversity_groups_cover_everyone_once() -> None:
    shop = Shop()
    groups = shop.measured()["by_intent_diversity"]
    assert list(groups) == [*"0123456", "7+", "unknown"]
    assert sum(group["n_candidates"] for group in groups.values()) == len(shop.scored.clicks)
    diversity = {user: int(value) for user, value in zip(shop.training.users, shop.training.diversity, strict=True)}
    of_rows = np.array([diversity.get(user, -1) for user in shop.scored.user])
    for name, rows in (("2", of_rows == 2), ("7+", of_rows >= 7), ("unknown", of_rows < 0)):
        expected = gauc(shop.scored.logits[rows], shop.scored.clicks[rows], shop.scored.user[rows])
        assert groups[name]["gauc_user"]["value"] == pytest.approx(expected, nan_ok=True)


def test_the_top_of_pages_by_a_plain_loop() -> None:
    shop = Shop()
    found, scored, candidates = shop.measured()["top"], shop.scored, shop.candidates
    levels, leaves, shares, cosines = [], [], [], []
    for request in scored.requests:
        rows = np.flatnonzero(scored.request == request)
        best = rows[np.argsort(-scored.logits[rows], kind="stable")[:3]]
        levels.append(len(set(candidates.level[best]) - {0}))
        leaves.append(len(set(candidates.leaf[best])))
        shares.append(np.mean(candidates.leaf[best] == candidates.trigger_leaf[best]))
        item = candidates.item[best]
        pairs = [
            shop.items.catalogue.similarity(item[i : i + 1], item[j : j + 1])[0] for i in range(3) for j in range(i)
        ]
        known = [float(pair) for pair in pairs if pair > -2]
        cosines.append(np.mean(known) if known else np.nan)
    assert (found["k"], found["n_pages"]) == (3, N_REQUESTS)
    expected = {"levels": levels, "leaves": leaves, "trigger_leaf": shares, "cosine": cosines}
    for name, values in expected.items():
        assert found[name]["value"] == pytest.approx(np.nanmean(values), abs=1e-5), name
        assert inside(found[name])


def test_click_rates_by_level() -> None:
    shop = Shop()
    found = shop.measured()["by_level"]
    assert [level["level"] for level in found] == [0, 1, 2, 3]
    assert math.isnan(found[0]["from"])
    assert [level["from"] for level in found[1:]] == pytest.approx([0, 1 / 3, 2 / 3])
    for level in found:
        rows = shop.candidates.level == level["level"]
        assert level["n_candidates"] == rows.sum()
        assert level["click_rate"]["value"] == pytest.approx(shop.scored.clicks[rows].mean())
        assert level["predicted"]["value"] == pytest.approx(probabilities(shop.scored.logits[rows]).mean())


def test_intents_of_all_and_of_specific_and_broad_users() -> None:
    shop = Shop()
    found, scored = shop.measured()["intent"], shop.scored
    there = scored.has_intent
    assert scored.intent is not None
    assert found["all"]["n_requests"] == there.sum()
    assert found["all"]["js_of_means"]["value"] == pytest.approx(
        js_of_means(scored.intent[there], scored.intent_label[there])
    )
    assert found["all"]["js_per_request"]["value"] == pytest.approx(
        js_per_request(scored.intent[there], scored.intent_label[there])
    )
    clicks = dict(zip(shop.training.users.tolist(), shop.training.level_clicks, strict=True))
    owner = scored.user[::N_SHOWN]
    of_request = np.array([clicks.get(user, np.zeros(3)) for user in owner])
    total = of_request.sum(axis=1)
    for kind, share in (("specific", of_request[:, 2]), ("broad", of_request[:, 0] + of_request[:, 1])):
        rows = there & (total > 0) & (share >= total / 2)
        assert found[kind]["n_requests"] == rows.sum() > 0
        assert found[kind]["observed"] == pytest.approx(scored.intent_label[rows].mean(axis=0).tolist())


def test_what_the_data_or_the_ranker_lacks_is_left_out() -> None:
    found = Shop(with_leaves=False, with_intent=False).measured()
    assert not {"intent", "by_intent_diversity"} & set(found)
    assert "leaves" not in found["top"]
    assert "levels" in found["top"]


def test_scores_of_another_split_are_refused() -> None:
    shop, other = Shop(), Shop()
    shuffled = Candidates(*(values[::-1] for values in vars(other.candidates).values()))
    with pytest.raises(ValueError, match="in order"):
        measure(shop.scored, shuffled, shop.training, shop.items, PLAN)


def test_intervals_of_requests_are_narrower_than_those_of_users_when_users_repeat() -> None:
    """All requests of a user are one page again and again: what looks like many requests is few users."""
    shop = Shop()
    one = Scored(**{**vars(shop.scored), "user": np.repeat(np.arange(N_REQUESTS), N_SHOWN)})
    copies = 5
    repeated = Scored(
        logits=np.tile(one.logits, copies),
        clicks=np.tile(one.clicks, copies),
        user=np.tile(one.user, copies),
        request=np.concatenate([one.request + 1000 * c for c in range(copies)]),
        requests=np.zeros(0, np.int64),
        has_intent=np.zeros(0, bool),
        intent_label=np.zeros((0, 3)),
        intent=None,
    )
    by_user, by_request = (gauc_statistic(repeated, "request", unit) for unit in ("user", "request"))
    wide, narrow = (intervals({"g": s}, Resampling(n=300))["g"] for s in (by_user, by_request))
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
