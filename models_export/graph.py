"""The two ONNX graphs of a model: what is computed once per request, and what once per candidate.

`models_export.export` calls `export_graphs` when a bundle is written, `models_export.parity` before a training starts.
The graphs speak the words of the contract: inputs are named after the fields of `ModelInputs`, what the request graph
hands to the candidate graph is named `state.<key>`, and embedding tables are not in the graphs at all but inputs named
`table.<parameter>`, so that serving maps them from disk.

Never here: strings, times, stores (the encoder has them), ONNX Runtime (`parity` runs the graphs).
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models_export.errors import ExportError
from models_export.surgery import (
    EXPORTER,
    OPSET,
    TABLE_PREFIX,
    describe,
    drop_unread_inputs,
    finish,
    name_axes,
    table_parameters,
    take_tables_out,
)
from service.contract.encoder import REQUEST_SIDE, EncoderSizes, ModelInputs
from training.models.spec import RankingModel

REQUEST_GRAPH = "request.onnx"
CANDIDATE_GRAPH = "candidates.onnx"
STATE_PREFIX = "state."
INTENT = "intent"
LOGITS = "logits"

# Smaller tables (ages, levels, genders) stay in the graph: an input more costs each call, a copy more costs nothing.
MIN_TABLE_BYTES = 16 * 1024

# The exporter's optimiser takes a constant of up to this size for zero and deletes the addition: 1 / (x + 1e-8) is then
# infinite in ONNX Runtime alone.
VANISHING_CONSTANT = 1e-8

_CANDIDATE_INPUTS = ("candidate_fields", "candidate_similarity")
_FREE_AXES = {"L": ("history_fields", "history_similarity", "history_age"),
              "K": ("related_fields", "related_similarity", "related_age")}  # fmt: skip


@dataclass(frozen=True)
class Graphs:
    """Both graphs and the tables they share, as they lie in a bundle.

    `tables` maps the name of a graph input to the float32 array [rows, width] bound to it; `state` lists the keys that
    travel from the request graph to the candidate graph.
    """

    request: ModelProto
    candidates: ModelProto
    tables: Mapping[str, np.ndarray]
    state: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Inputs, outputs and operators of each graph, for the manifest; the service compares them when it loads."""
        return {
            "request": describe(self.request),
            "candidates": describe(self.candidates),
            "tables": {name: {"dtype": str(t.dtype), "shape": list(t.shape)} for name, t in self.tables.items()},
            "opset": OPSET,
            "exporter": EXPORTER,
        }

    def save(self, folder: Path) -> None:
        """Write `request.onnx`, `candidates.onnx` and `tables/<name>.npy` under `folder`."""
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        (folder / REQUEST_GRAPH).write_bytes(self.request.SerializeToString())
        (folder / CANDIDATE_GRAPH).write_bytes(self.candidates.SerializeToString())
        for name, table in self.tables.items():
            np.save(folder / "tables" / f"{name}.npy", table, allow_pickle=False)


def export_graphs(
    model: nn.Module, sizes: EncoderSizes, metadata: Mapping[str, str], min_table_bytes: int = MIN_TABLE_BYTES
) -> Graphs:
    """Export `model` as it stands (weights included) for requests encoded with `sizes`.

    `metadata` is written into both graphs, beside the contract's version and the versions of the exporter. Raises
    `ExportError` if the model uses what cannot be exported or what the exporter is known to get wrong.
    """
    if not isinstance(model, RankingModel):
        raise ExportError(f"{type(model).__name__} is not in two phases: it needs encode_request and score")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _quiet_exporter(), _no_shape_checks():
            return _export_both(model, model, sizes, metadata, min_table_bytes)
    finally:
        model.train(was_training)


