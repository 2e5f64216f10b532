"""How long the exported graphs of several runs take, measured in turn. Found by `daian compare` through an entry point.

Each model scores the same request: a full history and `N_CANDIDATES` candidates, one thread, as the service runs it.
The models take turns, so that whatever else the machine does hits all alike; medians and their ratios are told.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models_export.graph import example_inputs, export_graphs
from models_export.parity import ExportedModel
from service.contract.encoder import ModelInputs
from training.checkpoint import open_run
from training.data.dataset import open_catalogue

N_CANDIDATES = 100
N_BEHAVIOURS = 50
N_REPETITIONS = 60
_WARM_UP = 5


def time_graphs(runs: Mapping[str, Path], data: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Median milliseconds a request by name, and what was measured. A run that cannot be exported is left out.

    `say` is told of progress.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="daian-latency-") as temporary:
        ready: dict[str, tuple[ExportedModel, ModelInputs]] = {}
        for name, run in runs.items():
            say(f"exporting {name}")
            ready[name] = _exported(run, data, Path(temporary) / name)
        seconds = _in_turn(ready, say)
    found = {name: {"median_ms": 1e3 * float(np.median(taken))} for name, taken in seconds.items()}
    return {"n_candidates": N_CANDIDATES, "n_behaviours": N_BEHAVIOURS, "n_repetitions": N_REPETITIONS, "rows": found}


def _exported(run_folder: Path, data: Path, folder: Path) -> tuple[ExportedModel, ModelInputs]:
    run = open_run(run_folder, open_catalogue(data))
    folder.mkdir()
    export_graphs(run.model, run.encoder.sizes, {"run": "latency"}).save(folder)
    related = min(N_BEHAVIOURS, run.encoder.rules.related_max)
    inputs = example_inputs(run.encoder.sizes, N_BEHAVIOURS, related, N_CANDIDATES)
    return ExportedModel(folder), inputs.map(Tensor.numpy)


def _in_turn(
    ready: Mapping[str, tuple[ExportedModel, ModelInputs]], say: Callable[[str], None]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(N_REPETITIONS + _WARM_UP):
        if turn % 10 == 0:
            say(f"turn {turn} of {N_REPETITIONS + _WARM_UP}")
        for name, (model, inputs) in ready.items():
            started = time.perf_counter()
            model.score(inputs)
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds
