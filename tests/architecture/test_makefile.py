"""Which bundles `make serve` serves: those that are named, else one's own, else the demo's, else new ones; and that
`make train` asks for a recipe before it simulates a world."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT


def served(folder: Path, *arguments: str) -> str:
    """What `make serve` would do in this folder; nothing of it is done."""
    return made(folder, "-n", "serve", *arguments).stdout


def made(folder: Path, *arguments: str, is_fine: bool = True) -> "subprocess.CompletedProcess[str]":
    """What make says in this folder, where everything is installed."""
    shutil.copy(ROOT / "Makefile", folder)
    command = ["make", "--no-print-directory", *(one for one in arguments if "=" in one)]
    ours = {name: value for name, value in os.environ.items() if name != "BUNDLES" and not name.startswith("MAKE")}
    (folder / "pyproject.toml").touch()
    ready = subprocess.run(
        [*command, "--eval", "ready: ; @echo $(READY)", "ready"],
        cwd=folder, env=ours, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    for installed in (folder / ready, folder / ".venv/bin/pip"):
        installed.parent.mkdir(parents=True, exist_ok=True)
        installed.touch()
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=ours, check=is_fine, capture_output=True, text=True)


def bundles(folder: Path, name: str, age_s: int = 0) -> str:
    """A folder of bundles with a current one."""
    current = folder / name / "current"
    current.parent.mkdir(parents=True)
    current.touch()
    os.utime(current, (1_700_000_000 - age_s,) * 2)
    return name


@pytest.fixture
def demo(tmp_path: Path) -> str:
    """Two that the demo left; gives the newest."""
    bundles(tmp_path, "artifacts/demo/bundles-a", age_s=60)
    bundles(tmp_path, "artifacts/demo/bundles-z", age_s=90)
    return bundles(tmp_path, "artifacts/demo/bundles-m")


def test_the_demos_newest_is_served_and_named(tmp_path: Path, demo: str) -> None:
    told, command = served(tmp_path).splitlines()
    assert command.split() == [".venv/bin/daian", "serve", demo]
    assert f"bundles: {demo} (the demo made them" in told


@pytest.mark.usefixtures("demo")
def test_ones_own_and_those_that_are_named_come_first(tmp_path: Path) -> None:
    elsewhere = bundles(tmp_path, "elsewhere")
    assert served(tmp_path, f"BUNDLES={elsewhere}").splitlines() == [
        f'echo "bundles: {elsewhere}"', f".venv/bin/daian serve {elsewhere} "
    ]  # fmt: skip
    own = bundles(tmp_path, "artifacts/bundles")
    assert served(tmp_path).splitlines()[-1].split() == [".venv/bin/daian", "serve", own]


@pytest.mark.parametrize(("named", "root"), [((), "artifacts/bundles"), (("BUNDLES=new",), "new")])
def test_where_there_are_none_they_are_made_first(tmp_path: Path, named: tuple[str, ...], root: str) -> None:
    if named:
        bundles(tmp_path, "artifacts/demo/bundles-a")
    lines = served(tmp_path, *named).splitlines()
    assert any("daian export" in line and f"--bundles {root}" in line for line in lines)
    assert lines[-1].split() == [".venv/bin/daian", "serve", root]


def test_a_recipe_that_is_none_is_told_before_a_world_is_simulated(tmp_path: Path) -> None:
    bin_ = tmp_path / ".venv/bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' \"$@\"\n")
    (bin_ / "daian").write_text("#!/bin/sh\necho daian $*\n")
    for name in ("python", "daian"):
        (bin_ / name).chmod(0o755)
    wrong = made(tmp_path, "train", "RECIPE=nosuch", is_fine=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("daian: no recipe 'nosuch'; recipes are daian_demo")
    right = made(tmp_path, "train").stdout.splitlines()
    assert [line.split()[:3] for line in right] == [["daian", "data", "simulate"], ["daian", "train", "daian_demo"]]


def test_where_there_is_a_world_the_training_asks_itself(tmp_path: Path) -> None:
    world = tmp_path / "artifacts/data/demo/dataset.json"
    world.parent.mkdir(parents=True)
    world.touch()
    lines = made(tmp_path, "-n", "train", "RECIPE=nosuch").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [[".venv/bin/daian", "train", "nosuch"]]
