"""KServe's Python server as its docs have a custom predictor: a Model behind the open inference protocol (V2).

Runs in its own environment, see `known`.
"""

import os
from typing import Any

import kserve  # type: ignore[import-not-found]
import uvicorn
from kserve import InferOutput, InferRequest, InferResponse

from benchmarks.servers.graph_files import dtype_of, open_graphs


class Ranking(kserve.Model):  # type: ignore[misc]
    """One request in, its logits out. The graphs are opened in the process that uses them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._graphs = None
        self.ready = True

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None, **_: object) -> InferResponse:  # noqa: ARG002
        if self._graphs is None:
            self._graphs = open_graphs()
        given = {one.name: one.as_numpy().astype(dtype_of(one.name)) for one in payload.inputs}
        output = InferOutput(name="logits", shape=[len(given["candidate_similarity"])], datatype="FP32")
        output.set_data_from_numpy(self._graphs(given), binary_data=False)
        return InferResponse(response_id=payload.id or "page", model_name=self.name, infer_outputs=[output])


def listen_on_loopback() -> None:
    """The server takes a port and no address: it would listen to everyone."""
    make = uvicorn.Config.__init__

    def made(config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        make(config, *arguments, **{**options, "host": "127.0.0.1"})

    uvicorn.Config.__init__ = made  # type: ignore[method-assign]


if __name__ == "__main__":
    listen_on_loopback()
    workers, port = int(os.environ["BENCH_WORKERS"]), int(os.environ["BENCH_PORT"])
    kserve.ModelServer(http_port=port, workers=workers, enable_grpc=False, enable_latency_logging=False).start(
        [Ranking("ranking")]
    )
