"""Looking inside a trained model: its gates and shares on a split, its scores under triggers of others, its size.

Called by `training.compare_worker` for runs of a comparison and by `training.evaluate_inside` for one run; reports
print what is found here. Explanations of a result begin with these numbers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int8, Int64
from torch import nn

from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from training.counts import ITEM_PRIOR
from training.data.batches import Batch, Position, in_budget, like_shapes, to_batch
from training.data.dataset import Split, split_files
from training.data.pools import RawPool
from training.data.request_files import read_requests
from training.scores import Scored, score_batches
from training.split_facts import Candidates, TrainingDays
from training.truth import Truth

COLD_BELOW = int(ITEM_PRIOR)
SPECIFIC = 0.5  # share of a request's intent in the highest level, and in the two lowest for a broad one
_SEED = 0
_BATCH_REQUESTS = 2048
_BATCH_CANDIDATES = 4096


@torch.no_grad()
def look_inside(
    model: Any, batches: Iterable[Batch], candidates: Candidates, training: TrainingDays, truth: Truth | None = None
) -> dict[str, dict[str, float]]:
    """Means of the model's extras (gates, shares) by group of candidates; empty for a model without any.

    specific and broad: the visitor's true kind with `truth`; without, requests whose clicks lie, for at least half, in
    the highest level or in the two lowest. cold: candidates shown in fewer than 20 training impressions. `candidates`
    are those of the same split, in order.
    """
    extras: dict[str, list[np.ndarray]] = {}
    owners: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    for batch in batches:
        outputs = model.score(model.encode_request(batch.inputs), batch.inputs)
        if not outputs.extras:
            return {}
        request = batch.inputs.candidate_request.numpy()
        owners.append(batch.request_group[request])
        kinds.append((_clicked_kind(batch) if truth is None else _true_kind(batch, truth))[request])
        for name, values in outputs.extras.items():
            extras.setdefault(name, []).append(values.numpy())
    if not owners:
        return {}
    order = np.argsort(np.concatenate(owners), kind="stable")
    kind = np.concatenate(kinds)[order]
    cold = training.shown[candidates.item] < COLD_BELOW
    groups = {"all": kind == kind, "specific": kind == 1, "broad": kind == 2, "cold": cold, "warm": ~cold}
    found = {name: np.concatenate(values)[order] for name, values in extras.items()}
    return {name: {group: _mean(values, rows) for group, rows in groups.items()} for name, values in found.items()}


def _true_kind(batch: Batch, truth: Truth) -> Int64[np.ndarray, " R"]:
    """1 specific, 2 broad, 0 neither."""
    specific = np.isin(batch.request_group, truth.request[truth.specific])
    broad = np.isin(batch.request_group, truth.request[truth.broad])
    return np.where(specific, 1, np.where(broad, 2, 0)).astype(np.int64)


def _clicked_kind(batch: Batch) -> Int64[np.ndarray, " R"]:
    """1 specific, 2 broad, 0 neither or unknown."""
    intent, has_intent = batch.intent.numpy(), batch.has_intent.numpy()
    specific, broad = intent[:, -1] >= SPECIFIC, intent[:, :2].sum(axis=1) >= SPECIFIC
    return np.where(has_intent & specific, 1, np.where(has_intent & broad, 2, 0)).astype(np.int64)


def _mean(values: np.ndarray, rows: Bool[np.ndarray, " N"]) -> float:
    return float(values[rows].mean()) if rows.any() else float("nan")


def permuted_trigger_scores(model: Any, encoder: Encoder, data_folder: Path, split: Split = "test") -> Scored:
    """The split with every request under the trigger of another: what a model owes to the trigger is lost.

    Triggers are permuted among the requests of a batch. The click that opened the page, which the encoder drops from
    the history by the trigger's id, is taken out before: it would tell the true trigger.
    """
    return score_batches(model, _permuted_batches(encoder, data_folder, split))


def _permuted_batches(encoder: Encoder, data_folder: Path, split: Split) -> Iterator[Batch]:
    for permuted, clicks in permuted_requests(encoder.rules, data_folder, split):
        pool = RawPool(permuted, clicks, encoder)
        order = like_shapes(pool.n_behaviours, pool.n_candidates, _BATCH_CANDIDATES)
        for part in in_budget(order, pool.n_candidates[order], _BATCH_CANDIDATES):
            yield to_batch(pool.take(part), Position())


def permuted_requests(
    rules: HistoryRules, data_folder: Path, split: Split
) -> Iterator[tuple[RequestBatch, Int8[np.ndarray, " N"]]]:
    """The requests of a split under each other's triggers, with their clicks; the same at every call."""
    random = np.random.default_rng(_SEED)
    for path in split_files(data_folder, split):
        for requests, clicks in read_requests(path, _BATCH_REQUESTS):
            yield with_permuted_triggers(requests, rules, random), clicks


def with_permuted_triggers(requests: RequestBatch, rules: HistoryRules, random: np.random.Generator) -> RequestBatch:
    """The same requests under each other's triggers, without the clicks that opened their pages."""
    owner = requests.behaviour_request
    age = requests.requested_at[owner] - requests.behaviour_at
    opened = (requests.behaviour_item == requests.trigger[owner]) & (age <= rules.opening_window_s * 1_000)
    kept = np.flatnonzero(~opened)
    lengths = np.bincount(owner[kept], minlength=requests.n_requests)
    return replace(
        requests,
        trigger=requests.trigger[random.permutation(requests.n_requests)],
        behaviour_item=requests.behaviour_item[kept],
        behaviour_at=requests.behaviour_at[kept],
        behaviour_type=requests.behaviour_type[kept],
        behaviour_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def n_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers in embedding tables, and in everything else."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    sizes: Mapping[bool, list[int]] = {True: [], False: []}
    for parameter in model.parameters():
        sizes[id(parameter) in tables].append(parameter.numel())
    return {"tables": int(np.sum(sizes[True], dtype=np.int64)), "network": int(np.sum(sizes[False], dtype=np.int64))}
