"""Scorer: the two exported graphs, run in ONNX Runtime, one request at a time.

Made by the runtime from the bytes that were hashed; called by the ranker inside a worker thread. One thread per
session, no spinning, because the machine's parallelism is in the requests. Embedding tables stay in their memory-mapped
files. The request graph runs once per request, the candidate graph in chunks with a look at the clock between two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from jaxtyping import Float32

from service.contract.encoder import CANDIDATE_SIDE, ModelInputs
from service.contract.errors import BundleError
from service.deadline import Deadline
from service.errors import CallerGone, ModelFailed

INTENT = "intent"
LOGITS = "logits"
SLICED = CANDIDATE_SIDE

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RequestState:
    """What the request graph knows of one request: all its outputs by name, and the intent where there is one."""

    tensors: Arrays
    intent: Float32[np.ndarray, " S"] | None


@dataclass(frozen=True)
class Scores:
    """Logits of the candidates that were reached before the deadline: the first `len(logits)` of them, in order."""

    logits: Float32[np.ndarray, " n"]
    in_time: bool


class Graph:
    """One ONNX session with the tables it names as inputs bound once."""

    def __init__(self, name: str, model: bytes, tables: Mapping[str, np.ndarray], n_threads: int = 1) -> None:
        self.name = name
        self._session = _open_session(name, model, n_threads)
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        self._bound = {
            table: onnxruntime.OrtValue.ortvalue_from_numpy(values)
            for table, values in tables.items()
            if table in self.input_names
        }
        self.fed_names = tuple(found for found in self.input_names if found not in self._bound)

    def run(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name, for the inputs that this graph names among `given`.

        Raises ModelFailed when ONNX Runtime does.
        """
        feed: dict[str, object] = {name: given[name] for name in self.fed_names}
        feed.update(self._bound)
        try:
            return dict(zip(self.output_names, self._session.run(self.output_names, feed), strict=True))
        except Exception as error:  # ONNX Runtime raises undocumented classes of its own
            raise ModelFailed(f"{self.name} failed: {error}") from error

    def describe(self) -> dict[str, list[dict[str, object]]]:
        """Names, types and shapes of inputs and outputs, as ONNX Runtime sees them."""

        def listed(nodes: object) -> list[dict[str, object]]:
            return [{"name": n.name, "datatype": n.type, "shape": list(n.shape)} for n in nodes]  # type: ignore[attr-defined]

        return {"inputs": listed(self._session.get_inputs()), "outputs": listed(self._session.get_outputs())}


class Scorer:
    """The pair of graphs of one bundle. Holds nothing of any request: safe to share between worker threads."""

    def __init__(self, request_graph: Graph, candidate_graph: Graph, chunk: int) -> None:
        self._request_graph = request_graph
        self._candidate_graph = candidate_graph
        self._chunk = chunk
        _check_pair(request_graph, candidate_graph)

    def encode_request(self, inputs: ModelInputs) -> RequestState:
        """The state and the predicted intent of one request (R = 1)."""
        outputs = self._request_graph.run(inputs._asdict())
        intent = outputs.get(INTENT)
        return RequestState(outputs, None if intent is None else intent[0])

    def score(self, state: RequestState, inputs: ModelInputs, deadline: Deadline) -> Scores:
        """Logits of the candidates of `inputs` in chunks, until all are scored or the next chunk would come too late.

        The slowest chunk so far is what the next is expected to take, so that the answer is not late by a whole chunk.
        Raises CallerGone between two chunks when nobody waits for the answer any more.
        """
        given = {**inputs._asdict(), **state.tensors}
        parts: list[np.ndarray] = []
        slowest_s = 0.0
        for chunk in self._chunks(len(inputs.candidate_similarity)):
            before_s = deadline.left_s()
            if deadline.is_gone():
                raise CallerGone("the connection was closed between two chunks")
            if before_s <= slowest_s:
                return Scores(_joined(parts), in_time=False)
            given.update((name, getattr(inputs, name)[chunk]) for name in SLICED)
            parts.append(self._candidate_graph.run(given)[LOGITS])
            slowest_s = max(slowest_s, before_s - deadline.left_s())
        return Scores(_joined(parts), in_time=True)

    def _chunks(self, n_candidates: int) -> Iterator[slice]:
        return (slice(start, start + self._chunk) for start in range(0, n_candidates, self._chunk))


def _joined(parts: list[np.ndarray]) -> Float32[np.ndarray, " n"]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _open_session(name: str, model: bytes, n_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own undocumented classes
        raise BundleError(f"{name} cannot be opened by ONNX Runtime: export the bundle again ({error})") from error


def _check_pair(request_graph: Graph, candidate_graph: Graph) -> None:
    """Every input of both graphs must come from somewhere; a graph of another contract is refused here."""
    known = set(ModelInputs._fields)
    strange = set(request_graph.fed_names) - known
    if strange:
        raise BundleError(
            f"{request_graph.name} asks for {sorted(strange)}: neither an input of the contract nor a table"
        )
    strange = set(candidate_graph.fed_names) - known - set(request_graph.output_names)
    if strange:
        raise BundleError(
            f"{candidate_graph.name} asks for {sorted(strange)}, which {request_graph.name} does not give: "
            "export both graphs together"
        )
    if LOGITS not in candidate_graph.output_names:
        raise BundleError(f"{candidate_graph.name} has no output `{LOGITS}`: export the bundle again")
