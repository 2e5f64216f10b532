"""Whoever ends a demo that serves ends the service and its folder with it, by Ctrl-C, SIGTERM or a closed terminal."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

# The tour over a service that is a sleeping process: what is asked is what becomes of it.
# Signals are what a terminal gives: a test run in the background may have some of them ignored.
SERVING = """
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from models_export import demo_tour

signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
with demo_tour.Tour(SimpleNamespace(path=Path("bundles/daian/1")), Path("data"), None, 0) as tour:
    tour._service._process = subprocess.Popen(["sleep", "60"])
    print(tour._service._process.pid, tour._service._folder, flush=True)
    tour.serve_until_interrupted()
"""
UNPROTECTED = SERVING.replace("\nwith ", "\ndemo_tour._ENDINGS = ()\nwith ")


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def ended(code: str, number: signal.Signals) -> tuple[int, bool, bool]:
    """How a demo ended by the signal: its exit code, whether its service is left, and whether its folder is."""
    demo = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    with demo, demo.stdout as out:
        pid, folder = out.readline().split()
        assert out.readline().startswith("Serving on")
        time.sleep(0.2)  # from the line to the wait
        demo.send_signal(number)
        demo.wait(30)
        left = is_running(int(pid)), Path(folder).exists()
        if left[0]:
            os.kill(int(pid), signal.SIGKILL)
    with suppress(FileNotFoundError):
        Path(folder).rmdir()
    return demo.returncode, *left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_behind(number: signal.Signals) -> None:
    assert ended(SERVING, number) == (0, False, False)


def test_saboteur_a_signal_that_is_no_interrupt_leaves_service_and_folder() -> None:
    assert ended(UNPROTECTED, signal.SIGTERM) == (-signal.SIGTERM, True, True)
