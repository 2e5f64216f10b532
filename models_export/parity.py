"""ONNX Runtime against PyTorch: the exported graphs must give the logits that the trained model gives.

`models_export.export` calls `check_parity` before a bundle becomes current; `check_exportable` does the same on random
weights and inputs in a few seconds, before a training starts. The graphs are opened as the service opens them: from
bytes, tables mapped from disk, one thread.

Never here: the service's own replay of golden requests (`service.runtime`), quality of a model (`training.evaluate`).
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from models_export.errors import ParityError
from models_export.graph import (
    CANDIDATE_GRAPH,
    INTENT,
    LOGITS,
    REQUEST_GRAPH,
    example_inputs,
    export_graphs,
)
from service.contract.encoder import Encoder, EncoderSizes, ModelInputs
from service.contract.requests import RequestBatch
from service.contract.rules import MISSING
from training.layers.crosses import HashedCross
from training.models.spec import RankingModel

TOLERANCE = 1e-5
N_CANDIDATES = (1, 7, 512)
Twist = Literal["as_is", "no_vectors", "unknown_trigger", "unknown_user", "unknown_candidates"]
TWISTS: tuple[Twist, ...] = ("as_is", "no_vectors", "unknown_trigger", "unknown_user", "unknown_candidates")

# Sizes (L, K, N) that differ from the example of the export and from each other in every axis; ones are the edge cases.
_FREE_SIZES = ((1, 1, 1), (7, 2, 3), (50, 50, 64), (2, 9, 5))
_STRANGER = "\u2205 not in any catalogue"  # ids of shops hold no such word
_DRY_RUN_IDS = 100
_DRY_RUN_SPREAD = 0.1


class Scores(NamedTuple):
    """Scores of one request: logits [N]; intent [S], or None where the model predicts none."""

    logits: Float32[np.ndarray, " N"]
    intent: Float32[np.ndarray, " S"] | None


@dataclass(frozen=True)
class ParityReport:
    """The largest absolute difference of logits and intents over all cases, and where it was found."""

    n_cases: int
    max_difference: float
    worst_case: str

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {**vars(self), "tolerance": TOLERANCE}


class ExportedModel:
    """Both graphs of an exported folder in ONNX Runtime; scores one encoded request at a time."""

    def __init__(self, folder: Path) -> None:
        self.tables = {path.stem: np.load(path, mmap_mode="r") for path in sorted((folder / "tables").glob("*.npy"))}
        self._request = _open(folder / REQUEST_GRAPH)
        self._candidates = _open(folder / CANDIDATE_GRAPH)
        self._bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(table) for name, table in self.tables.items()}

    def score(self, inputs: ModelInputs) -> Scores:
        """The scores of the one request in `inputs` (R = 1)."""
        given = {**inputs._asdict(), **self._bound}
        state = _run(self._request, given)
        outputs = _run(self._candidates, {**given, **state})
        intent = state.get(INTENT)
        return Scores(outputs[LOGITS], None if intent is None else intent[0])


def score_in_torch(model: nn.Module, inputs: ModelInputs) -> Scores:
    """What PyTorch gives for the same request. The model must be in eval mode."""
    assert isinstance(model, RankingModel)
    tensors: ModelInputs = inputs.map(torch.from_numpy)
    with torch.no_grad():
        state = model.encode_request(tensors)
        logits = model.score(state, tensors).logits
    return Scores(logits.numpy(), state[INTENT][0].numpy() if INTENT in state else None)


def check_parity(model: nn.Module, folder: Path, encoder: Encoder, requests: RequestBatch) -> ParityReport:
    """Compare over {0, 1, longest history} x five twists x N of `N_CANDIDATES`, starting from `requests`.

    Raises `ParityError` where logits or intents differ by more than `TOLERANCE` or are not finite.
    """
    return compare(model, ExportedModel(folder), _raw_cases(encoder, requests))


def check_exportable(model: nn.Module, sizes: EncoderSizes) -> ParityReport:
    """Export a copy of `model` with short tables and large random weights, and compare on inputs of several sizes.

    Called before a training starts, so that a model that cannot be exported costs seconds and not a training. Leaves
    nothing on disk, and the model and torch's random numbers as they were. Raises `ExportError` (or its `ParityError`)
    saying what is wrong.
    """
    trial = _with_short_tables(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in trial.parameters():  # weights at their start are so small that errors stay below the tolerance
            nn.init.normal_(parameter, 0.0, _DRY_RUN_SPREAD)
    return check_as_it_stands(trial, _with_few_ids(sizes))


def refuse_if_not_exportable(model: RankingModel, encoder: Encoder) -> None:
    """`check_exportable` as `daian train` calls it before the first step (entry point daian.export_check)."""
    assert isinstance(model, nn.Module)
    check_exportable(model, encoder.sizes)


def check_as_it_stands(model: nn.Module, sizes: EncoderSizes) -> ParityReport:
    """The same with the model's own weights and tables."""
    with tempfile.TemporaryDirectory(prefix="daian-export-") as temporary:
        folder = Path(temporary)
        export_graphs(model, sizes, {"run": "check"}, min_table_bytes=1).save(folder)
        return compare(model.eval(), ExportedModel(folder), _random_cases(sizes))


