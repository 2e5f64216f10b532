"""Who may import whom: the rules of pyproject.toml hold, and the serving side never meets torch."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.architecture.tree import PACKAGES, ROOT

# What belongs to training; an image or a process that serves has none of it.
TELEMETRY = "ORT_DISABLE_TELEMETRY"
TRAINING_ONLY = ("torch", "pyarrow", "pandas", "onnx", "training", "models_export")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copy_of_the_tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_rules_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("service/scorer.py", "import torch", "3 slim image"),
        ("service/contract/history.py", "import time", "4 pure contract"),
        ("training/losses.py", "import service.settings", "2 only the contract is seen from outside"),
        ("training/losses.py", "import models_export.graph", "1 one direction"),
        ("training/models/din.py", "import training.models.daian", "7 models stand alone"),
        ("models_export/parity.py", "import service.contract.history", "6 only the encoder encodes"),
    ],
)
def test_a_forbidden_import_is_found(copy_of_the_tree: Path, file: str, line: str, rule: str) -> None:
    with (copy_of_the_tree / file).open("a") as source:
        source.write(f"\n{line}\n")
    result = lint_imports(copy_of_the_tree)
    assert result.returncode != 0
    assert f"{rule} BROKEN" in result.stdout


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after `statement`."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["service.app", "service.cli", "service.commands"])
def test_serving_loads_nothing_of_training(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(TRAINING_ONLY)


def test_torch_would_be_seen() -> None:
    assert "torch" in modules_after("import training.losses")


def needed_by(distribution: str, seen: set[str]) -> set[str]:
    """`distribution` and everything that installing it brings along, extras as asked for."""
    pending = [Requirement(distribution)]
    while pending:
        wanted = pending.pop()
        key = str(wanted.name).lower() + str(sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in requires(wanted.name) or []:
            requirement = Requirement(line)
            extras = wanted.extras or {""}
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(requirement)
    return {key.partition("[")[0] for key in seen}


def test_installing_for_serving_brings_no_torch() -> None:
    assert needed_by("daian", set()).isdisjoint({"torch", "pyarrow", "pandas", "onnx"})


def test_torch_would_be_found_among_requirements() -> None:
    assert {"torch", "pyarrow", "onnx"} <= needed_by("daian[export]", set())


@pytest.mark.parametrize("switched_off", [True, False], ids=["as shipped", "switched on again"])
def test_nothing_reports_home(switched_off: bool, tmp_path: Path) -> None:
    """ONNX Runtime keeps a device id for its reports; with reporting off it has no use for one."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"} | ({} if switched_off else {TELEMETRY: "0"})
    command = [str(Path(sys.executable).with_name("daian")), "openapi"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=True)
    assert bool([path for path in tmp_path.rglob("*") if path.is_file()]) is not switched_off
