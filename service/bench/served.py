"""`daian serve` as a process of its own for the length of a benchmark, and what it takes of the machine.

Used by `daian bench` and by `benchmarks/`. The service runs with its own defaults and an embedded store in a folder of
its own: no benchmark writes into a shop's users. What the process tree takes is read from /proc: processor time of the
service and of the store apart, memory as PSS, where a page that two processes share counts half in each.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.bench.asking import LoadError, ask_once, get, run
from service.contract.errors import DaianError

START_S = 600.0  # a catalogue of millions is hashed twice before the first answer
STOP_S = 30.0
TICKS = os.sysconf("SC_CLK_TCK")
_STORES = ("valkey", "redis")


class BenchError(DaianError):
    """A server that does not start, or answers that are not what is to be measured."""


@dataclass(frozen=True)
class Placement:
    """How the service is spread over the cores: processes, and threads that compute in each."""

    workers: int
    threads: int

    @property
    def label(self) -> str:
        """`2 x 1`."""
        return f"{self.workers} x {self.threads}"


@dataclass(frozen=True)
class Served:
    """A process tree that answers at a port of this machine."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """Processor seconds of the service so far; the store is not in it."""
        return sum(cpu_s(pid) for pid in self._pids() if not _is_store(pid))

    def store_cpu_s(self) -> float:
        """Processor seconds of the embedded store so far."""
        return sum(cpu_s(pid) for pid in self._pids() if _is_store(pid))

    def pss_mb(self) -> float:
        """Megabytes of the service, pages that its processes share counted once; the store is not in it."""
        return sum(pss_mb(pid) for pid in self._pids() if not _is_store(pid))

    def _pids(self) -> list[int]:
        return tree(self.pid)

    def rest(self, within_s: float = 60.0) -> None:
        """Returns when the tree has done nothing for a while: all workers have started."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            before_s = self.cpu_s()
            time.sleep(0.5)
            if self.cpu_s() - before_s < 0.06:
                return


@contextmanager
def serving(bundles: Path, folder: Path, placement: Placement, settings: Mapping[str, str]) -> Iterator[Served]:
    """The service over a bundle root or one bundle, on a free port. `settings`: further DAIAN_* settings.

    `folder` takes the store and the log. Raises BenchError when the service ends before it is ready.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAIAN_")}
    environment |= {
        "DAIAN_PORT": "0",
        "DAIAN_DRAIN_S": "0",
        "DAIAN_WORKERS": str(placement.workers),
        "DAIAN_SCORER_CONCURRENCY": str(placement.threads),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    command = [sys.executable, "-m", "service.cli", "serve", str(bundles), "--store-folder", str(folder / "store")]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        served = Served(process.pid, _port(process, log))
        wait_until_ready(process, served.port, "/readyz", log)
        served.rest()
        yield served
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends one process that was started here; what does not end in time is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, path: str, log: Path) -> None:
    """Returns when `path` answers 200. Raises BenchError when it does not within START_S."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise BenchError(f"the server ended with {process.returncode}: {last_words(log)}")
        try:
            if run(ask_once(port, get(path))).status == 200:
                return
        except (LoadError, OSError, TimeoutError):
            pass
        time.sleep(0.1)
    raise BenchError(f"the server was not ready within {START_S:g} s: {last_words(log)}")


def last_words(log: Path, n_lines: int = 4) -> str:
    """The end of a log, for a message."""
    return " | ".join(line.strip()[:300] for line in log.read_text(errors="replace").splitlines()[-n_lines:])


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        found = re.search(r"ranking at http://[^/]+:(\d+)/rank", log.read_text())
        if found:
            return int(found.group(1))
        if process.poll() is not None:
            raise BenchError(f"the service ended with {process.returncode}: {last_words(log)}")
        time.sleep(0.05)
    raise BenchError(f"the service did not say where it is: {last_words(log)}")


# --- /proc ------------------------------------------------------------------------------------------------------------


def tree(root: int) -> list[int]:
    """A process and all that it started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except (OSError, IndexError):  # it ended while we looked
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds of one process, 0 when it has ended."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def pss_mb(pid: int) -> float:
    """Proportional set size, 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may hold spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _is_store(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(_STORES)
    except OSError:
        return False
