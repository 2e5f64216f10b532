"""`daian serve` in a process of its own, and what one can see of it and do to it from outside.

Used by the tests of this folder and by `benchmarks.goals`: start, look at workers, memory and descriptors, kill. Only
processes that were started here are ever signalled. Output goes to a file, never to a pipe that nobody reads.
"""

import contextlib
import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

START_S = 120.0
_given_ports: set[int] = set()


@dataclass
class ServiceProcess:
    """A running `daian serve`; with several workers its process is their parent."""

    process: "subprocess.Popen[str]"
    host: str
    port: int
    log: Path
    started_s: float  # on time.monotonic(), before the process began
    ready_s: float = 0.0  # how long it took from there to the first 200 of /readyz

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def is_ready(self) -> bool:
        return status_of(f"{self.url}/readyz") == 200

    def workers(self) -> set[int]:
        """Process ids of the workers; the process itself where it is its own."""
        children = {pid for pid in children_of(self.process.pid) if b"spawn_main" in command_line(pid)}
        return children or {self.process.pid}

    def resident_bytes(self) -> int:
        """Resident memory of all workers."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in self.workers())

    def n_descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    def n_bundles_opened(self) -> int:
        """How often a worker said that it answers with a bundle, since the start."""
        return self.log.read_text(errors="replace").count('"bundle live"')

    def stop(self, timeout_s: float = 60.0) -> float:
        """SIGTERM; seconds until it was gone."""
        started_s = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=timeout_s)
        return time.monotonic() - started_s


def children_of(pid: int) -> set[int]:
    """Children of all threads of a process."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, file.read_text().split()))
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def status_of(url: str) -> int:
    """The status of a GET, 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except (OSError, http.client.HTTPException):  # among them half an answer of one that is being ended
        return 0


def free_port() -> int:
    """A port that is free now, and that no call before got: who asks for two must not get one of them twice."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = int(found.getsockname()[1])
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def launch(
    root: Path, folder: Path, cores: Collection[int] = (), prelude: str = "", **settings: str
) -> "subprocess.Popen[str]":
    """Starts the command. `prelude` is Python that runs before it: how a test takes a protection away."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAIAN_", "PROMETHEUS_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | settings
    code = "import os, sys\n"
    code += f"os.sched_setaffinity(0, {set(cores)})\n" if cores else ""
    code += prelude + "\nfrom service.cli import main\n"
    code += f"main(['serve', {str(root)!r}, '--store-folder', {str(folder / 'store')!r}])\n"
    with (folder / "service.log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )


@contextlib.contextmanager
def service_process(
    root: Path, folder: Path, cores: Collection[int] = (), prelude: str = "", **settings: str
) -> Iterator[ServiceProcess]:
    """A service on a free port, ready; stopped at the end of the block, and killed when it does not stop."""
    port = int(settings.get("DAIAN_PORT", "0")) or free_port()
    started_s = time.monotonic()
    process = launch(root, folder, cores, prelude, **{**settings, "DAIAN_PORT": str(port)})
    found = ServiceProcess(process, "127.0.0.1", port, folder / "service.log", started_s)
    try:
        until_s = started_s + START_S
        while not found.is_ready():
            if process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"the service did not become ready: {found.log.read_text()[-2000:]}")
            time.sleep(0.01)
        found.ready_s = time.monotonic() - started_s
        yield found
    finally:
        workers = found.workers() if process.poll() is None else set()
        try:
            found.stop(30)
        except subprocess.TimeoutExpired:
            for pid in workers | {process.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        end_orphan(folder / "store")


def end_orphan(store: Path) -> None:
    """Ends the embedded store on this folder, if the service that it belonged to was killed and could not.

    A store that has an owner is left alone: its lock is held.
    """
    with contextlib.suppress(OSError, ValueError), (store / "owner.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = int((store / "server.pid").read_text())
        if Path(f"/proc/{pid}/cwd").resolve() == store.resolve():
            os.kill(pid, signal.SIGKILL)


def errors_in(log: Path) -> list[str]:
    """Lines of a log that no fault from outside explains."""
    return re.findall(r'^.*"event": "bug".*$', log.read_text(errors="replace"), re.MULTILINE)
