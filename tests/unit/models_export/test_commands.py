"""The verbs: they are there, cheap to load, and pass on what they were given."""

import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

import models_export.demo
from models_export.commands import register
from models_export.demo import DemoPlan


def test_every_verb_is_registered() -> None:
    app = App("daian")
    register(app)
    assert all(verb in app for verb in ("export", "parity", "demo"))


def test_registering_loads_nothing_heavy() -> None:
    code = "import sys, models_export.commands; print(sorted({'torch', 'onnx', 'faiss', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def planned(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[DemoPlan]:
    """The demos that a command line runs."""
    plans: list[DemoPlan] = []
    monkeypatch.setattr(models_export.demo, "demo", plans.append)
    app = App("daian")
    register(app)
    app(["demo", *arguments], exit_on_error=False, result_action="return_value")
    return plans


def test_demo_gets_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    own = DemoPlan(Path("logs"), short=False, port=9001, keep_serving=False)
    assert planned(monkeypatch, "--data", "logs", "--port", "9001") == [own]
    assert planned(monkeypatch, "--short", "--serve") == [DemoPlan(short=True, keep_serving=True)]


def test_data_of_ones_own_cannot_be_shortened_and_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        planned(monkeypatch, "--data", "logs", "--short")
