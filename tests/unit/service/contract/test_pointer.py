"""The parent of the workers reads the pointer and no more: what only they need would be its own memory for nothing."""

import subprocess
import sys

import pytest

HEAVY = ("numpy", "faiss", "onnxruntime", "fastapi", "service.runtime", "service.contract.encoder")
IMPORTS = "import service.cli, service.commands, service.serving"


def loaded(imports: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has after these imports."""
    code = f"{imports}; import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True)
    return set(done.stdout.split())


def test_the_parent_of_the_workers_imports_nothing_that_only_they_need() -> None:
    assert loaded(IMPORTS) == set()


@pytest.mark.parametrize("one", ["service.contract.bundle", "service.runtime"])
def test_saboteur_a_parent_that_opens_bundles_would_be_seen(one: str) -> None:
    assert {"numpy", "faiss", "service.contract.encoder"} <= loaded(f"{IMPORTS}, {one}")
