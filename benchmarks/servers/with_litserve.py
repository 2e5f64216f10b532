"""LitServe as its quick start has it: a LitAPI, JSON in and out. Runs in its own environment, see `known`."""

import os
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np

from benchmarks.servers.graph_files import arrays_of, open_graphs


class Ranking(litserve.LitAPI):  # type: ignore[misc]
    """One request in, its logits out."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.rank = open_graphs()

    def decode_request(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        return arrays_of(request)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.rank(inputs)

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"logits": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Ranking(), accelerator="cpu", workers_per_device=int(os.environ["BENCH_WORKERS"]))
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
