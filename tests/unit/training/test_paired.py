"""Rankers on one split: named metrics as statistics, the paired test and its sentence; scores that come back."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.bootstrap import Difference, Resampling
from training.data.errors import DataError
from training.metrics import gauc, log_loss, ranking_numbers
from training.paired import STATISTICS, paired_test, verdict
from training.scores import Scored, check_same_split, load_scores
from training.top_k import ndcg

CHANCE = np.random.default_rng(12)
QUICK = Resampling(n=300, n_auc=40)


def page_scores(n_requests: int = 200, n: int = 8, strength: float = 1.0) -> Scored:
    """Clicks follow a hidden taste; logits are the taste with noise. Two requests a user, codes not in order."""
    taste = CHANCE.normal(size=n_requests * n)
    clicks = (CHANCE.random(n_requests * n) < 1 / (1 + np.exp(1.5 - taste))).astype(np.float32)
    requests = CHANCE.permutation(10 * n_requests)[:n_requests].astype(np.int64)
    return Scored(
        logits=(strength * taste + CHANCE.normal(size=n_requests * n)).astype(np.float32),
        clicks=clicks,
        user=np.repeat(np.arange(n_requests) // 2, n) + 5,
        request=np.repeat(requests, n),
        requests=requests,
        has_intent=CHANCE.random(n_requests) < 0.5,
        intent_label=CHANCE.dirichlet(np.ones(3), n_requests).astype(np.float32),
        intent=CHANCE.dirichlet(np.ones(3), n_requests).astype(np.float32),
    ).in_order()


def rescored(scored: Scored, noise: float) -> Scored:
    return replace(scored, logits=(scored.logits + CHANCE.normal(0, noise, len(scored.logits))).astype(np.float32))


@pytest.mark.parametrize("unit", ["user", "request"])
def test_statistics_have_the_values_of_the_metrics(unit: str) -> None:
    scored = page_scores()
    expected = ranking_numbers(scored.logits, scored.clicks, scored.user, scored.request)
    for name in ("gauc_user", "gauc_request", "auc_per_request"):
        assert STATISTICS[name](scored, unit).value == pytest.approx(expected[name])
    assert STATISTICS["log_loss"](scored, unit).value == pytest.approx(log_loss(scored.logits, scored.clicks))
    at_5 = ndcg(scored.logits, scored.clicks, scored.request, 5).values.mean()
    assert STATISTICS["ndcg_at_5"](scored, unit).value == pytest.approx(at_5)


def test_requests_of_a_user_are_drawn_together() -> None:
    scored = page_scores()
    by_user = STATISTICS["gauc_request"](scored, "user")
    assert set(by_user.clusters) <= set(scored.user)
    assert len(np.unique(by_user.clusters)) < 0.6 * len(by_user.clusters)
    by_request = STATISTICS["gauc_request"](scored, "request")
    assert len(np.unique(by_request.clusters)) == len(by_request.clusters)


def test_the_statistic_of_a_users_gauc_drawn_by_requests_keeps_the_user_whole() -> None:
    scored = page_scores()
    assert set(STATISTICS["gauc_user"](scored, "request").clusters) <= set(scored.user)


@pytest.mark.parametrize("metric", ["auc", "gauc_request", "gauc_user", "ndcg_at_5"])
def test_the_better_ranker_is_found(metric: str) -> None:
    good = page_scores(400, strength=1.5)
    found = paired_test([good], [rescored(good, 4.0)], metric, resampling=QUICK)
    assert found.low > 0
    assert found.p < 0.05
    back = paired_test([rescored(good, 4.0)], [good], metric, resampling=QUICK)
    assert back.high < 0


@pytest.mark.parametrize("metric", ["auc", "gauc_request"])
def test_a_ranker_is_not_better_than_itself(metric: str) -> None:
    scored = page_scores()
    assert paired_test([scored], [scored, scored], metric, resampling=QUICK)[:4] == (0.0, 0.0, 0.0, 1.0)


def test_the_difference_is_that_of_the_means_over_seeds() -> None:
    base = page_scores()
    left, right = [rescored(base, 0.5) for _ in range(3)], [rescored(base, 1.0) for _ in range(2)]
    values = [np.mean([gauc(s.logits, s.clicks, s.request) for s in ranker]) for ranker in (left, right)]
    assert paired_test(left, right, resampling=QUICK).difference == pytest.approx(values[0] - values[1])


def test_other_candidates_or_clicks_or_metrics_are_refused() -> None:
    scored = page_scores()
    others = replace(scored, clicks=1 - scored.clicks)
    for other in (others, page_scores()):
        with pytest.raises(ValueError, match="same requests"):
            paired_test([scored], [other])
    with pytest.raises(ValueError, match="gauc_request"):
        paired_test([scored], [scored], "accuracy")


def test_order_brings_two_models_scores_side_by_side() -> None:
    scored = page_scores(20)
    shuffled = CHANCE.permutation(20)
    rows = (shuffled[:, None] * 8 + np.arange(8)).ravel()
    mixed = Scored(
        *(getattr(scored, name)[rows] for name in ("logits", "clicks", "user", "request")),
        *(getattr(scored, name)[shuffled] for name in ("requests", "has_intent", "intent_label", "intent")),
    )
    with pytest.raises(ValueError, match="same requests"):
        check_same_split(scored, mixed)
    back = mixed.in_order()
    check_same_split(scored, back)
    for name, values in vars(scored).items():
        assert np.array_equal(getattr(back, name), values), name


@pytest.mark.parametrize("with_intent", [True, False])
def test_scores_come_back_from_disk(tmp_path: Path, with_intent: bool) -> None:
    scored = page_scores() if with_intent else replace(page_scores(), intent=None)
    scored.save(tmp_path / "scores.npz")
    back = load_scores(tmp_path / "scores.npz")
    for name, values in vars(scored).items():
        found = getattr(back, name)
        assert found is None if values is None else (np.array_equal(found, values) and found.dtype == values.dtype)


def test_what_is_no_file_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    with pytest.raises(DataError, match="evaluate the run again"):
        load_scores(path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="evaluate the run again"):
        load_scores(path)
    np.savez(path, logits=np.zeros(3))
    with pytest.raises(DataError, match="lacks clicks, user"):
        load_scores(path)


def test_the_sentence_says_what_the_interval_says() -> None:
    better = Difference(0.01, 0.002, 0.018, 0.01, 900, 400)
    assert verdict(better, "daian", "din").startswith("daian is better than din in GAUC per request (+0.0100, 95 %")
    assert "400 independent groups" in verdict(better, "daian", "din")
    assert " is worse than " in verdict(Difference(-0.01, -0.018, -0.002, 0.01, 9, 4), "daian", "din")
    assert "not distinguishable" in verdict(Difference(0.01, -0.002, 0.02, 0.2, 9, 4), "daian", "din")
    nothing = Difference(*[math.nan] * 4, 0, 0)
    assert "cannot be compared" in verdict(nothing, "daian", "din")
