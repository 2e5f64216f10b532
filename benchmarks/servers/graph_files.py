"""The graphs as any Python model server would open them: from a folder, in ONNX Runtime, one thread.

Runs in the servers' environments: imports numpy and onnxruntime alone. `pair` is our two graphs with their tables
mapped from disk, `tiled` the one graph with one row per pair, which repeats the request for every candidate here, on
the server's side, so that nobody has to send it so often.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CANDIDATE_SIDE = ("candidate_fields", "candidate_similarity")
FOLDER, KIND = "BENCH_GRAPHS_FOLDER", "BENCH_GRAPHS_KIND"
RANKS = "ranks.json"  # beside the graphs: what a request is sent as, for a server that wants to know beforehand

Arrays = dict[str, np.ndarray]


def open_graphs(folder: Path | None = None) -> Callable[[Arrays], np.ndarray]:
    """What turns the inputs of one request into logits [N]; which graphs, and unless it is given where, the environment
    says."""
    folder = folder or Path(os.environ[FOLDER])
    return pair(folder) if os.environ[KIND] == "pair" else tiled(folder / "tiled.onnx")


def arrays_of(given: Mapping[str, Any]) -> Arrays:
    """Inputs as nested lists, as JSON has them."""
    return {name: np.asarray(values, dtype_of(name)) for name, values in given.items()}


def dtype_of(name: str) -> type:
    """Similarities are float32, all else int64."""
    return np.float32 if name.endswith("similarity") else np.int64


def write_ranks(folder: Path, sent: Mapping[str, np.ndarray]) -> None:
    """Beside the graphs: the inputs of a request and how many dimensions each has."""
    (folder / RANKS).write_text(json.dumps({name: values.ndim for name, values in sent.items()}))


def read_ranks() -> dict[str, int]:
    """What `write_ranks` wrote, from the folder that the environment says."""
    found: dict[str, int] = json.loads((Path(os.environ[FOLDER]) / RANKS).read_text())
    return found


def pair(folder: Path) -> Callable[[Arrays], np.ndarray]:
    """The request graph once, then the candidate graph."""
    request, candidates = (_open(folder / f"{side}.onnx") for side in ("request", "candidates"))
    tables = {path.stem: np.load(path, mmap_mode="r") for path in sorted((folder / "tables").glob("*.npy"))}
    bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(table)) for name, table in tables.items()}

    def rank(given: Arrays) -> np.ndarray:
        state = _run(request, {**given, **bound})
        return _run(candidates, {**given, **bound, **state})["logits"]

    return rank


def tiled(path: Path) -> Callable[[Arrays], np.ndarray]:
    """Every input of the request repeated for every candidate."""
    session = _open(path)

    def rank(given: Arrays) -> np.ndarray:
        n = len(given["candidate_similarity"])
        rows = {name: x if name in CANDIDATE_SIDE else np.repeat(x, n, axis=0) for name, x in given.items()}
        return _run(session, rows)["logits"]

    return rank


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, given: Mapping[str, Any]) -> Arrays:
    names = [node.name for node in session.get_outputs()]
    feed = {node.name: given[node.name] for node in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))
