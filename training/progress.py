"""Where the numbers of a run go while it trains: a line on the terminal and TensorBoard. Made by `training.commands`.

Progress is written to stderr, as the data doors do; stdout is left to results. The loop tells; nothing here decides
anything.
"""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

SHOWN = ("gauc_request", "gauc_user", "auc", "log_loss", "intent_kl")
_SMOOTHING = 0.98


class RunProgress:
    """A `training.loop.Recorder`. Use it in a `with` block: it owns the progress display and the TensorBoard file.

    `console` writes to stdout: it is for the run's result. The file is made with its first point: what was refused
    before the first step leaves no folder.
    """

    def __init__(self, run_folder: Path) -> None:
        self.console = Console()
        self._screen = Console(stderr=True)
        self._curves_folder = run_folder / "tensorboard"
        self._curves: SummaryWriter | None = None
        self._columns = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self._screen, transient=True
        )
        self._task = self._columns.add_task("starting")
        self._stage = ""
        self._loss = 0.0
        self._rate = 0.0

    def __enter__(self) -> "RunProgress":
        self._columns.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._columns.stop()
        if self._curves is not None:
            self._curves.close()

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
        """Shows the running loss and speed; one point on the curves."""
        rate = n_candidates / max(seconds, 1e-9)
        if stage != self._stage:
            self._stage, self._loss, self._rate = stage, loss, rate
        self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._rate = _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate
        self._point(f"{stage}/loss", loss, step)
        self._point(f"{stage}/samples_per_second", rate, step)
        self._columns.update(
            self._task, description=f"{stage}: step {step:,}, loss {self._loss:.4f}, {self._rate:,.0f} samples/s"
        )

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """A line that stays, and one point on each curve."""
        for name, value in numbers.items():
            self._point(f"{stage}/validation/{name}", value, step)
        shown = ", ".join(f"{name} {numbers[name]:.4f}" for name in SHOWN if name in numbers)
        self._say(f"{stage}: step {step:,}, loss {self._loss:.4f}, {self._rate:,.0f} samples/s | validation {shown}")

    def note(self, stage: str, text: str) -> None:
        """A line that stays."""
        self._say(f"{stage}: {text}")

    def _point(self, name: str, value: float, step: int) -> None:
        if self._curves is None:
            self._curves = SummaryWriter(str(self._curves_folder))
        self._curves.add_scalar(name, value, step)

    def _say(self, line: str) -> None:
        self._screen.print(line, highlight=False, soft_wrap=True)
