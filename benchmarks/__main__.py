"""`make bench`: how long one ranking computes, in the exported graphs and in PyTorch, over the same requests.

Prints a table and writes artifacts/bench.json with the command that made it. One thread, one process, no HTTP and no
store: what remains is encoding, the request graph and the candidate graph. The baseline is the trained model itself in
PyTorch, eager, on the same encoded inputs; its request side runs once per ranking there too, as in the service.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_export.parity import ExportedModel, score_in_torch
from service.contract.bundle import current_path, read_bundle
from service.contract.requests import RequestBatch
from training.checkpoint import open_run

N_CANDIDATES = (50, 200, 500, 1000)
N_ROUNDS = 200
N_WARM_UP = 20
REPORT = Path("artifacts/bench.json")


def requests_of(bundles: Path, n_candidates: int, item_ids: Sequence[str]) -> list[RequestBatch]:
    """The bundle's golden requests, each with `n_candidates` items of the catalogue."""
    lines = read_bundle(current_path(bundles)).read("golden.jsonl").splitlines()
    rows = [json.loads(line)["request"] for line in lines]
    candidates = list(islice(cycle(item_ids), n_candidates * len(rows)))
    return [
        RequestBatch.from_rows([{**row, "candidates": candidates[i * n_candidates : (i + 1) * n_candidates]}])
        for i, row in enumerate(rows)
    ]


def timed_ms(call: Callable[[Any], object], arguments: Sequence[Any]) -> dict[str, float]:
    """Median and 99th percentile of `call` over `arguments`, taken in turn."""
    taken = []
    for argument in islice(cycle(arguments), N_WARM_UP + N_ROUNDS):
        started_s = time.perf_counter()
        call(argument)
        taken.append((time.perf_counter() - started_s) * 1000)
    p50, p99 = np.percentile(taken[N_WARM_UP:], [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def measure(bundles: Path, run_folder: Path) -> list[dict[str, Any]]:
    """One row per number of candidates and subject."""
    bundle = read_bundle(current_path(bundles))
    encoder = bundle.open_encoder()
    catalogue = encoder.catalogue
    model = open_run(run_folder, catalogue).model.eval()
    exported = ExportedModel(bundle.path)
    item_ids = catalogue.ids(np.arange(1, catalogue.n_items + 1))
    rows = []
    for n_candidates in N_CANDIDATES:
        batches = requests_of(bundles, n_candidates, item_ids)
        encoded = [encoder.encode(batch) for batch in batches]
        subjects: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
            "encode": (encoder.encode, batches),
            "graphs, ONNX Runtime": (exported.score, encoded),
            "model, PyTorch eager": (lambda inputs: score_in_torch(model, inputs), encoded),
        }
        for subject, (call, arguments) in subjects.items():
            rows.append({"candidates": n_candidates, "subject": subject, **timed_ms(call, arguments)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="time of one ranking, by part")
    parser.add_argument("--bundles", type=Path, default=Path("artifacts/bundles"))
    parser.add_argument("--run", type=Path, default=Path("artifacts/runs/demo"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.bundles, options.run)
    print(f"{'candidates':>10}  {'':24}{'p50 ms':>9}{'p99 ms':>9}")
    for row in rows:
        print(f"{row['candidates']:>10}  {row['subject']:24}{row['p50_ms']:>9.3f}{row['p99_ms']:>9.3f}")
    packages = {name: version(name) for name in ("torch", "onnxruntime", "numpy", "faiss-cpu")}
    report = {"command": ["python", "-m", "benchmarks", *sys.argv[1:]], "machine": platform.machine(),
              "python": platform.python_version(), "packages": packages, "rounds": N_ROUNDS, "rows": rows}  # fmt: skip
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
