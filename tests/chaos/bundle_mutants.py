"""Many bundles, each tried in a child as `service.bundle_trial` does, and served by a worker if it passes.

A process that has loaded everything once forks a child for each of them, so that a thousand cost minutes and not hours.
Used by test_hostile_bundles.py, in a process of its own (`python -m tests.chaos.bundle_mutants`): paths come on its
standard input, one a line, and an answer goes out for each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 120
REFUSED, BROKEN, UNFORESEEN = 1, 70, 99


@dataclass
class Lot:
    """What became of some bundles."""

    n: int = 0
    n_refused: int = 0
    n_unforeseen: int = 0  # an exception that is no BundleError ended the child
    n_children_died: int = 0
    n_refused_by_worker: int = 0
    n_workers_died: int = 0
    n_served: int = 0
    n_served_5xx: int = 0
    died: list[tuple[str, int]] = field(default_factory=list)  # what, and the how manieth it was (from 0)

    def add(self, other: "Lot") -> None:
        """Counts what another has counted."""
        for name, found in vars(other).items():
            setattr(self, name, getattr(self, name) + found)

    def take(self, said: dict[str, int | None]) -> None:
        """Counts one: exit codes of the child and, where it passed, of the worker (negative: ended by a signal)."""
        self.n += 1
        child, worker = said["child"], said["worker"]
        if child == REFUSED:
            self.n_refused += 1
        elif child == UNFORESEEN:
            self.n_unforeseen += 1
        elif child != 0:
            self.n_children_died += 1
            self.died.append((f"child {child}", self.n - 1))
        elif worker == REFUSED:
            self.n_refused_by_worker += 1
        elif worker in (0, BROKEN):
            self.n_served += 1
            self.n_served_5xx += worker == BROKEN
        else:
            self.n_workers_died += 1
            self.died.append((f"worker {worker}", self.n - 1))

    def told(self) -> str:
        return (
            f"of {self.n:,} mutants with fitting hashes {self.n_refused:,} were refused in the child, "
            f"{self.n_unforeseen:,} ended it by an exception that names no file, {self.n_children_died:,} crashed it, "
            f"{self.n_refused_by_worker:,} were refused by the worker, and "
            f"{self.n_served:,} scored all golden requests as recorded and served ({self.n_served_5xx:,} with a 5xx)"
        )


def tried(paths: Iterator[Path], trial: str = "", worker: str = "") -> Lot:
    """Tries each path while it is current. `trial` and `worker` are Python in the place of what these do."""
    lot = Lot()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAIAN_")}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.bundle_mutants", trial, worker], cwd=ROOT, text=True,
        env=environment | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for path in paths:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            lot.take(json.loads(process.stdout.readline()))
        process.stdin.close()
    assert process.returncode == 0
    return lot


# --- the process that forks -------------------------------------------------------------------------------------------


def forked(work: Callable[[], int]) -> int:
    """The exit code of `work` in a child with no output; negative for a signal."""
    child = os.fork()
    if not child:
        code = UNFORESEEN
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = work()
        finally:
            os._exit(code)  # whatever it was ends this process and no other
    until_s = time.monotonic() + LONGEST_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until_s:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def serve(path: Path) -> int:
    """Opens the bundle as a worker does and ranks a little."""
    from service.contract.errors import BundleError
    from service.settings import Settings
    from tests.asgi_client import opened
    from tests.small_bundle import item_ids

    times = [{"item": item, "type": "click", "time": 1_790_000_000_000} for item in ("i8", "i3")]
    asked: list[dict[str, object]] = [
        {"trigger": "i0"}, {"trigger": "i99", "user": "u1", "behaviours": times}, {"trigger": "nobody", "top_k": 5},
        {"trigger": "i5", "candidates": item_ids(), "context": {"surface": "home"}},
    ]  # fmt: skip
    try:
        with opened(Settings(bundle_root=path, bundle_poll_s=0, deadline_ms=2000, prerank="on")) as client:
            statuses = [client.rank(**body).status_code for body in asked]
    except BundleError:
        return REFUSED
    return BROKEN if any(status >= 500 for status in statuses) else 0


def main(trial: str, worker: str) -> None:
    """Until its input ends. Everything is loaded before the first fork: for each child anew it would take a second."""
    import service.app  # noqa: F401
    import tests.asgi_client
    import tests.small_bundle  # noqa: F401
    from service import bundle_trial

    def instead(code: str) -> int:
        exec(code, {})
        return 0

    for line in sys.stdin:
        path = Path(line.strip())
        child = forked(lambda: instead(trial) if trial else bundle_trial.main(path, 256, 1))  # noqa: B023
        served = None
        if child == 0:
            served = forked(lambda: instead(worker) if worker else serve(path))  # noqa: B023
        print(json.dumps({"child": child, "worker": served}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
