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


def test_demo_gets_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[DemoPlan] = []
    monkeypatch.setattr(models_export.demo, "demo", plans.append)
    app = App("daian")
    register(app)
    arguments = ["demo", "--data", "logs", "--short", "--port", "9001"]
    app(arguments, exit_on_error=False, result_action="return_value")
    assert plans == [DemoPlan(Path("logs"), short=True, port=9001, keep_serving=False)]
