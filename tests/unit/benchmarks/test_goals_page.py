"""Verdicts and their page: a figure that is not met is said, nothing that was not measured counts as reached."""

from pathlib import Path

import pytest

from benchmarks.goals.__main__ import keep
from benchmarks.goals.lab import SOAK, Lab
from benchmarks.goals.outcome import Outcome, all_200, at_least, at_most, none_of, not_measured, percentile_ms
from benchmarks.goals.page import Result, in_order, page_of, read_results
from benchmarks.goals.suites import SUITES, Suite, read_report
from benchmarks.goals.table import GOALS
from tests.chaos.open_loop import Sent, Stream, arrivals

REPORT = """<testsuites><testsuite><testcase name="a"><properties>
<property name="G6" value="5xx answers: {n_failed} of 10,000"/><property name="G9" value="others: 1 of 2"/>
<property name="G6" value="memory: 3.5 MB, at most 10"/></properties></testcase>
<testcase name="b">{inside}</testcase></testsuite></testsuites>"""


def result(goal: str, outcome: Outcome, share: str = "ci") -> Result:
    return Result(goal, share, "2026-01-01 00:00", 1.0, 0.1, "a machine", "versions", f"measure {goal}", outcome)


def test_nothing_of_n_says_what_it_bounds_and_nothing_of_nothing_is_not_met() -> None:
    assert none_of("lost", 0, 3_000).found == "0 of 3,000 (bound < 0.1 %)"
    assert [none_of("lost", *found).is_met for found in ((0, 10), (1, 10), (0, 0))] == [True, False, False]


def test_a_percentile_of_nothing_meets_no_limit() -> None:
    assert not at_most("p99", percentile_ms([], 99), 1e9, "ms").is_met
    assert percentile_ms([0.001] * 99 + [1.0], 50) == pytest.approx(1.0)


def test_answers_that_are_not_200_are_told_by_status() -> None:
    check = all_200("not answered", [Sent(0, 0, 200), Sent(0, 0, 503), Sent(0, 0, 0)])
    assert (check.found, check.is_met) == ("2 of 3 (0: 1, 503: 1)", False)


def test_verdicts() -> None:
    met, missed = at_least("goodput", 91, 90, "%"), at_least("goodput", 89, 90, "%")
    assert Outcome("how", [met]).verdict == "reached"
    assert Outcome("how", [met, missed]).verdict == "NOT reached"
    assert Outcome("how", [met], "too short").verdict == "not measured"
    assert Outcome("how", [missed], "too short").verdict == "NOT reached"
    assert not_measured("no suite").verdict == Outcome("how").verdict == "not measured"


def test_a_suite_that_fails_or_is_silent_reaches_nothing() -> None:
    told = REPORT.format(n_failed=0, inside="")
    assert read_report("G6", told, ["x"]).verdict == "reached"
    assert [check.what for check in read_report("G6", told, ["x"]).checks] == ["5xx answers", "memory", "failed tests"]
    assert read_report("G6", REPORT.format(n_failed=2, inside=""), ["x"]).verdict == "NOT reached"
    assert read_report("G6", REPORT.format(n_failed=0, inside="<failure/>"), ["x"]).verdict == "NOT reached"
    assert read_report("G5", told, ["x"]).verdict == "not measured"
    with pytest.raises(ValueError, match="is neither"):
        read_report("G6", told.replace("5xx answers: 0 of 10,000", "all is well"), ["x"])


def test_a_suite_is_run_and_heard(tmp_path: Path) -> None:
    suite = tmp_path / "test_something.py"
    suite.write_text("""
import os
def test_one(record_property):
    record_property("G6", f"answers: {os.environ['N_FAILED']} of 7")
""")
    for n_failed, verdict in (("0", "reached"), ("1", "NOT reached")):
        lab = Lab(tmp_path, tmp_path, SOAK, [])
        found = Suite("G6", (str(suite),), {"N_FAILED": n_failed}).measure(lab)
        assert (found.verdict, len(found.checks)) == (verdict, 2)


def test_what_many_tests_say_by_one_name_is_one_figure() -> None:
    said = {"rows": ("0 of 1", "1 of 1", "0 of 1,000"), "time": ("1.5 s, at most 3", "inf s, at most 3")}
    lines = [f'<property name="G5" value="{what}: {one}"/>' for what, every in said.items() for one in every]
    lines += ['<property name="G5" value="note: killed 3 times"/>'] * 2
    text = f"<testsuite><testcase><properties>{''.join(lines)}</properties></testcase></testsuite>"
    found = read_report("G5", text, ["x"])
    assert [(one.what, one.found, one.is_met) for one in found.checks] == [
        ("rows", "1 of 1,002", False), ("time", "inf s", False), ("failed tests", "0 of 1 (bound < 3e+02 %)", True)
    ]  # fmt: skip
    assert found.how == "x; killed 3 times"
    only_a_note = text.replace("rows: ", "note: ").replace("time: ", "note: ")
    assert read_report("G5", only_a_note, ["x"]).verdict == "not measured"


def test_results_are_kept_by_goal_and_share(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    for one in (
        result("G15", Outcome("as it is", [none_of("silent", 0, 1_000)])),
        result("G15", Outcome("as it is", [none_of("silent", 1, 1_000)]), "soak"),
        result("G15", Outcome("as it is", [none_of("silent", 0, 2_000)])),
        result("G5", not_measured("no suite yet")),
    ):
        keep(page, one)
    assert set(read_results(page.with_suffix(".json"))) == {"G15/ci", "G15/soak", "G5/ci"}
    text = page.read_text()
    assert text == page_of(read_results(page.with_suffix(".json")))
    assert f"| G15 | {GOALS['G15'].promise} | soak | NOT reached |" in text
    assert "| silent | 0 of 2,000 (bound < 0.15 %) | 0 | met |" in text
    assert "not measured: no suite yet" in text
    assert text.count("not measured: not run yet") == len(GOALS) - 2


def test_another_network_is_a_share_of_its_own_behind_that_of_the_table() -> None:
    found = [result("G2", Outcome("as it is", []), share) for share in ("ci", "soak, daian", "soak")]
    assert [one.share for one in in_order({one.share: one for one in found})] == ["soak", "soak, daian", "ci"]


def test_the_table_is_whole() -> None:
    assert list(GOALS) == [f"G{number}" for number in range(1, 20)]
    assert set(SUITES) <= set(GOALS)


def test_arrivals_are_as_many_as_asked_for_and_do_not_wait_for_answers() -> None:
    plan = arrivals([Stream(200, [b"a", b"b"], "x"), Stream(100, [b"c"], "y")], 20, seed=1)
    assert [due for due, _, _ in plan] == sorted(due for due, _, _ in plan)
    n_x = sum(group == "x" for _, _, group in plan)
    assert 3_600 < n_x < 4_400
    assert 1_800 < len(plan) - n_x < 2_200
    assert plan == arrivals([Stream(200, [b"a", b"b"], "x"), Stream(100, [b"c"], "y")], 20, seed=1)
