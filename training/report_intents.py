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

from service.contract.rules import SimilarityScale
from training.data.dataset import open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.metrics import js_divergence
from training.report_cells import spread
from training.scores import Scored
from training.truth import ORACLES, Truth, intent_to_truth, share_of_oracle


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
    dataset, catalogue = open_dataset(data_folder), open_catalogue(data_folder)
    scale = SimilarityScale(*(dataset.similarity_range or (0.0, 1.0)), dataset.n_levels)
    total = np.zeros(dataset.n_levels)
    for path in split_files(data_folder, "train"):
        for batch, clicks in read_requests(path):
            clicked = clicks == 1
            owner = batch.candidate_request[clicked]
            trigger = catalogue.rows(batch.trigger.tolist())[owner]
            level = scale.level(catalogue.similarity(trigger, catalogue.rows(batch.candidate[clicked].tolist())))
            cell = owner[level > 0] * dataset.n_levels + level[level > 0] - 1
            counted = np.bincount(cell, minlength=batch.n_requests * dataset.n_levels).reshape(batch.n_requests, -1)
            labelled = counted[counted.sum(axis=1) > 0]
            total += (labelled / labelled.sum(axis=1, keepdims=True)).sum(axis=0)
    found = {"uniform": np.full(dataset.n_levels, 1 / dataset.n_levels)}
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
