"""Welch's interval as scipy has it, its verdict, and the page that the table is written into."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.peers.compare import BEGIN, END, Difference, markdown, signed, spread, welch, write_measured


def test_the_interval_is_that_of_scipys_test() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0.7, 0.01, 5), random.normal(0.69, 0.002, 4)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    found = welch(list(ours), list(theirs))
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_more_spread_is_a_wider_interval() -> None:
    narrow, wide = welch([0.70, 0.71, 0.72], [0.6, 0.6, 0.61]), welch([0.5, 0.71, 0.92], [0.6, 0.6, 0.61])
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert narrow.verdict == "ours ahead"
    assert wide.verdict == "no difference shown"


def test_the_verdict_follows_the_interval() -> None:
    assert Difference(-0.02, -0.03, -0.01).verdict == "ours behind"
    assert Difference(0.0, -0.01, 0.01).verdict == "no difference shown"
    assert Difference(0.02, 0.01, 0.03).verdict == "ours ahead"


def test_runs_that_agree_to_the_last_bit_have_no_interval() -> None:
    assert welch([0.5, 0.5], [0.4, 0.4]) == Difference(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))


def test_one_run_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        welch([0.5], [0.4, 0.6])


def test_the_numbers_as_they_are_printed() -> None:
    assert spread([0.5, 0.52]) == "0.5100 ± 0.0141"
    assert signed(Difference(-0.02, -0.03, 0.01)) == "-0.0200 [-0.0300, +0.0100]"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_table_takes_the_place_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_measured(page, "new")
    write_measured(page, "newer")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        write_measured(page, "new")
    assert page.read_text(encoding="utf-8") == "before"
