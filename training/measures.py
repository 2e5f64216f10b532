"""Every number that is reported about a ranker on a split, with intervals, as plain dicts.

Called by `training.evaluate` and by whoever reports many runs; `training.evaluation_report` says what is made here,
and docs/metrics.md explains it. A number is {"value", "low", "high"}; what could not be measured is NaN. Knows no model
and reads no file.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from training.bootstrap import Interval, Resampling, Statistic, auc_interval, divided, intervals, mean, ratio
from training.calibration import N_BINS, equal_mass_bins, probabilities, reliability
from training.counts import ITEM_PRIOR
from training.metrics import js_divergence
from training.paired import STATISTICS, Unit, clusters_of, gauc_statistic
from training.scores import Scored
from training.split_facts import NO_LEAF, Candidates, Items, TrainingDays
from training.top_k import first_k, mean_cosine, n_distinct

Number = dict[str, float]
HIGHEST_DIVERSITY = 7  # groups 0, 1, ..., 6 and 7 or more: DAIAN section 5.2(5)
KIND_SHARE = 0.5  # of a user's training clicks, for a specific or a broad intent
_PAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class Plan:
    """How the numbers are made.

    unit: what is drawn for the intervals. top: how many of a page its diversity is measured on. cold_below: training
    impressions below which an item is cold; by default those at which its own click rate and the shop's weigh the same
    in the line `click_rate`.
    """

    resampling: Resampling = field(default_factory=Resampling)
    unit: Unit = "user"
    top: int = 5
    cold_below: int = int(ITEM_PRIOR)


USUAL_PLAN = Plan()


@dataclass(frozen=True)
class Measured:
    """The scores in order, and what is known of their split."""

    scored: Scored
    candidates: Candidates
    training: TrainingDays
    items: Items
    plan: Plan

    def __post_init__(self) -> None:
        if not np.array_equal(self.scored.request, self.candidates.request):
            raise ValueError(
                "the scores are not of these candidates: put them in order (Scored.in_order), and read the candidates "
                "of the very split that was scored"
            )


def measure(
    scored: Scored, candidates: Candidates, training: TrainingDays, items: Items, plan: Plan = USUAL_PLAN
) -> dict[str, Any]:
    """All numbers by part of the report.

    `scored` must be in order. Raises ValueError when it is of other candidates than `candidates`. Parts that the data
    or the ranker cannot have (no leaf category, no intent) are left out.
    """
    split = Measured(scored, candidates, training, items, plan)
    parts = {
        "ranking": ranking(scored, plan),
        "calibration": calibration(scored, plan),
        "by_intent_diversity": by_intent_diversity(split),
        "by_item": by_item(split),
        "by_user": by_user(split),
        "top": top(split),
        "by_level": by_level(split),
        "intent": intent(split),
    }
    return {name: part for name, part in parts.items() if part}


def ranking(scored: Scored, plan: Plan) -> dict[str, Number]:
    """AUC, its means by user and request, NDCG and log-loss."""
    pooled = auc_interval(scored.logits, scored.clicks, clusters_of(scored, plan.unit), plan.resampling)
    others = {name: of(scored, plan.unit) for name, of in STATISTICS.items()}
    return {"auc": _number(pooled), **_numbers(others, plan)}


def calibration(scored: Scored, plan: Plan) -> dict[str, Any]:
    """ECE, COPC, and the curve of click rates over predictions. For the bootstrap the bins stay where they are."""
    predicted, unit = probabilities(scored.logits), clusters_of(scored, plan.unit)
    binned = ece_statistic(scored, plan.unit)
    codes, sums = binned.clusters, np.split(binned.columns, 3, axis=1)
    found = _numbers(
        {
            "ece": binned,
            "copc": ratio(scored.clicks, predicted, unit),
            **{f"rate {b}": ratio(sums[2][:, b], sums[0][:, b], codes) for b in range(N_BINS)},
        },
        plan,
    )
    curve = reliability(predicted, scored.clicks)
    there = np.flatnonzero(sums[0].sum(axis=0) > 0)
    return {
        "ece": found["ece"],
        "copc": found["copc"],
        "reliability": [
            {"n": int(n), "predicted": float(p), "click_rate": found[f"rate {b}"]}
            for b, n, p in zip(there, curve.n, curve.predicted, strict=True)
        ],
    }


def ece_statistic(scored: Scored, unit: Unit) -> Statistic:
    """ECE; a row is a cluster: its candidates, their predictions and their clicks in every bin."""
    predicted = probabilities(scored.logits)
    codes, cluster = np.unique(clusters_of(scored, unit), return_inverse=True)
    cell = cluster * N_BINS + equal_mass_bins(predicted)
    sums = [
        np.bincount(cell, weights, len(codes) * N_BINS).reshape(len(codes), N_BINS)
        for weights in (np.ones(len(cell)), predicted, scored.clicks.astype(np.float64))
    ]
    return Statistic(np.concatenate(sums, axis=1), codes, _ece_of_sums, distance=True)


def _ece_of_sums(sums: np.ndarray) -> np.ndarray:
    n, predicted, clicks = np.split(sums, 3, axis=-1)
    return divided(np.abs(clicks - predicted).sum(axis=-1), n.sum(axis=-1))


def by_intent_diversity(split: Measured) -> dict[str, Any]:
    """GAUC of users by how many leaf categories besides the trigger's a request of theirs was clicked in (last week).

    "unknown": users of whom the training days do not tell. Nothing without leaf categories.
    """
    if not split.items.leaf.any():
        return {}
    place = split.training.place(split.scored.user)
    diversity = np.where(place < 0, -1, np.minimum(_taken(split.training.diversity, place), HIGHEST_DIVERSITY))
    names = {-1: "unknown", HIGHEST_DIVERSITY: f"{HIGHEST_DIVERSITY}+"}
    groups = [*range(HIGHEST_DIVERSITY + 1), -1]
    return {
        names.get(group, str(group)): _gaucs(_part(split.scored, diversity == group), split.plan) for group in groups
    }


def by_item(split: Measured) -> dict[str, Any]:
    """AUC and GAUC among cold candidates alone, and among the others alone."""
    return _cold_and_warm(split, split.training.shown[split.candidates.item] < split.plan.cold_below)


def by_user(split: Measured) -> dict[str, Any]:
    """The same for users that the training days never saw (cold; anonymous ones among them) and the others."""
    return _cold_and_warm(split, split.training.place(split.scored.user) < 0)


def _cold_and_warm(split: Measured, cold: Bool[np.ndarray, " N"]) -> dict[str, Any]:
    found = {}
    for name, rows in (("cold", cold), ("warm", ~cold)):
        part = _part(split.scored, rows)
        clusters = clusters_of(part, split.plan.unit)
        pooled = auc_interval(part.logits, part.clicks, clusters, split.plan.resampling)
        found[name] = {**_gaucs(part, split.plan), "auc": _number(pooled)}
    return found


def _part(scored: Scored, rows: Bool[np.ndarray, " N"]) -> Scored:
    """Some candidates of a split; the requests' intents are left out."""
    none = np.zeros((0, 1), dtype=np.float32)
    return Scored(
        logits=scored.logits[rows],
        clicks=scored.clicks[rows],
        user=scored.user[rows],
        request=scored.request[rows],
        requests=np.zeros(0, dtype=np.int64),
        has_intent=np.zeros(0, dtype=bool),
        intent_label=none,
        intent=None,
    )


