"""What a comparison shows while it runs: a bar, a line for each worker, and a line that stays for each finished run.

Made by `training.commands`; on stderr, as all progress.
"""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class CompareProgress:
    """A `training.compare.Watcher`. Use it in a `with` block."""

    def __init__(self) -> None:
        self._screen = Console(stderr=True)
        self._columns = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._screen,
            transient=True,
        )
        self._all = self._columns.add_task("runs", total=0)
        self._total = 0
        self._workers: dict[int, int] = {}

    def __enter__(self) -> "CompareProgress":
        self._columns.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._columns.stop()

    def planned(self, n_tasks: int) -> None:
        """A longer bar."""
        self._total += n_tasks
        self._columns.update(self._all, total=self._total)

    def says(self, worker: int, row: str, name: str, text: str) -> None:
        """The worker's own line."""
        if worker not in self._workers:
            self._workers[worker] = int(self._columns.add_task("", total=None))
        self._columns.update(self._workers[worker], description=f"{row} {name}: {text}")  # type: ignore[arg-type]

    def done(self, row: str, name: str, text: str) -> None:
        """A line that stays."""
        self._columns.advance(self._all)
        self._screen.print(f"{row} {name}: {text}", highlight=False, soft_wrap=True)
