"""The shape of the tree: empty `__init__` files, docstrings first, names that say what is inside, a complete wheel."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, SOURCES, shown

FILLED_INIT = "training/models/__init__.py"
DRAWERS = {"utils", "util", "helpers", "common", "base", "misc"}


def test_packages_have_empty_inits() -> None:
    filled = [shown(path) for path in SOURCES if path.name == "__init__.py" and path.stat().st_size]
    assert set(filled) <= {FILLED_INIT}, f"empty these files, their content belongs to a module with a name: {filled}"


def test_every_folder_with_sources_is_a_package() -> None:
    bare = {shown(path.parent) for path in SOURCES if not (path.parent / "__init__.py").exists()}
    assert not bare, f"add an empty __init__.py to {bare}: the wheel would leave these folders out"


def test_every_module_opens_with_a_docstring() -> None:
    silent = [shown(path) for path in SOURCES if path.name != "__init__.py" and not ast.get_docstring(parsed(path))]
    assert not silent, f"say in a docstring what lives here, who calls it, what it never does: {silent}"


def test_no_drawers() -> None:
    drawers = [shown(path) for path in SOURCES if path.stem in DRAWERS]
    assert not drawers, f"a name says what is inside: rename {drawers}"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def wheel_of(packages: Sequence[str], folder: Path) -> zipfile.ZipFile:
    """The wheel that the build backend makes from a tree that holds only `packages`; needs no network."""
    for package in packages:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True, timeout=120)
    (wheel,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.parametrize("packages", [PACKAGES, ("service",)], ids=["whole project", "serving image"])
def test_the_wheel_holds_every_module_and_nothing_else(packages: Sequence[str], tmp_path: Path) -> None:
    with wheel_of(packages, tmp_path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert names == {
        shown(path)
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.name != "Dockerfile" and path.parent.name != "__pycache__"
    }, "a file that the wheel lacks: name it under [tool.setuptools.package-data]; one too many: why is it in the tree?"
    always = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert always
    assert not [line for line in always if "torch" in line or "pyarrow" in line]
