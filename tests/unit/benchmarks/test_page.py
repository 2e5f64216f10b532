"""The page of what was measured: made of the parts that are on disk, goals first, between its marks."""

from pathlib import Path

import pytest

from benchmarks.page import BEGIN, END, Circumstances, Found, Goal, Table, save, section, write_section


def found(part: str, value: float) -> Found:
    table = Table("A caption.", ["N", "ms"], [["1", f"{value}"]])
    return Found(part, part.title(), [table], [Goal(f"goal of {part}", 2.0, value)], ["a note"], {"all": [value]})


def test_parts_are_told_in_their_order_with_machine_command_and_load(tmp_path: Path) -> None:
    circumstances = Circumstances.now("python -m benchmarks --parts http")
    save(found("http", 1.5), circumstances, tmp_path)
    save(found("graphs", 12.5), circumstances, tmp_path)
    text = section(tmp_path)
    assert text.index("### Graphs") < text.index("### Http")
    assert "| goal of graphs | at least 2 | 12.5 | yes |" in text
    assert "| goal of http | at least 2 | 1.5 | no |" in text
    for said in ("python -m benchmarks --parts http", "Load average", "cores", "onnxruntime", "a note"):
        assert said in text


def test_a_part_that_is_measured_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for value in (1.5, 2.5):
        save(found("graphs", value), Circumstances.now("x"), tmp_path)
    text = section(tmp_path)  # whole lines: a load average may be 1.5 too
    assert "| goal of graphs | at least 2 | 2.5 | yes |" in text
    assert "| goal of graphs | at least 2 | 1.5 | no |" not in text


def test_at_most_is_the_other_way_round() -> None:
    assert Goal("share", 0.15, 0.10, at_least=False).reached
    assert not Goal("share", 0.15, 0.20, at_least=False).reached
    assert Goal("ratio", 12, 12).reached


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"prose\n{BEGIN}\nold\n{END}\nmore prose\n")
    write_section(page, "new")
    assert page.read_text() == f"prose\n{BEGIN}\nnew\n{END}\nmore prose\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place"):
        write_section(page, "new")
