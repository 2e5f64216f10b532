"""Every command that README and docs show can be typed: the verb is there, its arguments parse, the target exists, and
so do the recipes, tables, rows and groups that it names."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError

from service.cli import build_app
from tests.architecture.tree import PAGES, ROOT, shown
from training.recipes import TABLES, recipe
from training.rows import ROWS

FENCE = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:daian|make) [^`]+)`")
ASSIGNMENT = re.compile(r"\w+=\S*")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
SETTINGS = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
GROUPS = {row.group for row in ROWS.values()}
# What names a run, a table or rows, in a block of commands as in running text; a placeholder in capitals is no name.
NAME = r"([a-z][\w/,-]*)"
OF_RUNS = re.compile(rf"daian train {NAME}|RECIPE={NAME}|`({'|'.join(TABLES)})/(\w+)`")
OF_COMPARISONS = re.compile(rf"daian compare {NAME}|--rows {NAME}|--groups {NAME}")
ROW_OF_THE_PAGE = re.compile(r'^ *"(\w+)": Row\(', re.MULTILINE)


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


def strange_name(text: str) -> str | None:
    """Why the first recipe, table, row or group that a page names and nobody has is none; None when all are there.

    A page that shows how a row is added may name that row.
    """
    its_own = set(ROW_OF_THE_PAGE.findall(text)) - set(ROWS)
    for named, set_to, table, row in OF_RUNS.findall(text):
        name = named or set_to or f"{table}/{row}"
        if name.rpartition("/")[2] in its_own and name.rpartition("/")[0] in TABLES:
            continue
        try:
            recipe(name)
        except ValueError as error:
            return str(error)
    for table, rows, groups in OF_COMPARISONS.findall(text):
        if table and table not in TABLES:
            return f"no table {table!r}; tables are {', '.join(TABLES)}"
        strangers = sorted((set(rows.split(",")) - {""} - set(ROWS)) | (set(groups.split(",")) - {""} - GROUPS))
        if strangers:
            return f"no row or group {strangers[0]!r}; rows are {', '.join(ROWS)}; groups are {', '.join(GROUPS)}"
    return None


def unknown_option(app: App, tokens: list[str]) -> str | None:
    """The first option that the verb in `tokens` does not take; None when it takes them all."""
    here = app
    for token in tokens:
        if here.default_command is not None or token.startswith("-") or token not in here:
            break
        here = here[token]
    arguments = here.assemble_argument_collection() if here.default_command is not None else ()
    known = {name for argument in arguments for name in argument.names} | {"--help"}
    return next((token for token in tokens if token.startswith("--") and token.partition("=")[0] not in known), None)


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


def test_every_option_in_running_text_exists(app: App) -> None:
    for path, command in mentions("daian"):
        stranger = unknown_option(app, command.split()[1:])
        assert stranger is None, f"{path} speaks of `{command}`, which has no {stranger}"


def test_an_option_that_is_not_there_is_found(app: App) -> None:
    assert unknown_option(app, ["export", "RUN", "--prerank", "OTHER_RUN"]) is None
    assert unknown_option(app, ["export", "RUN", "--polish"]) == "--polish"


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_every_recipe_table_row_and_group_exists(path: Path) -> None:
    found = strange_name(path.read_text(encoding="utf-8"))
    assert found is None, f"{shown(path)}: {found}"


def test_docs_name_recipes_tables_and_rows() -> None:
    """The patterns find what is there: else the test above could not fail."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    runs = {found[0] for text in texts for found in OF_RUNS.findall(text)}
    assert {"paper/daian", "daian_demo"} <= runs
    compared = [found for text in texts for found in OF_COMPARISONS.findall(text)]
    assert all(any(found[place] for found in compared) for place in range(3))


@pytest.mark.parametrize(
    "text",
    [
        "daian train daian_paper --data artifacts/data/shop",
        "daian train small/pair --data artifacts/data/shop",
        "make train RECIPE=paper",
        "as in `small/dan` of the table",
        "daian compare smal --data artifacts/data/small",
        "`--rows din,dain` of them",
        "daian compare small \\\n  --groups rivals",
        '    "pair": Row("Pair", ...)\ndaian train smal/pair',
    ],
)
def test_a_name_that_nobody_has_is_found(text: str) -> None:
    assert strange_name(text)


def test_a_page_may_name_the_row_that_it_adds() -> None:
    assert strange_name('    "pair": Row("Pair", ...)\ndaian train small/pair') is None


def test_every_make_target_exists() -> None:
    for path, command in [*commands("make"), *mentions("make")]:
        for word in words(command)[1:]:
            if ASSIGNMENT.match(word):
                name = word.partition("=")[0]
                assert name in SETTINGS, f"{path} shows `{command}`, and the Makefile knows no {name}"
            elif not word.startswith("-"):
                assert word in TARGETS, f"{path} shows `{command}`, and the Makefile has no `{word}`"