def _gaucs(part: Scored, plan: Plan) -> dict[str, Any]:
    statistics = {f"gauc_{by}": gauc_statistic(part, by, plan.unit) for by in ("user", "request")}
    return {
        "n_users": len(np.unique(part.user)),
        "n_candidates": len(part.clicks),
        "n_clicks": int((part.clicks > 0).sum()),
        **_numbers(statistics, plan),
    }


def top(split: Measured) -> dict[str, Any]:
    """What the first `plan.top` of a page hold, mean over pages with more candidates than that.

    levels: how many different ones. leaves: how many leaf categories. trigger_leaf: share in the trigger's own leaf.
    cosine: mean of all pairs.
    """
    scored, found, k = split.scored, split.candidates, split.plan.top
    rows = first_k(scored.logits, scored.request, k).reshape(-1, k)
    leaf, level = found.leaf[rows], found.level[rows]
    own = found.trigger_leaf[rows]
    per_page = {
        "levels": n_distinct(level, level > 0).astype(np.float64),
        "cosine": _cosines(found.item[rows], split.items),
    }
    if split.items.leaf.any():
        per_page["leaves"] = n_distinct(leaf, leaf != NO_LEAF).astype(np.float64)
        per_page["trigger_leaf"] = np.where(own[:, 0] != NO_LEAF, (leaf == own).mean(axis=1), np.nan)
    clusters = clusters_of(scored, split.plan.unit)[rows[:, 0]]
    numbers = _numbers({name: mean(values, clusters) for name, values in per_page.items()}, split.plan)
    return {"k": k, "n_pages": len(rows), **numbers}