def example_inputs(
    sizes: EncoderSizes, n_behaviours: int, n_related: int, n_candidates: int, seed: int = 0
) -> ModelInputs:
    """Random but valid inputs of one request: L = `n_behaviours`, K = `n_related`, N = `n_candidates`."""
    rng = np.random.default_rng(seed)

    def ids(sizes_of_fields: Sequence[int], *shape: int) -> Tensor:
        fields = [rng.integers(0, size, shape) for size in sizes_of_fields]
        return torch.from_numpy(np.stack(fields, -1) if fields else np.zeros((*shape, 0), np.int64))

    def similarities(*shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))

    def ages(*shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(1, sizes.n_age_bins, shape))

    L, K, N = n_behaviours, n_related, n_candidates
    return ModelInputs(
        user_fields=ids(sizes.user, 1), context_fields=ids(sizes.context, 1), trigger_fields=ids(sizes.item, 1),
        history_fields=ids(sizes.item, 1, L), history_similarity=similarities(1, L), history_age=ages(1, L),
        related_fields=ids(sizes.item, 1, K), related_similarity=similarities(1, K), related_age=ages(1, K),
        candidate_fields=ids(sizes.item, N), candidate_similarity=similarities(N),
        candidate_request=torch.zeros(N, dtype=torch.int64),
    )  # fmt: skip


# --- the two modules that are traced ---------------------------------------------------------------------------------


class _OtherSide:
    """Stands for an input that this graph does not have; whoever touches it is told so."""

    def __init__(self, phase: str, field: str) -> None:
        self._message = f"{phase} reads {field}, which its graph does not have"

    def __getattr__(self, name: str) -> Any:
        raise ExportError(self._message)

    def __getitem__(self, index: object) -> Any:
        raise ExportError(self._message)


