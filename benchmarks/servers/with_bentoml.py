"""BentoML as its docs have it: a service class with one API, JSON in and out.

Runs in its own environment, see `known`.
"""

import os
from typing import Any

import bentoml  # type: ignore[import-not-found]

from benchmarks.servers.graph_files import arrays_of, open_graphs


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "1")), traffic={"timeout": 60})
class Ranking:
    """One request in, its logits out."""

    def __init__(self) -> None:
        self._graphs = open_graphs()

    @bentoml.api
    def rank(self, inputs: dict[str, Any]) -> list[float]:
        return self._graphs(arrays_of(inputs)).tolist()