def compare(model: nn.Module, exported: ExportedModel, cases: Iterator[tuple[str, ModelInputs]]) -> ParityReport:
    """The largest difference over `cases` (name, inputs of one request). Raises `ParityError` above `TOLERANCE`."""
    n_cases, worst, worst_case = 0, 0.0, ""
    for name, inputs in cases:
        difference = _difference(name, score_in_torch(model, inputs), exported.score(inputs))
        n_cases += 1
        if difference >= worst:
            worst, worst_case = difference, name
    if n_cases == 0:
        raise ParityError("parity was asked for without a single case: give at least one request")
    return ParityReport(n_cases, worst, worst_case)


def _difference(case: str, expected: Scores, found: Scores) -> float:
    largest = 0.0
    for what, want, got in (("logits", expected.logits, found.logits), ("intent", expected.intent, found.intent)):
        if want is None and got is None:
            continue
        if want is None or got is None or want.shape != got.shape:
            raise ParityError(f"{case}: {what} are there in one of PyTorch and ONNX Runtime only, or differ in shape")
        if not (np.isfinite(want).all() and np.isfinite(got).all()):
            side = "ONNX Runtime" if np.isfinite(want).all() else "PyTorch"
            raise ParityError(f"{case}: {what} of {side} are not finite: look for masks of -inf and divisions by zero")
        difference = float(np.abs(want - got).max(initial=0.0))
        if difference > TOLERANCE:
            raise ParityError(
                f"{case}: {what} differ by {difference:.3g} between PyTorch and ONNX Runtime, allowed is {TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest


def _with_short_tables(model: nn.Module) -> nn.Module:
    """A copy in which no table of ids has more than `_DRY_RUN_IDS` rows; the large tables are never copied.

    Tables of hashes stay whole: a hash of few ids can fall anywhere.
    """
    hashed = {id(module.weights) for module in model.modules() if isinstance(module, HashedCross)}
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in hashed]
    short = {id(table): nn.Parameter(table.detach()[:_DRY_RUN_IDS].clone()) for table in tables}
    return copy.deepcopy(model, dict(short))


def _with_few_ids(sizes: EncoderSizes) -> EncoderSizes:
    def few(counts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(count, _DRY_RUN_IDS) for count in counts)

    return replace(sizes, user=few(sizes.user), context=few(sizes.context), item=few(sizes.item))


# --- cases -----------------------------------------------------------------------------------------------------------


