"""Ray Serve as its docs have it: a deployment with replicas, JSON in and out.

Runs in its own environment, see `known`.
"""

import os
import time

import ray  # type: ignore[import-not-found]
from ray import serve  # type: ignore[import-not-found]
from starlette.requests import Request

from benchmarks.servers.graph_files import arrays_of, open_graphs


@serve.deployment(num_replicas=int(os.environ.get("BENCH_WORKERS", "1")), ray_actor_options={"num_cpus": 1})  # type: ignore[untyped-decorator]
class Ranking:
    """One request in, its logits out."""

    def __init__(self) -> None:
        self._graphs = open_graphs()

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        return {"logits": self._graphs(arrays_of(await request.json())).tolist()}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=int(os.environ["BENCH_WORKERS"]) + 1)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Ranking.bind(), route_prefix="/rank")
    while True:
        time.sleep(1)
