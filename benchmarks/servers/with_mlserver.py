"""MLServer as its docs have it: a custom runtime behind the open inference protocol (V2), parallel workers.

Runs in its own environment, see `known`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.servers.graph_files import dtype_of, open_graphs


class Ranking(MLModel):  # type: ignore[misc]
    """One request in, its logits out."""

    async def load(self) -> bool:
        self._graphs = open_graphs()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {one.name: NumpyCodec.decode_input(one).astype(dtype_of(one.name)) for one in payload.inputs}
        output = NumpyCodec.encode_output("logits", self._graphs(given))
        return InferenceResponse(model_name=self.name, outputs=[output])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_settings(folder: Path) -> None:
    """What `mlserver start` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {"http_port": int(os.environ["BENCH_PORT"]), "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", "parallel_workers": int(os.environ["BENCH_WORKERS"]), "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(server))
    model = {"name": "ranking", "implementation": "benchmarks.servers.with_mlserver.Ranking"}
    (folder / "model-settings.json").write_text(json.dumps(model))


def serve(folder: Path) -> int:
    """`mlserver start` until it ends, in the folder of its settings: it writes `.metrics` to where it is started."""
    command = [str(Path(sys.executable).with_name("mlserver")), "start", str(folder)]
    return subprocess.call(command, cwd=folder, env=os.environ | {"PYTHONPATH": os.getcwd()})


if __name__ == "__main__":
    work = Path(os.environ["BENCH_WORK"]) / "mlserver"
    write_settings(work)
    sys.exit(serve(work))
