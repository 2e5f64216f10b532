"""What counting and cosines alone achieve on a prepared data set: the lines that a trained model has to beat.

`python -m training.data.counting_baselines <prepared folder>` prints, for the test split, the mean AUC per request of

- the candidate's smoothed click rate, counted on the training split;
- the pair rate: how often this trigger led to this candidate, shrunk to the candidate's own rate;
- the cosine to the trigger, and to the mean of the newest 50 behaviours;
- conditional logits over these (weights fitted on the validation split: on the training split the counts would hold
  the very click that is to be predicted);
- the cosine to a random trigger: the control, which should stay near one half.

It uses no encoder and trains no network. With a context field `goal` it adds the cosine to the goal.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int8, Int64

from service.contract.catalogue import Catalogue
from service.contract.requests import RequestBatch
from training.data.dataset import Split, open_catalogue, split_files
from training.data.request_files import read_requests
from training.metrics import gauc

PRIOR_SHOWN = 20.0  # impressions that the overall rate counts for in a candidate's rate
PRIOR_PAIRS = 10.0  # impressions that the candidate's rate counts for in a pair's rate
NEWEST = 50
NEWTON_STEPS = 25
RIDGE = 1e-3
SEED = 0

Feature = Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Shown:
    """All candidates of a split in columns: rows of the catalogue, their request, clicks and cosines."""

    trigger: Int64[np.ndarray, " N"]
    candidate: Int64[np.ndarray, " N"]
    request: Int64[np.ndarray, " N"]
    clicks: Int8[np.ndarray, " N"]
    cosines: dict[str, Float32[np.ndarray, " N"]]


def counting_baselines(folder: Path) -> dict[str, float]:
    """Mean AUC per test request of every line. Raises DataError when the folder is not prepared."""
    catalogue = open_catalogue(folder)
    train, validation, test = (read_shown(folder, split, catalogue) for split in ("train", "validation", "test"))
    counts = _Counts.of(train, catalogue.n_items)
    fit, judge = _features(validation, counts), _features(test, counts)
    lines = {name: _mean_auc(values, test) for name, values in judge.items()}
    for names in _mixtures(judge):
        weights = fit_choice(_matrix(fit, names), validation.clicks, validation.request)
        lines["logit: " + " + ".join(names)] = _mean_auc(_matrix(judge, names) @ weights, test)
    return lines


def read_shown(folder: Path, split: Split, catalogue: Catalogue) -> Shown:
    """Reads one split; cosines are computed batch by batch, so memory is a few numbers a candidate."""
    random = np.random.default_rng(SEED)
    parts, n_requests = [], 0
    for path in split_files(folder, split):
        for batch, clicks in read_requests(path):
            parts.append(_columns(batch, clicks, catalogue, random, n_requests))
            n_requests += batch.n_requests
    cosines = {name: np.concatenate([part.cosines[name] for part in parts]) for name in parts[0].cosines}
    return Shown(
        np.concatenate([part.trigger for part in parts]),
        np.concatenate([part.candidate for part in parts]),
        np.concatenate([part.request for part in parts]),
        np.concatenate([part.clicks for part in parts]),
        cosines,
    )


def fit_choice(
    features: Float[np.ndarray, "N F"], clicks: Int8[np.ndarray, " N"], request: Int64[np.ndarray, " N"]
) -> Float[np.ndarray, " F"]:
    """Weights of a conditional logit (McFadden 1974): the click is a choice among the candidates of its request.

    Newton's method with a trace of ridge. Requests without a click say nothing here. `request` is ascending.
    """
    kept = np.bincount(request, clicks)[request] > 0
    x, y, codes = features[kept], clicks[kept].astype(np.float64), request[kept]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    owner = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(codes))))
    n_clicks = np.add.reduceat(y, starts)
    weights = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        score = x @ weights
        likely = np.exp(score - np.maximum.reduceat(score, starts)[owner])
        p = likely * (n_clicks / np.add.reduceat(likely, starts))[owner]
        mean = np.add.reduceat(x * p[:, None], starts)
        curvature = (x * p[:, None]).T @ x - (mean / n_clicks[:, None]).T @ mean + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, x.T @ (y - p) - RIDGE * weights)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return weights


@dataclass(frozen=True)
class _Counts:
    """Clicks and impressions of the training split, by candidate and by (trigger, candidate)."""

    rate: Float[np.ndarray, " M1"]
    n_rows: int
    pairs: Int64[np.ndarray, " P"]
    pair_shown: Int64[np.ndarray, " P"]
    pair_clicked: Float[np.ndarray, " P"]

    @classmethod
    def of(cls, train: Shown, n_items: int) -> "_Counts":
        n_rows = n_items + 1
        shown = np.bincount(train.candidate, minlength=n_rows)
        clicked = np.bincount(train.candidate, train.clicks, minlength=n_rows)
        rate = (clicked + PRIOR_SHOWN * train.clicks.mean()) / (shown + PRIOR_SHOWN)
        pairs, index, pair_shown = np.unique(
            train.trigger * n_rows + train.candidate, return_inverse=True, return_counts=True
        )
        return cls(rate, n_rows, pairs, pair_shown, np.bincount(index, train.clicks, minlength=len(pairs)))

    def pair_rate(self, shown: Shown) -> Feature:
        pair = shown.trigger * self.n_rows + shown.candidate
        place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        known = self.pairs[place] == pair
        n_shown, n_clicked = np.where(known, self.pair_shown[place], 0), np.where(known, self.pair_clicked[place], 0.0)
        rate: Feature = (n_clicked + PRIOR_PAIRS * self.rate[shown.candidate]) / (n_shown + PRIOR_PAIRS)
        return rate


def _columns(
    batch: RequestBatch, clicks: Int8[np.ndarray, " N"], catalogue: Catalogue, random: np.random.Generator, first: int
) -> Shown:
    candidate = catalogue.rows(batch.candidate.tolist())
    owner = batch.candidate_request
    trigger = catalogue.rows(batch.trigger.tolist())[owner]
    unit = _unit_vectors(catalogue)
    cosines = {
        "cosine to trigger": catalogue.similarity(trigger, candidate),
        "cosine to history": np.einsum("nd,nd->n", _history_means(batch, catalogue, unit)[owner], unit[candidate]),
        "cosine to a random trigger": catalogue.similarity(
            random.integers(1, catalogue.n_items + 1, batch.n_requests)[owner], candidate
        ),
    }
    if "goal" in batch.context:
        cosines["cosine to goal"] = catalogue.similarity(
            catalogue.rows(batch.context["goal"].tolist())[owner], candidate
        )
    return Shown(trigger, candidate, owner + first, clicks, cosines)


def _unit_vectors(catalogue: Catalogue) -> Float32[np.ndarray, "M1 D"]:
    norms = np.where(catalogue.norms > 0, catalogue.norms, 1)[:, None]
    return (catalogue.codes / norms).astype(np.float32)


def _history_means(
    batch: RequestBatch, catalogue: Catalogue, unit: Float32[np.ndarray, "M1 D"]
) -> Float32[np.ndarray, "R D"]:
    """The mean direction of each request's newest behaviours; zeros without any."""
    rows = catalogue.rows(batch.behaviour_item.tolist())
    means = np.zeros((batch.n_requests, unit.shape[1]), dtype=np.float32)
    for r in range(batch.n_requests):
        start, end = batch.behaviour_offsets[r], batch.behaviour_offsets[r + 1]
        newest = start + np.argsort(batch.behaviour_at[start:end], kind="stable")[-NEWEST:]
        if len(newest):
            means[r] = unit[rows[newest]].mean(axis=0)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(lengths > 0, lengths, 1).astype(np.float32)


def _features(shown: Shown, counts: _Counts) -> dict[str, Feature]:
    rates = {"click rate": counts.rate[shown.candidate], "pair rate": counts.pair_rate(shown)}
    return {name: np.log(rate) for name, rate in rates.items()} | dict(shown.cosines)


def _mixtures(features: dict[str, Feature]) -> list[list[str]]:
    basic = ["click rate", "cosine to trigger"]
    full = [*basic, "pair rate", "cosine to history"]
    return [basic, full] + ([[*full, "cosine to goal"]] if "cosine to goal" in features else [])


def _matrix(features: dict[str, Feature], names: Sequence[str]) -> Float[np.ndarray, "N F"]:
    return np.stack([features[name] for name in names], axis=1).astype(np.float64)


def _mean_auc(scores: Feature, shown: Shown) -> float:
    return gauc(scores.astype(np.float64), shown.clicks, shown.request, weighted=False)


def main() -> None:
    """Prints the lines as JSON."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.data.counting_baselines <prepared folder>")
    print(json.dumps({k: round(v, 4) for k, v in counting_baselines(Path(sys.argv[1])).items()}, indent=1))


if __name__ == "__main__":
    main()
