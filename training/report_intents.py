"""What a constant would reach where DAIAN's intents are measured: a claim that a constant passes says nothing.

Called by `training.report_numbers`. `uniform`: every level alike. `training_mean`: the mean label of the training
requests, known before the first test request. Divergences are natural-logarithm JS.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from service.contract.rules import SimilarityScale
from training.data.dataset import open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.metrics import js_divergence
from training.scores import Scored
from training.truth import Truth, intent_to_truth


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
