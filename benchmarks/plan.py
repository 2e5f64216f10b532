"""How much is measured: the sizes of a benchmark run, full or quick. Read by every part.

Full is what the page is written from. Quick is every line of the code in minutes on a busy machine; its numbers mean
nothing and go nowhere but its own folder.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """One run of the benchmarks."""

    folder: Path = Path("artifacts/bench")
    n_items: int = 100_000
    models: tuple[str, ...] = ("daian", "din")
    candidates: tuple[int, ...] = (1, 100, 500, 1000)
    n_rounds: int = 30  # of the graphs, A B A B
    load_rounds: int = 5  # of a load over HTTP
    load_s: float = 10.0  # of one turn
    warm_up_s: float = 3.0
    n_stage_requests: int = 400
    growth_candidates: tuple[int, ...] = (1, 10, 50, 100, 250, 500, 1000, 2000)
    growth_behaviours: tuple[int, ...] = (0, 10, 50, 100, 250, 500, 1000)
    growth_items: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    growth_rounds: int = 20
    training_candidates: tuple[int, ...] = (1, 5, 20, 50)
    training_items: int = 20_000
    training_rows: int = 60_000
    training_rounds: int = 5
    training_s: float = 10.0
    servers: tuple[str, ...] = ()  # all that are known
    server_rounds: int = 3
    allowed_bad: float = 0.01  # share of the answers of a load that may be refused or not whole

    @property
    def bundles(self) -> Path:
        """Where bundles and graphs are kept between runs."""
        return self.folder / "bundles"


QUICK = Plan(
    folder=Path("artifacts/bench-quick"),
    n_items=2_000,
    candidates=(1, 20),
    n_rounds=3,
    load_rounds=2,
    load_s=1.0,
    warm_up_s=0.5,
    n_stage_requests=12,
    growth_candidates=(1, 20, 50),
    growth_behaviours=(0, 20, 100),
    growth_items=(1_000, 2_000),
    growth_rounds=3,
    training_candidates=(1, 5),
    training_items=500,
    training_rows=600,
    training_rounds=2,
    training_s=1.0,
    server_rounds=1,
    allowed_bad=1.0,
)
