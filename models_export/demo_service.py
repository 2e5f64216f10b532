"""The service of the demo: `daian serve` as a process of its own, with the embedded store in a folder of its own.

Started, fed and stopped by `models_export.demo_tour`. Nothing of the service is imported: like a shop, the demo has the
command line and HTTP. A store named in the environment is left alone: no demo writes into a shop's users.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx

from service.contract.errors import DaianError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_SOCKET = "store.sock"  # where the embedded store listens, in its folder


class ServiceError(DaianError):
    """The service or a command beside it did not do its part; the message ends with the last lines of its output."""


class Service:
    """One service over a folder of bundles. `start` and `stop` once each; `stop` may be called without `start`."""

    def __init__(self, bundles: Path, port: int) -> None:
        self._bundles = bundles
        self._port = port if _is_free(port) else _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="daian-demo-"))  # short: a socket's path has 100 bytes
        self._log = self._folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it is ready. Raises `ServiceError` when it ends or takes longer than a minute."""
        arguments = ["serve", str(self._bundles), "--port", str(self._port), "--store-folder", str(self._folder)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(_command(arguments), stdout=log, stderr=log, env=_environment())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise ServiceError(f"the service ended with code {self._process.returncode}: {self._last_lines()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"the service was not ready after {START_TIMEOUT_S:.0f} s: {self._last_lines()}")
            time.sleep(0.1)

    def load_users(self, lines: Iterable[str]) -> str:
        """Bring users into the store with `daian store load`; returns a line for people. Raises `ServiceError`."""
        path = self._folder / "users.ndjson"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        address = {"DAIAN_REDIS_URL": f"unix://{self._folder / _SOCKET}"}
        command = _command(["store", "load", str(path), "--json"])
        done = subprocess.run(command, capture_output=True, text=True, env=_environment() | address)
        if done.returncode != 0:
            raise ServiceError(f"`daian store load` ended with code {done.returncode}: {done.stderr[-2000:]}")
        report = json.loads(done.stdout)
        return (
            f"daian store load: {report['n_lines']:,} users, {report['n_new']:,} behaviours "
            f"in {report['seconds']:.1f} s into an embedded Valkey"
        )

    def wait(self) -> None:
        """Until the service ends by itself."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """End it, politely first, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/readyz", timeout=1.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _last_lines(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _command(arguments: list[str]) -> list[str]:
    """`daian` of the very Python that runs the demo."""
    return [sys.executable, "-m", "service.cli", *arguments]


def _environment() -> dict[str, str]:
    """Ours without any setting of a running shop."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DAIAN_")}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
