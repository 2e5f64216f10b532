"""Lab: where the goals are measured - a bundle, a folder, how long, which core for whom.

Made by `__main__.py` (or a test, with times of its own) and given to every measure. The service runs on one core and
the generator on another where there are two.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from service.contract.bundle import current_path, read_bundle
from tests.chaos.open_loop import Stream, post
from tests.chaos.service_process import ServiceProcess, service_process
from tests.small_bundle import write_small_bundle

N_CANDIDATES = 500
N_USERS = 40
PATIENT_MS = 60_000  # where the question is not how busy this machine is
PATIENT = {"DAIAN_MAX_DEADLINE_MS": str(PATIENT_MS), "DAIAN_DEADLINE_MS": str(PATIENT_MS)}
LIGHT = 50  # candidates where not the work counts but whether it is answered


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `CI` takes minutes, `SOAK` hours. Seconds are those of one load."""

    capacity_s: float
    overload_s: float
    fault_s: float
    n_rounds: int  # A/B pairs, taken in turn
    n_restarts: int
    n_kills: int
    n_store_kills: int
    n_slow: int
    n_canaries: int
    n_flips: int
    n_swaps: int
    n_soak: int
    n_starts: int


CI = Sizes(3, 10, 3, 1, 1, 3, 3, 400, 1_000, 1_000, 25, 20_000, 2)
SOAK = Sizes(10, 60, 10, 3, 20, 20, 20, 1_000, 10_000, 1_000, 1_000, 1_000_000, 10)


@dataclass(frozen=True)
class Lab:
    """One place to measure in. `prelude` and `settings` reach every service: how a saboteur takes a protection away."""

    root: Path
    folder: Path
    sizes: Sizes
    item_ids: list[str]
    prelude: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    is_pinned: bool = True

    @contextlib.contextmanager
    def service(
        self, name: str, settings: Mapping[str, str] | None = None, root: Path | None = None, prelude: str = ""
    ) -> Iterator[ServiceProcess]:
        """A service of this lab with one worker thread, on the first core; this thread keeps to the others."""
        cores = self.cores()
        given = {"DAIAN_SCORER_CONCURRENCY": "1", "DAIAN_DRAIN_S": "1", **(settings or {}), **self.settings}
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        code = f"{self.prelude}\n{prelude}"
        with service_process(root or self.root, folder, cores[:1], code, **given) as found, pinned(cores[1:]):
            yield found

    def cores(self) -> list[int]:
        """Cores to share out; none where there is one, or where nothing is to be pinned."""
        found = sorted(os.sched_getaffinity(0)) if self.is_pinned else []
        return found if len(found) > 1 else []

    def ranks(self, n_candidates: int = N_CANDIDATES, *lines: str, user: str = "u", **rest: object) -> list[bytes]:
        """Rank requests for each of N_USERS users, each with a trigger and candidates of its own."""
        endless = cycle(self.item_ids)
        return [
            post(
                "/v1/rank",
                {
                    "user": f"{user}{number}",
                    "trigger": self.item_ids[number % len(self.item_ids)],
                    "candidates": list(islice(endless, min(n_candidates, len(self.item_ids)))),
                    **rest,
                },
                *lines,
            )
            for number in range(N_USERS)
        ]

    def unhurried(self) -> list[bytes]:
        """Rank requests with time to wait, by which the capacity is measured: none is refused for its deadline."""
        return self.ranks(N_CANDIDATES, "x-timeout-ms: 2000")

    def ranking(self, per_s: float, n_candidates: int = N_CANDIDATES, *lines: str, group: str = "") -> Stream:
        return Stream(per_s, self.ranks(n_candidates, *lines), group)


@contextlib.contextmanager
def pinned(cores: list[int]) -> Iterator[None]:
    """This process on `cores` for as long as the block lasts."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def open_lab(sizes: Sizes, bundles: Path | None = None, is_pinned: bool = True) -> Iterator[Lab]:
    """A lab on a small bundle made for it, or on the one that `bundles` points to."""
    with tempfile.TemporaryDirectory(prefix="daian-goals-") as name:
        folder = Path(name)
        if bundles is None:
            root = folder / "bundles"
            write_small_bundle(root)
        else:
            root = bundles.resolve()
        catalogue = read_bundle(current_path(root)).open_encoder().catalogue
        ids = catalogue.ids(range(1, min(catalogue.n_items, 2_000) + 1))
        yield Lab(root, folder, sizes, ids, is_pinned=is_pinned)
