"""Every command that README and docs show can be typed: the verb is there, its arguments parse, the target exists."""

import re
import shlex
from collections.abc import Iterator

import pytest
from cyclopts import App, CycloptsError

from service.cli import build_app
from tests.architecture.tree import PAGES, ROOT, shown

FENCE = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:daian|make) [^`]+)`")
ASSIGNMENT = re.compile(r"\w+=\S*")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def typed_lines(text: str) -> Iterator[str]:
    """Lines of the shell blocks of a page, continuation lines joined."""
    for block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()


def words(line: str) -> list[str]:
    """A shell line without prompt, comment, and the settings before and pipes after the command."""
    found = shlex.split(line.removeprefix("$ "), comments=True)
    while found and ASSIGNMENT.fullmatch(found[0]):
        found.pop(0)
    stops = [place for place, word in enumerate(found) if word in {"|", "&&", ">", "<", "&", ";"}]
    return found[: stops[0]] if stops else found


def commands(program: str) -> list[tuple[str, str]]:
    """(page, command line) of everything typed in a shell block that runs `program`."""
    lines = [(shown(path), line) for path in PAGES for line in typed_lines(path.read_text(encoding="utf-8"))]
    return [(path, line) for path, line in lines if words(line)[:1] == [program]]


def mentions(program: str) -> list[tuple[str, str]]:
    """(page, command) of everything named in running text."""
    found = [(shown(path), command) for path in PAGES for command in INLINE.findall(path.read_text(encoding="utf-8"))]
    return [(path, command) for path, command in found if command.startswith(program + " ")]


@pytest.fixture(scope="module")
def app() -> App:
    return build_app()


def unknown_verb(app: App, tokens: list[str]) -> str | None:
    """The first word that no command answers to; None when the words lead to a verb."""
    here = app
    for token in tokens:
        if here.default_command is not None or token.startswith("-"):
            return None
        if token not in here:
            return token
        here = here[token]
    return None


def test_docs_show_commands() -> None:
    assert commands("make")
    assert commands("daian") + mentions("daian")


def test_every_daian_command_parses(app: App) -> None:
    for path, line in commands("daian"):
        tokens = words(line)[1:]
        if "--help" in tokens:
            continue
        try:
            app.parse_args(tokens, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            pytest.fail(f"{path} shows `{line}`, which cannot be typed: {error}")


def test_a_command_that_cannot_be_typed_is_found(app: App) -> None:
    with pytest.raises(CycloptsError):
        app.parse_args(["serve", "--no-such-option"], exit_on_error=False, print_error=False)


def test_every_verb_in_running_text_exists(app: App) -> None:
    for path, command in mentions("daian"):
        # `store load · inspect`: words up to the first that is no plain word.
        tokens = re.match(r"[a-z0-9\- ]*", command.removeprefix("daian ")).group().split()  # type: ignore[union-attr]
        stranger = unknown_verb(app, tokens)
        assert stranger is None, f"{path} speaks of `{command}`, and `{stranger}` is no verb: see `daian --help`"


def test_a_verb_that_is_not_there_is_found(app: App) -> None:
    assert unknown_verb(app, ["store", "inspect", "u1"]) is None
    assert unknown_verb(app, ["store", "polish"]) == "polish"


def test_every_make_target_exists() -> None:
    for path, command in [*commands("make"), *mentions("make")]:
        for target in words(command)[1:]:
            if not ASSIGNMENT.match(target) and not target.startswith("-"):
                assert target in TARGETS, f"{path} shows `{command}`, and the Makefile has no `{target}`"
