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
from training.metrics import js_divergence, js_of_means, js_per_request
from training.report_cells import averaged, spread
from training.scores import Scored
from training.truth import ORACLES, Truth, clicked_levels, intent_to_truth, share_of_oracle


def beside_truth(scored: Sequence[Scored], truth: Truth) -> dict[str, Any]:
    """Of the seeds of one ranker: `oracle_shares` by oracle; `intent_to_truth` and `true_intent` by kind of visitor.

    The last two only where intents are predicted at the truth's own number of levels. Raises ValueError for scores of
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
        found["true_intent"] = averaged([predicted_observed_true(one, truth) for one in scored])
    return found


def predicted_observed_true(scored: Scored, truth: Truth) -> dict[str, dict[str, Any]]:
    """By kind of visitor the three mean intents by level, and their divergences: DAIAN's Fig. 5 with the truth in it.

    All three over the same requests: those with a click to observe and with a true click share. Kinds without such a
    request are left out. The intents must be of requests and levels that `intent_to_truth` has accepted.
    """
    assert scored.intent is not None
    order = np.argsort(truth.request)
    place = order[np.searchsorted(truth.request, scored.requests, sorter=order)]
    share = truth.click_share[place]
    both = scored.has_intent & (share.sum(axis=1) > 0)
    found: dict[str, dict[str, Any]] = {}
    for kind, members in truth.groups().items():
        rows = members[place] & both
        if not rows.any():
            continue
        predicted, observed = scored.intent[rows].astype(np.float64), scored.intent_label[rows].astype(np.float64)
        true = share[rows]
        found[kind] = {
            "n_requests": int(rows.sum()),
            "js_of_means": js_of_means(predicted, observed),
            "js_per_request": js_per_request(predicted, observed),
            "js_to_true": js_of_means(predicted, true),
            "predicted": predicted.mean(axis=0).tolist(),
            "observed": observed.mean(axis=0).tolist(),
            "true": true.mean(axis=0).tolist(),
        }
    return found


def constant_intents(data_folder: Path, scale: SimilarityScale) -> dict[str, Float64[np.ndarray, " S"]]:
    """The constants by name; no `training_mean` without a usable click.

    `scale`: the encoder's, whose levels the labels have. The data set may leave its range to be fitted.
    """
    n_levels = scale.n_levels
    total = np.zeros(n_levels)
    for batch, owner, level in clicked_levels(data_folder, scale):
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
