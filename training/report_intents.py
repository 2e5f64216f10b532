"""What is known of a simulated world beside what models reach, and what a constant would reach in their place.

Called by `training.report_numbers` and `training.evaluate_inside`. A claim that a constant passes says nothing.
`uniform`: every level alike. `training_mean`: the mean label of the training requests, known before the first test
request. Divergences are natural-logarithm JS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from training.data.dataset import open_dataset
from training.metrics import js_divergence
from training.report_cells import spread
from training.scores import Scored
from training.truth import ORACLES, Truth, clicked_levels, intent_to_truth, share_of_oracle


def beside_truth(scored: Sequence[Scored], truth: Truth) -> dict[str, Any]:
    """Of the seeds of one ranker: `oracle_shares` by oracle, and `intent_to_truth` by kind of visitor.

    The second only where intents are predicted at the truth's own number of levels. Raises ValueError for scores of
    another split.
    """
    shares = {name: [share_of_oracle(one, truth, name) for one in scored] for name in ORACLES}
    found: dict[str, Any] = {
        "oracle_shares": {
            name: {key: spread([one[key] for one in each]) for key in each[0]} for name, each in shares.items()
        }
    }
    if scored[0].intent is not None and scored[0].intent.shape[1] == truth.intent.shape[1]:
        near = [intent_to_truth(one, truth) for one in scored]
        found["intent_to_truth"] = {
            kind: {key: spread([one[kind][key] for one in near]) for key in near[0][kind]} for kind in near[0]
        }
    return found


def constant_intents(data_folder: Path) -> dict[str, Float64[np.ndarray, " S"]]:
    """The constants by name, at the data set's own number of levels; no `training_mean` without a usable click."""
    n_levels = open_dataset(data_folder).n_levels
    total = np.zeros(n_levels)
    for batch, owner, level in clicked_levels(data_folder):
        counted = np.bincount(owner * n_levels + level - 1, minlength=batch.n_requests * n_levels)
        labels = counted.reshape(batch.n_requests, -1)
        labelled = labels[labels.sum(axis=1) > 0]
        total += (labelled / labelled.sum(axis=1, keepdims=True)).sum(axis=0)
    found = {"uniform": np.full(n_levels, 1 / n_levels)}
    return found | ({"training_mean": total / total.sum()} if total.sum() else {})


def constants_to_truth(
    constants: Mapping[str, Float64[np.ndarray, " S"]], scored: Scored, truth: Truth
) -> dict[str, dict[str, float]]:
    """JS of means of each constant to the mean true click share, by kind of visitor, then by constant."""
    found: dict[str, dict[str, float]] = {}
    for name, constant in constants.items():
        intent = np.tile(constant.astype(np.float32), (len(scored.requests), 1))
        for kind, numbers in intent_to_truth(replace(scored, intent=intent), truth).items():
            found.setdefault(kind, {})[name] = numbers["js_of_means"]
    return found


def constants_to_observed(
    constants: Mapping[str, Float64[np.ndarray, " S"]], kinds: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The same to the mean observed label, by kind of user as `training.measures.intent` has them."""
    return {
        kind: {
            name: float(js_divergence(constant[None], np.array([part["observed"]]))[0])
            for name, constant in constants.items()
        }
        for kind, part in kinds.items()
        if part.get("n_requests") and all(len(part["observed"]) == len(constant) for constant in constants.values())
    }
