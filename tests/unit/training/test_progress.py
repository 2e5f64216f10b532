"""Where a run's numbers are shown: progress on stderr, so that stdout holds results alone."""

from pathlib import Path

import pytest

from training.progress import RunProgress


def test_progress_goes_to_stderr_and_results_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(tmp_path) as progress:
        progress.step("clicks", 1, 0.5, 100, 0.1)
        progress.validation("clicks", 1, {"gauc_request": 0.61234})
        progress.note("intent", "has nothing to learn from")
        progress.console.print("the result")
    shown = capsys.readouterr()
    assert shown.out == "the result\n"
    assert "gauc_request 0.6123" in shown.err
    assert "intent: has nothing to learn from" in shown.err
    assert "the result" not in shown.err


def test_the_curves_are_written(tmp_path: Path) -> None:
    with RunProgress(tmp_path) as progress:
        progress.step("clicks", 1, 0.5, 100, 0.1)
    assert list((tmp_path / "tensorboard").glob("events*"))