def _random_cases(sizes: EncoderSizes) -> Iterator[tuple[str, ModelInputs]]:
    """Random inputs of several sizes, and each of them with nothing in history and related history."""
    for L, K, N in _FREE_SIZES:
        inputs: ModelInputs = example_inputs(sizes, L, K, N, seed=L).map(Tensor.numpy)
        yield f"L={L} K={K} N={N}", inputs
        yield f"L={L} K={K} N={N}, empty history", _emptied(_emptied(inputs, "history"), "related")


def _raw_cases(encoder: Encoder, requests: RequestBatch) -> Iterator[tuple[str, ModelInputs]]:
    rng = np.random.default_rng(0)
    lengths = (0, 1, encoder.rules.max_length)
    for case, (length, twist, n) in enumerate(product(lengths, TWISTS, N_CANDIDATES)):
        row = requests.take(np.array([case % requests.n_requests])).to_rows()[0]
        row = _with_history(row, encoder, length, rng) | {"candidates": _items(encoder, n, rng)}
        inputs = encoder.encode(RequestBatch.from_rows([_twisted(row, twist)]))
        yield f"{length} behaviours, {twist}, N={n}", _without_vectors(inputs) if twist == "no_vectors" else inputs


def _with_history(row: dict[str, Any], encoder: Encoder, length: int, rng: np.random.Generator) -> dict[str, Any]:
    """The request with `length` behaviours inside the window, half of them on the items nearest to the trigger."""
    rules = encoder.rules
    step_ms = min(rules.window_s, rules.related_window_s) * 1000 // (length + 1)
    items = _items(encoder, length, rng)
    near = _nearest(encoder, row["trigger"], (length + 1) // 2)
    items[: len(near)] = near
    at = [row["requested_at"] - (i + 1) * step_ms for i in range(length)]
    behaviours = [{"item": item, "at": t, "type": rules.types[0]} for item, t in zip(items, at, strict=True)]
    return {**row, "behaviours": behaviours}


def _twisted(row: dict[str, Any], twist: Twist) -> dict[str, Any]:
    if twist == "unknown_trigger":
        return {**row, "trigger": _STRANGER}
    if twist == "unknown_user":
        return {**row, "user": {**row["user"], "user": _STRANGER}}
    if twist == "unknown_candidates":
        return {**row, "candidates": [f"{_STRANGER} {i}" for i in range(len(row["candidates"]))]}
    return row


def _items(encoder: Encoder, n: int, rng: np.random.Generator) -> list[str]:
    return encoder.catalogue.ids(rng.integers(1, encoder.catalogue.n_items + 1, n))


def _nearest(encoder: Encoder, trigger: str, n: int) -> list[str]:
    catalogue = encoder.catalogue
    row = catalogue.rows([trigger])
    others = np.setdiff1d(np.arange(1, catalogue.n_items + 1), row)
    nearest = others[np.argsort(-catalogue.similarity(row, others), kind="stable")][:n]
    return catalogue.ids(nearest)


def _without_vectors(inputs: ModelInputs) -> ModelInputs:
    """The same request in a shop whose items have no vectors: nothing is similar, nothing is related."""
    return _emptied(inputs, "related")._replace(
        history_similarity=np.full_like(inputs.history_similarity, MISSING),
        candidate_similarity=np.full_like(inputs.candidate_similarity, MISSING),
    )


def _emptied(inputs: ModelInputs, sequence: Literal["history", "related"]) -> ModelInputs:
    """The same request without its history, or without its related history."""
    arrays = {name: getattr(inputs, name) for name in ModelInputs._fields if name.startswith(sequence)}
    empty = {name: np.full_like(array, MISSING if name.endswith("similarity") else 0) for name, array in arrays.items()}
    return inputs._replace(**empty)


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, given: dict[str, Any]) -> dict[str, np.ndarray]:
    names: Sequence[str] = [node.name for node in session.get_outputs()]
    feed = {node.name: given[node.name] for node in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))
