"""Runs a model over a split and sums its scores up in numbers. Called by `training.loop` (validation) and
`training.evaluate`.

The intent a model is given here is always its own: labels are compared with, never fed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from training import metrics
from training.data.batches import Batch
from training.losses import SMALLEST_PROBABILITY


@dataclass(frozen=True)
class Scored:
    """Every candidate of a split: logit, click, group codes of its user and request; and the requests' intents."""

    logits: Float[np.ndarray, " N"]
    clicks: Float[np.ndarray, " N"]
    user: Int64[np.ndarray, " N"]
    request: Int64[np.ndarray, " N"]
    has_intent: Bool[np.ndarray, " R"]
    intent_label: Float[np.ndarray, "R S"]
    intent: Float[np.ndarray, "R S"] | None


@torch.no_grad()
def score_batches(model: Any, batches: Iterable[Batch]) -> Scored:
    """Scores all batches in evaluation mode, then restores the mode. Raises ValueError when there are none."""
    was_training = model.training
    model.eval()
    seen: list[Scored] = []
    for batch in batches:
        state = model.encode_request(batch.inputs)
        seen.append(_scored(batch, model.score(state, batch.inputs).logits, state.get("intent")))
    model.train(was_training)
    return _joined(seen)


def _scored(batch: Batch, logits: Tensor, intent: Tensor | None) -> Scored:
    request = batch.inputs.candidate_request.numpy()
    return Scored(
        logits=logits.numpy(),
        clicks=batch.clicks.numpy(),
        user=batch.user_group[request],
        request=batch.request_group[request],
        has_intent=batch.has_intent.numpy(),
        intent_label=batch.intent.numpy(),
        intent=None if intent is None else intent.numpy(),
    )


def _joined(seen: list[Scored]) -> Scored:
    if not seen:
        raise ValueError("the split holds no request to score; prepare the data again with a larger share for it")
    columns = zip(*([getattr(part, f.name) for f in fields(Scored)] for part in seen), strict=True)
    return Scored(*(None if column[0] is None else np.concatenate(column) for column in columns))  # type: ignore[arg-type]


def intent_numbers(scored: Scored) -> dict[str, float]:
    """How near predicted intents are to observed ones, over requests with a label; empty without a prediction."""
    if scored.intent is None or not scored.has_intent.any():
        return {}
    predicted = scored.intent[scored.has_intent].astype(np.float64)
    label = scored.intent_label[scored.has_intent].astype(np.float64)
    ratio = np.divide(label, np.maximum(predicted, SMALLEST_PROBABILITY), out=np.ones_like(label), where=label > 0)
    return {
        "intent_kl": float((label * np.log(ratio)).sum(-1).mean()),
        "intent_js_of_means": metrics.js_of_means(predicted, label),
        "intent_js_per_request": metrics.js_per_request(predicted, label),
    }


def all_numbers(scored: Scored) -> dict[str, float]:
    """Everything that is reported about a model on a split."""
    return {
        **metrics.ranking_numbers(scored.logits, scored.clicks, scored.user, scored.request),
        "log_loss": metrics.log_loss(scored.logits, scored.clicks),
        **intent_numbers(scored),
    }