class _RequestGraph(nn.Module):
    """encode_request with flat inputs and outputs."""

    def __init__(self, model: RankingModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        state = self.model.encode_request(_request_inputs(arrays))
        return tuple(state[name.removeprefix(STATE_PREFIX)] for name in self.outputs)


class _CandidateGraph(nn.Module):
    """score with flat inputs and outputs; the one request's number is 0 for every candidate."""

    def __init__(self, model: RankingModel, state: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.state = tuple(state)

    def forward(self, fields: Tensor, similarity: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model.score(dict(zip(self.state, state, strict=True)), _candidate_inputs(fields, similarity))
        return outputs.logits, *(outputs.extras[name] for name in sorted(outputs.extras))


def _request_inputs(arrays: Sequence[Tensor]) -> ModelInputs:
    given: dict[str, Any] = dict(zip(REQUEST_SIDE, arrays, strict=True))
    absent = {name: _OtherSide("encode_request", name) for name in ModelInputs._fields if name not in given}
    return ModelInputs(**given, **absent)


def _candidate_inputs(fields: Tensor, similarity: Tensor) -> ModelInputs:
    absent: dict[str, Any] = {name: _OtherSide("score", name) for name in REQUEST_SIDE}
    request = torch.zeros_like(similarity, dtype=torch.int64)
    return ModelInputs(**absent, candidate_fields=fields, candidate_similarity=similarity, candidate_request=request)


# --- tracing ---------------------------------------------------------------------------------------------------------


def _export_both(
    model: RankingModel, module: nn.Module, sizes: EncoderSizes, metadata: Mapping[str, str], min_table_bytes: int
) -> Graphs:
    """`model` and `module` are the same object, seen as the two phases and as the holder of the parameters."""
    axes = _state_axes(model, sizes)
    example = example_inputs(sizes, 5, 3, 4)
    state = model.encode_request(example)
    extras = sorted(model.score(state, example).extras)
    _check_names(state, extras)

    keys = tuple(state)
    candidates = _trace(
        _CandidateGraph(model, keys),
        {"candidate_fields": example.candidate_fields, "candidate_similarity": example.candidate_similarity}
        | {STATE_PREFIX + key: state[key].clone() for key in keys},
        {"candidate_fields": {0: "N"}, "candidate_similarity": {0: "N"}}
        | {STATE_PREFIX + key: axes[key] for key in keys},
        [LOGITS, *extras],
    )  # fmt: skip
    read = drop_unread_inputs(candidates)
    keys = tuple(key for key in keys if STATE_PREFIX + key in read)

    outputs = [*([INTENT] if INTENT in state else []), *(STATE_PREFIX + key for key in keys)]
    given = {name: getattr(example, name) for name in REQUEST_SIDE}
    free = {name: {1: letter} for letter, names in _FREE_AXES.items() for name in names}
    request = _trace(_RequestGraph(model, outputs), given, free, outputs)
    drop_unread_inputs(request)

    tables: dict[str, np.ndarray] = {}
    parameters = table_parameters(module, min_table_bytes)
    for proto, graph in ((request, "request"), (candidates, "candidates")):
        tables |= take_tables_out(proto, parameters)
        finish(proto, {"graph": graph, **metadata})
    return Graphs(request, candidates, dict(sorted(tables.items())), keys)


def _state_axes(model: RankingModel, sizes: EncoderSizes) -> dict[str, dict[int, str]]:
    """Which axes of each state tensor grow with L and with K, found by encoding three lengths and comparing."""

    def shapes(n_behaviours: int, n_related: int) -> dict[str, torch.Size]:
        state = model.encode_request(example_inputs(sizes, n_behaviours, n_related, 4))
        return {key: value.shape for key, value in state.items()}

    at, longer, more_related = shapes(5, 3), shapes(7, 3), shapes(5, 4)
    axes: dict[str, dict[int, str]] = {}
    for key, shape in at.items():
        if shape[0] != 1:
            raise ExportError(f"state {key!r} has shape {tuple(shape)}: its first axis must be the request's, here 1")
        axes[key] = {i: "L" for i in range(len(shape)) if longer[key][i] != shape[i]}
        axes[key] |= {i: "K" for i in range(len(shape)) if more_related[key][i] != shape[i]}
    return axes


def _check_names(state: Mapping[str, Tensor], extras: Sequence[str]) -> None:
    for name in extras:
        if name == LOGITS or name.startswith((STATE_PREFIX, TABLE_PREFIX)):
            raise ExportError(f"extra output {name!r} takes a name of the graphs: rename it")
    for key, value in state.items():
        if value.dtype not in (torch.float32, torch.int64, torch.bool):
            raise ExportError(f"state {key!r} is {value.dtype}: the service carries float32, int64 and bool")


def _trace(
    module: nn.Module, inputs: Mapping[str, Tensor], free: Mapping[str, Mapping[int, str]], outputs: Sequence[str]
) -> ModelProto:
    """Trace `module` on `inputs` with the axes of `free` left open, and convert it."""
    letters = {letter: Dim(letter, min=1) for axes in free.values() for letter in axes.values()}
    shapes = tuple({i: letters[letter] for i, letter in free.get(name, {}).items()} for name in inputs)
    arguments = tuple(inputs.values())
    try:
        program = torch.export.export(module, arguments, dynamic_shapes=_dynamic_shapes(module, shapes), strict=False)
        _refuse_vanishing_constants(program)
        converted = torch.onnx.export(
            program, arguments, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            optimize=True, external_data=False, verbose=False,
        )  # fmt: skip
    except ExportError:
        raise
    except Exception as error:  # the exporter's errors have no common class
        raise ExportError(f"{type(module).__name__}: torch could not export the model: {error}") from error
    if converted is None:
        raise ExportError(f"{type(module).__name__}: torch.onnx.export returned nothing")
    proto = converted.model_proto
    name_axes(proto, free)
    return proto


def _dynamic_shapes(module: nn.Module, shapes: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """As torch.export wants them: what a `*arguments` parameter swallows is one nested tuple."""
    return (shapes,) if isinstance(module, _RequestGraph) else (shapes[0], shapes[1], shapes[2:])


def _refuse_vanishing_constants(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "overloadpacket", None) not in _ADDITIONS:
            continue
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, float) and 0 < abs(value) <= VANISHING_CONSTANT:
                modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                raise ExportError(
                    f"{modules[-1] if modules else 'the model'} adds the constant {value:g}, which the exporter drops: "
                    "ONNX Runtime would divide by zero. Use clamp_min(1e-6) instead"
                )


_ADDITIONS = frozenset(getattr(torch.ops.aten, name) for name in ("add", "add_", "sub", "sub_", "rsub"))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep out the exporter's notes on packages that we do not use and its own use of deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_shape_checks() -> Iterator[None]:
    """A shape annotation that is checked while tracing would fix the free axes to the example's sizes."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
