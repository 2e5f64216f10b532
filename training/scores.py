"""Runs a model over a split and sums its scores up in numbers. Called by `training.loop` (validation) and
`training.evaluate`; scores are kept as files for paired tests between runs.

`all_numbers` is the cheap set that a training can afford at every validation; `training.measures` has all of them, with
intervals. The intent a model is given here is always its own: labels are compared with, never fed.
"""

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from training import metrics
from training.data.batches import Batch
from training.data.errors import DataError
from training.data.whole_files import write_whole
from training.losses import SMALLEST_PROBABILITY


@dataclass(frozen=True)
class Scored:
    """Every candidate of a split: logit, click, group codes of its user and request; and every request's intents.

    `requests` are the codes of the requests in the order of the intents. A candidate's item, level and leaf category
    are facts of the split, not of the model: `training.split_facts` reads them in the order of `in_order`.
    """

    logits: Float[np.ndarray, " N"]
    clicks: Float[np.ndarray, " N"]
    user: Int64[np.ndarray, " N"]
    request: Int64[np.ndarray, " N"]
    requests: Int64[np.ndarray, " R"]
    has_intent: Bool[np.ndarray, " R"]
    intent_label: Float[np.ndarray, "R S"]
    intent: Float[np.ndarray, "R S"] | None

    def in_order(self) -> "Scored":
        """The same by ascending request code: the one order in which two models' scores lie side by side.

        Within a request candidates stay as they are. Batches come in another order for every encoder.
        """
        rows, places = np.argsort(self.request, kind="stable"), np.argsort(self.requests, kind="stable")
        return Scored(
            logits=self.logits[rows],
            clicks=self.clicks[rows],
            user=self.user[rows],
            request=self.request[rows],
            requests=self.requests[places],
            has_intent=self.has_intent[places],
            intent_label=self.intent_label[places],
            intent=None if self.intent is None else self.intent[places],
        )

    def save(self, path: Path) -> None:
        """Writes them as .npz, whole or not at all; about 20 bytes a candidate."""
        buffer = io.BytesIO()
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        np.savez(buffer, **{**arrays, "clicks": self.clicks.astype(np.int8)})
        write_whole(path, buffer.getvalue())


def load_scores(path: Path) -> Scored:
    """The reverse of `Scored.save`. Raises DataError for a file that is not there or is none of these."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays: dict[str, Any] = {f.name: saved.get(f.name) for f in fields(Scored)}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no scores can be read ({error}); evaluate the run again") from error
    missing = [name for name, value in arrays.items() if value is None and name != "intent"]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; evaluate the run again")
    return Scored(**{**arrays, "clicks": arrays["clicks"].astype(np.float32)})


def check_same_split(left: Scored, right: Scored) -> None:
    """Raises ValueError unless both, in order, are scores of the same candidates with the same clicks."""
    same = np.array_equal(left.request, right.request) and np.array_equal(left.clicks, right.clicks)
    if not same:
        raise ValueError(
            f"the two rankers were not scored on the same requests ({len(left.request)} and {len(right.request)} "
            "candidates, or others, or other clicks); score both on the same split of the same data"
        )


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
    return joined_scores(seen)


def _scored(batch: Batch, logits: Tensor, intent: Tensor | None) -> Scored:
    request = batch.inputs.candidate_request.numpy()
    return Scored(
        logits=logits.numpy(),
        clicks=batch.clicks.numpy(),
        user=batch.user_group[request],
        request=batch.request_group[request],
        requests=batch.request_group,
        has_intent=batch.has_intent.numpy(),
        intent_label=batch.intent.numpy(),
        intent=None if intent is None else intent.numpy(),
    )


def joined_scores(seen: list[Scored]) -> Scored:
    """The scores of several batches as one. Raises ValueError when there are none."""
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
    """What a validation reports about a model: no interval, nothing by groups."""
    return {
        **metrics.ranking_numbers(scored.logits, scored.clicks, scored.user, scored.request),
        "log_loss": metrics.log_loss(scored.logits, scored.clicks),
        **intent_numbers(scored),
    }
