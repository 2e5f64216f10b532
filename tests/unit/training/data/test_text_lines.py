"""Lines with their places: blank ones count and are not given, ends are cut, errors say where and what to do."""

from pathlib import Path

import pytest

from training.data.errors import DataError
from training.data.text_lines import numbered_lines

ADVICE = "unpack it here"


def test_lines_keep_their_numbers_and_lose_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.tsv"
    path.write_bytes("a\tÅ \r\n\n  \nb\x0bc\t\nlast".encode())
    found = list(numbered_lines(path, ADVICE))
    assert found == [
        (f"{path}, line 1", "a\tÅ "),
        (f"{path}, line 4", "b\x0bc\t"),  # no line ends at a vertical tab
        (f"{path}, line 5", "last"),
    ]


def test_bytes_that_are_no_utf_8_are_named_by_their_line_after_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "file.tsv"
    path.write_bytes(b"a\n\nb\xff\n")
    lines = numbered_lines(path, ADVICE)
    assert next(lines) == (f"{path}, line 1", "a")
    with pytest.raises(DataError, match=r"file\.tsv, line 3: not UTF-8 .*; unpack it here\.$"):
        next(lines)


def test_a_missing_file_is_told_with_what_to_do_and_an_empty_one_has_no_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file\.tsv: no such file; unpack it here\.$"):
        list(numbered_lines(tmp_path / "file.tsv", ADVICE))
    (tmp_path / "file.tsv").touch()
    assert list(numbered_lines(tmp_path / "file.tsv", ADVICE)) == []
