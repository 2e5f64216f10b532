"""What the tables change in the models' defaults is written down in docs/compare.md, with the values of today."""

from dataclasses import fields
from typing import Any

from tests.architecture.tree import ROOT
from training.layers.embedding import DEFAULT_WIDTHS
from training.recipes import TABLES
from training.rows import ROWS

# What makes a row the row it is, and is told by its title.
VARIANTS = {"use_trigger", "search", "parts", "trigger_product", "trigger_attention", "trigger_evolution"} | {
    "two_attentions", "hse_product", "concat_similarity",
}  # fmt: skip
OF_WIDTHS = "widths"  # a class of its own, with a line of its own


def changed() -> dict[tuple[str, str], tuple[Any, tuple[Any, ...]]]:
    """By model and field: the default, and what the rows of the tables have."""
    found = {}
    for row in ROWS.values():
        if row.ablation_of is not None:
            continue
        configs = [row.config(TABLES[table].size) for table in ("small", "wikispeedia", "paper")]
        default = type(configs[0])()
        for field in fields(default):
            before, after = getattr(default, field.name), tuple(getattr(config, field.name) for config in configs)
            if field.name not in {*VARIANTS, OF_WIDTHS} and any(value != before for value in after):
                found[type(default).__name__.removesuffix("Config"), field.name] = (before, after)
    return found


def written(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def rows_of_the_page() -> list[list[str]]:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    part = text.partition("## What a table changes")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]


def not_written(found: dict[tuple[str, str], tuple[Any, tuple[Any, ...]]]) -> list[tuple[str, str]]:
    """What no line of the page says: the field, its default, and the values of the three tables."""
    lines = rows_of_the_page()

    def says(line: list[str], field: str, before: Any, after: tuple[Any, ...]) -> bool:
        if f"`{field}`" not in line[1]:
            return False
        if field.endswith("_epochs"):
            return written(before) in line[2] and all(written(value) in line[3] for value in after)
        values = line[3].partition(":")[0].split(" / ")
        return written(before) in line[2].split(", ") and all(
            written(value) in there.split(", ") for value, there in zip(after, values, strict=True)
        )

    return [
        key for key, (before, after) in found.items() if not any(says(line, key[1], before, after) for line in lines)
    ]


def test_every_default_that_a_table_changes_is_on_the_page() -> None:
    found = changed()
    assert len(found) > 40
    assert not_written({key: value for key, value in found.items() if key[1] != "max_epochs"}) == []
    assert {value for key, value in found.items() if key[1] == "max_epochs"} == {(1, (4, 4, 4))}
    lines = rows_of_the_page()
    assert "`max_epochs`" in lines[2][1]
    widths = [DEFAULT_WIDTHS, *(TABLES[table].size.widths for table in ("small", "wikispeedia", "paper"))]
    shown = [", ".join(str(number) for number in vars(one).values()) for one in widths]
    assert lines[3][2:] == [shown[0], " / ".join(shown[1:])]


def test_a_change_that_is_not_on_the_page_would_be_seen() -> None:
    """The twin: another value, another default and another field."""
    before, after = changed()["Dihn", "n_heads"]
    assert not_written({("Dihn", "n_heads"): (before, after)}) == []
    for other in (
        {("Dihn", "n_heads"): (before, (4, 4, 8))},
        {("Dihn", "n_heads"): (5, after)},
        {("Dihn", "n_tails"): (before, after)},
    ):
        assert not_written(other) == list(other)