def _cosines(items: Int64[np.ndarray, "P k"], known: Items) -> Float[np.ndarray, " P"]:
    """Mean cosine of every page's pairs, a few thousand pages at a time."""
    starts = range(0, len(items), _PAGES_AT_ONCE)
    parts = [mean_cosine(known.catalogue.codes[items[i : i + _PAGES_AT_ONCE]].astype(np.float32)) for i in starts]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def by_level(split: Measured) -> list[dict[str, Any]]:
    """Click rate and mean prediction of every similarity level; level 0 holds what has no vector."""
    level, clicks = split.candidates.level, split.scored.clicks.astype(np.float64)
    predicted = probabilities(split.scored.logits)
    clusters, edges = clusters_of(split.scored, split.plan.unit), split.items.scale.edges
    statistics = {}
    present = [number for number in range(len(edges)) if (level == number).any()]
    for number in present:
        rows = level == number
        statistics[f"rate {number}"] = mean(clicks[rows], clusters[rows])
        statistics[f"predicted {number}"] = mean(predicted[rows], clusters[rows])
    found = _numbers(statistics, split.plan)
    return [
        {
            "level": number,
            "from": float(edges[number - 1]) if number else float("nan"),
            "n_candidates": int((level == number).sum()),
            "click_rate": found[f"rate {number}"],
            "predicted": found[f"predicted {number}"],
        }
        for number in present
    ]


def intent(split: Measured) -> dict[str, Any]:
    """How near predicted intents are to observed ones, over all requests with a label and by kind of user.

    specific: at least half of the user's training clicks in the highest level; broad: in the two lowest. The papers
    name these users without a rule; this one is ours.
    """
    scored = split.scored
    if scored.intent is None or not scored.has_intent.any():
        return {}
    place = split.training.place(_users_of(scored))
    clicks = np.where(place[:, None] >= 0, _taken(split.training.level_clicks, place), 0)
    total = np.maximum(clicks.sum(axis=1), 1)
    kinds = {
        "all": np.ones(len(place), dtype=bool),
        "specific": clicks[:, -1] >= KIND_SHARE * total,
        "broad": clicks[:, :2].sum(axis=1) >= KIND_SHARE * total,
    }
    return {name: _intent_of(split, rows & scored.has_intent) for name, rows in kinds.items()}


def _intent_of(split: Measured, rows: Bool[np.ndarray, " R"]) -> dict[str, Any]:
    scored, plan = split.scored, split.plan
    assert scored.intent is not None
    predicted, label = scored.intent[rows].astype(np.float64), scored.intent_label[rows].astype(np.float64)
    if not len(predicted):
        return {"n_requests": 0}
    clusters = _users_of(scored)[rows] if plan.unit == "user" else scored.requests[rows]
    statistics = {
        "js_of_means": Statistic(np.concatenate([predicted, label], axis=1), clusters, _js_of_sums, distance=True),
        "js_per_request": mean(js_divergence(predicted, label), clusters),
    }
    return {
        "n_requests": len(predicted),
        **_numbers(statistics, plan),
        "predicted": predicted.mean(axis=0).tolist(),
        "observed": label.mean(axis=0).tolist(),
    }


def _js_of_sums(sums: np.ndarray) -> np.ndarray:
    left, right = (part / part.sum(axis=-1, keepdims=True) for part in np.split(sums, 2, axis=-1))
    return np.asarray(js_divergence(left, right))


def _users_of(scored: Scored) -> Int64[np.ndarray, " R"]:
    """The user of every request of the intents."""
    codes, first = np.unique(scored.request, return_index=True)
    users: Int64[np.ndarray, " R"] = scored.user[first[np.searchsorted(codes, scored.requests)]]
    return users


def _taken(values: np.ndarray, place: Int64[np.ndarray, " N"]) -> np.ndarray:
    """values[place], zeros where nobody is known at all; the caller masks place -1."""
    if not len(values):
        return np.zeros((len(place), *values.shape[1:]), dtype=values.dtype)
    return np.asarray(values[place])


def _numbers(statistics: dict[str, Statistic], plan: Plan) -> dict[str, Number]:
    return {name: _number(found) for name, found in intervals(statistics, plan.resampling).items()}


def _number(found: Interval) -> Number:
    return dict(found._asdict())
