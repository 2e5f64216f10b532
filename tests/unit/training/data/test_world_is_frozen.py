"""The simulated world's generator is frozen: whoever changes what it computes changes docs/world.md too, by name.

Comments and docstrings are free; everything else is in the fingerprint that the page states.
"""

import ast
import re
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SOURCES = ("synthetic", "world_journal", "world_shop", "world_users", "world_visits")
WITH_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def bare(source: str) -> str:
    """The lines that compute: without docstrings, comments and blank lines. The same under every version of Python."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [""] * len(lines[first - 1 : last])
    without = [re.sub(r"(^|  )\s*# .*$", "", line).rstrip() for line in lines]
    return "\n".join(line for line in without if line)


def fingerprint(sources: list[str]) -> str:
    return sha256("\n".join(map(bare, sources)).encode()).hexdigest()[:16]


def generator() -> list[str]:
    return [(ROOT / "training" / "data" / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES]


def test_the_page_names_the_generator_as_it_is() -> None:
    page = (ROOT / "docs" / "world.md").read_text(encoding="utf-8")
    stated = re.search(r"fingerprint of its sources: `(\w+)`", page)
    assert stated is not None
    assert stated[1] == fingerprint(generator()), (
        f"the generator changed: numbers of other worlds cannot be compared. Name the change and its reason in "
        f"docs/world.md#changes, state `{fingerprint(generator())}` there, and run the tables again"
    )


def test_a_changed_number_changes_it() -> None:
    first, *rest = generator()
    number = re.search(r"(?<=[ (])0\.\d+", first)
    assert number is not None
    other = f"{first[: number.start()]}{number[0]}1{first[number.end() :]}"
    assert fingerprint([other, *rest]) != fingerprint([first, *rest])


@pytest.mark.parametrize("free", ['"""Says something else."""\n', "# and so does this\n"])
def test_words_are_free(free: str) -> None:
    source = '"""Says what."""\n\nx = 1\n'
    assert fingerprint([source.replace('"""Says what."""\n', free)]) == fingerprint([source])
