"""The first load of a bundle: in a process of its own, with little memory, no secrets and nothing to lose.

`bundle_swap.py` calls `try_bundle` before the running process opens a new bundle. The child (`python -m
service.bundle_trial`) hashes every file, opens every part as the service would and replays the golden requests. A file
that crashes a parser, fills the memory or never ends costs the child; the service hears why and keeps what it has.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.contract.bundle import Bundle, list_files, read_bundle
from service.contract.errors import BundleError
from service.runtime import check_bundle

MEMORY_BASE = 1 << 30  # an interpreter with ONNX Runtime and FAISS, before any bundle
MEMORY_FACTOR = 4  # of the bundle's size, for what parsers make of it
NEEDED_FACTOR = 2.2  # of the bundle's size: what loading it beside the old one may take of the memory that is left
NICENESS = 5
_MODULE_ROOT = Path(__file__).resolve().parent.parent
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL")
_SAID = 2_000


@dataclass(frozen=True)
class TrialPlan:
    """How a bundle is tried: as the service would open it, and for how long."""

    chunk: int
    ort_threads: int
    timeout_s: float


class Trial:
    """One child process at a time; `stop` ends it from another thread."""

    def __init__(self, plan: TrialPlan, command: Sequence[str] | None = None) -> None:
        """`command` replaces the child's, for tests of what a child may do."""
        self._plan = plan
        self._command = command or (sys.executable, "-m", "service.bundle_trial")
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, path: Path) -> None:
        """Returns when the bundle in `path` passed. Raises BundleError with the file and the reason when it did not."""
        check_room(path)
        with tempfile.TemporaryDirectory(prefix="daian-trial-") as empty:
            ended, output, errors = self._finished(self._started(path, empty))
        if ended == 0:
            return
        reading, refused = _heard(output)
        if refused is not None:
            raise BundleError(refused)
        raise BundleError(f"{reading or path}: {_ending(ended, errors)} while it was tried: export the bundle again")

    def stop(self) -> None:
        """Ends the child, if there is one, and starts no other."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()

    def _started(self, path: Path, folder: str) -> "subprocess.Popen[str]":
        if self._stopped:
            raise BundleError(f"{path} was not tried: this process is about to stop")
        plan = self._plan
        self._child = subprocess.Popen(
            [*self._command, str(path.resolve()), str(plan.chunk), str(plan.ort_threads)],
            cwd=folder,  # a reference to a file beside the process finds nothing here
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # signals for the service are not for it
        )
        return self._child

    def _finished(self, child: "subprocess.Popen[str]") -> tuple[int | None, str, str]:
        """Exit code (None: out of time), output and errors of the child, which is gone afterwards."""
        with child:
            try:
                output, errors = child.communicate(timeout=self._plan.timeout_s)
                return child.returncode, output, errors
            except subprocess.TimeoutExpired:
                child.kill()
                output, errors = child.communicate()
                return None, output, errors
            finally:
                child.kill()
                self._child = None


def _environment() -> dict[str, str]:
    """What the child needs to start. No setting and no secret of ours: it reads files of strangers."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {**kept, **threads, "PYTHONPATH": str(_MODULE_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _heard(output: str) -> tuple[str | None, str | None]:
    """The last file that the child spoke of, and its verdict if it lived to give one."""
    reading = refused = None
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            reading = said.get("reading", reading)
            refused = said.get("refused", refused)
    return reading and str(reading)[:_SAID], refused and str(refused)[:_SAID]


def _ending(ended: int | None, errors: str) -> str:
    if ended is None:
        return "took too long"
    if ended < 0:
        return f"ended its reader by {signal.Signals(-ended).name}"
    last = errors.strip().splitlines()[-1:] or ["without a word"]
    return f"ended its reader with code {ended} ({last[0][:300]})"


# --- memory -----------------------------------------------------------------------------------------------------------


def check_room(path: Path) -> None:
    """Raises BundleError when opening the bundle beside the one that answers could end in an out-of-memory kill."""
    size, left = bundle_size(path), memory_left()
    if left is not None and NEEDED_FACTOR * size > left:
        largest = max(list_files(path), key=lambda file: file.stat().st_size)
        raise BundleError(
            f"{path} has {size / 1e6:.0f} MB, {largest.stat().st_size / 1e6:.0f} of them {largest.relative_to(path)}, "
            f"and {left / 1e6:.0f} MB of memory are left; {NEEDED_FACTOR} times its size is needed to open it beside "
            "the old one: give the service more memory, or restart it on this bundle"
        )


def bundle_size(path: Path) -> int:
    """Bytes of all files of a bundle. Raises BundleError for a link."""
    return sum(file.stat().st_size for file in list_files(path))


def memory_left(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that this process may still use, by the machine and by its cgroup; None where neither can be asked."""
    found = [left for left in (_machine_left(meminfo), _cgroup_left(cgroup)) if left is not None]
    return min(found) if found else None


def _machine_left(meminfo: Path) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _cgroup_left(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / "memory.current").read_text()) - int(kinds.get("inactive_file", 0))
        return int(limit) - used
    except (OSError, ValueError):
        return None


# --- the child --------------------------------------------------------------------------------------------------------


class _TracedBundle(Bundle):
    """A bundle that says which file is about to be parsed, for the case that nobody lives to say it afterwards."""

    def read(self, name: str) -> bytes:
        _say(reading=str(self.path / name))
        return super().read(name)


def main(path: Path, chunk: int, ort_threads: int) -> int:
    """Tries one bundle with this process's limits set; prints what it reads and why it refuses."""
    os.nice(NICENESS)
    try:
        _say(reading=str(path))
        _limit_memory(MEMORY_BASE + MEMORY_FACTOR * bundle_size(path))
        bundle = read_bundle(path)
        check_bundle(_TracedBundle(bundle.path, bundle.manifest, bundle.digest), chunk, ort_threads)
    except BundleError as error:
        _say(refused=str(error))
        return 1
    return 0


def _limit_memory(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(**what: str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
