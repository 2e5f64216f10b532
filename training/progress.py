"""Where the numbers of a run go while it trains: a line on the terminal and TensorBoard. Made by `training.commands`.

The loop tells; nothing here decides anything.
"""

from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

SHOWN = ("gauc_request", "gauc_user", "auc", "log_loss", "intent_kl")
_SMOOTHING = 0.98


class RunProgress:
    """A `training.loop.Recorder`. Use it in a `with` block: it owns the progress display and the TensorBoard file."""

    def __init__(self, run_folder: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self._curves = SummaryWriter(str(run_folder / "tensorboard"))
        self._columns = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self.console, transient=True
        )
        self._task = self._columns.add_task("starting")
        self._stage = ""
        self._loss = 0.0
        self._rate = 0.0

    def __enter__(self) -> Self:
        self._columns.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._columns.stop()
        self._curves.close()

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
        """Shows the running loss and speed; one point on the curves."""
        rate = n_candidates / max(seconds, 1e-9)
        if stage != self._stage:
            self._stage, self._loss, self._rate = stage, loss, rate
        self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._rate = _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate
        self._curves.add_scalar(f"{stage}/loss", loss, step)
        self._curves.add_scalar(f"{stage}/samples_per_second", rate, step)
        self._columns.update(
            self._task, description=f"{stage}: step {step:,}, loss {self._loss:.4f}, {self._rate:,.0f} samples/s"
        )

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """A line that stays, and one point on each curve."""
        for name, value in numbers.items():
            self._curves.add_scalar(f"{stage}/validation/{name}", value, step)
        shown = ", ".join(f"{name} {numbers[name]:.4f}" for name in SHOWN if name in numbers)
        self.console.print(
            f"{stage}: step {step:,}, loss {self._loss:.4f}, {self._rate:,.0f} samples/s | validation {shown}",
            highlight=False,
            soft_wrap=True,
        )
