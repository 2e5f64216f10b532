"""pytriton as its docs have it: a decorated function behind Triton's HTTP endpoint (V2), one instance per worker.

Runs in its own environment, see `known`. An instance is a thread of this process, fed by a process of Triton's.
"""

import os
import signal
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pytriton.decorators import sample  # type: ignore[import-not-found]
from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.models.model import Model  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from benchmarks.servers.graph_files import dtype_of, open_graphs, read_ranks

PATIENCE = (b"timeout_s: float = 1.0) -> dict", b"timeout_s: float = 60.0) -> dict")


def instance() -> Callable[..., dict[str, np.ndarray]]:
    """One request in, its logits out, on sessions of its own."""
    graphs = open_graphs()

    @sample  # type: ignore[untyped-decorator]
    def rank(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": graphs(inputs)}

    return rank  # type: ignore[no-any-return]


def config(port: int) -> TritonConfig:
    """HTTP for this machine alone, nothing else; by default it listens to everyone, with gRPC and metrics."""
    return TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)


def serve(work: Path, port: int, workers: int) -> None:
    """Until it is asked to end; then it ends Triton and removes what it holds in memory and in `work`."""
    with Triton(config=config(port), workspace=work) as triton:
        triton.bind(
            model_name="ranking",
            infer_func=[instance() for _ in range(workers)],
            inputs=[Tensor(name=name, dtype=dtype_of(name), shape=(-1,) * n) for name, n in read_ranks().items()],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


def wait_for_the_first() -> None:
    """Triton's processes start together, and all wait for the first of them: one second, too short on a busy machine.

    How long is in one of the files that pytriton hands to Triton, and nowhere to be set.
    """
    files_of = Model.get_proxy_model_files

    def files(model: Model) -> dict[str, bytes]:
        return {name: code.replace(*PATIENCE) for name, code in files_of(model).items()}

    Model.get_proxy_model_files = files


def show_libpython() -> None:
    """Triton loads this Python's shared library, which need not be where the system looks for libraries."""
    places = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, places))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    show_libpython()
    wait_for_the_first()
    serve(Path(os.environ["BENCH_WORK"]) / "pytriton", int(os.environ["BENCH_PORT"]), int(os.environ["BENCH_WORKERS"]))
