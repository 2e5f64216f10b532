"""Goals that a test suite measures: the suite is run, and its own counts are read.

A test that proves a goal says what it found with `record_property("G6", "5xx answers: 0 of 10000")`: that line, any
number of times, is all that this file asks of it. Counts that are said by one name are added up; of times and sizes by
one name the largest counts; a line after `note: ` goes to the page as it is. A suite that is not there, or says nothing
else, is not measured. Called by `__main__.py`.
"""

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.goals.lab import SOAK, Lab
from benchmarks.goals.outcome import Check, Outcome, none_of, not_measured

ROOT = Path(__file__).resolve().parents[2]
COUNT = re.compile(r"(?P<what>.+): (?P<failed>[\d,]+) of (?P<n>[\d,]+)")
AT_MOST = re.compile(r"(?P<what>.+): (?P<found>-?[\d.]+|inf) (?P<unit>\S+), at most (?P<limit>[\d.]+)")
NOTE = "note: "
LONGEST_S = 14_400
SAID = 8_000  # characters of a suite that failed


@dataclass(frozen=True)
class Suite:
    """Test files that prove a goal, what makes them run at full length, and what they are always given."""

    goal: str
    paths: tuple[str, ...]
    soak: dict[str, str]
    always: dict[str, str] = field(default_factory=dict)

    def measure(self, lab: Lab) -> Outcome:
        """Runs what there is of it."""
        there = [path for path in self.paths if (ROOT / path).exists()]
        if not there:
            return not_measured(f"no suite yet: {', '.join(self.paths)}")
        report = lab.folder / f"{self.goal}.xml"
        environment = {**self.always, **(self.soak if lab.sizes == SOAK else {})}
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), *there, f"--junitxml={report}",
                   "-o", "junit_family=xunit1",  # the newer family has no properties, and pytest warns, which fails
                   "-p", "no:cacheprovider", "--timeout", str(LONGEST_S)]  # fmt: skip
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=_environment(environment, lab.sizes == SOAK),
            capture_output=True,
            check=False,
            text=True,
        )
        if ended.returncode:
            print(ended.stdout[-SAID:], file=sys.stderr)
        if not report.exists():
            return not_measured(f"the suite did not run (exit {ended.returncode})")
        return read_report(self.goal, report.read_text(), there)


def read_report(goal: str, text: str, paths: list[str]) -> Outcome:
    """An outcome of what the tests of a JUnit report say about `goal`, and of whether they passed."""
    root = ElementTree.fromstring(text)
    cases = list(root.iter("testcase"))
    n_failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    n_skipped = sum(case.find("skipped") is not None for case in cases)
    lines = [one.get("value", "") for one in root.iter("property") if one.get("name") == goal]
    said = [line for line in lines if not line.startswith(NOTE)]
    notes = dict.fromkeys(line.removeprefix(NOTE) for line in lines if line.startswith(NOTE))
    how = "; ".join([", ".join(paths), *([f"{n_skipped} tests were skipped"] if n_skipped else []), *notes])
    checks = [none_of("failed tests", n_failed, len(cases) - n_skipped)]
    if not said:
        return Outcome(how, [] if n_failed == 0 else checks, f"its {len(cases)} tests say nothing of {goal} yet")
    return Outcome(how, [*_checks(said), *checks])


def _checks(lines: list[str]) -> list[Check]:
    """One check for each name, out of what the tests said. Raises ValueError for a line of another form."""
    counts: dict[str, tuple[int, int]] = {}
    largest: dict[str, re.Match[str]] = {}
    for line in lines:
        if found := COUNT.fullmatch(line):
            failed, n = counts.get(found["what"], (0, 0))
            counts[found["what"]] = failed + _number(found["failed"]), n + _number(found["n"])
        elif found := AT_MOST.fullmatch(line):
            before = largest.get(found["what"])
            if before is None or float(found["found"]) > float(before["found"]):
                largest[found["what"]] = found
        else:
            raise ValueError(
                f"{line!r} is neither `what: 0 of n` nor `what: x unit, at most y`: say it in one of these forms"
            )
    return [*(none_of(what, *both) for what, both in counts.items()), *map(_at_most, largest.values())]


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _at_most(found: re.Match[str]) -> Check:
    amount, limit, unit = found["found"], found["limit"], found["unit"]
    return Check(found["what"], f"{amount} {unit}", f"≤ {limit} {unit}", float(amount) <= float(limit), "time")


def _environment(added: dict[str, str], is_long: bool) -> dict[str, str]:
    """A long run tries what no run has tried: a seed of its own, which the suite prints when it finds something."""
    seed = {"DAIAN_TEST_FUZZ_SEED": str(int(time.time()))} if is_long else {}
    return {**os.environ, **seed, **added}


SUITES = {
    suite.goal: suite
    for suite in (
        Suite(
            "G5",
            ("tests/chaos/test_store_modes.py",),
            {"DAIAN_TEST_FAILOVERS": "20"},
            {"DAIAN_TEST_DOWN_AFTER_MS": "500"},
        ),
        Suite("G6", ("tests/fuzz",), {"DAIAN_TEST_FUZZ_CASES": "1000000"}),
        Suite("G13", ("tests/chaos/test_hostile_bundles.py", "tests/hostile"), {"DAIAN_TEST_MUTANTS": "10000"}),
        Suite("G18", ("tests/e2e/test_erasure.py",), {"DAIAN_TEST_ERASED_USERS": "1000"}),
    )
}
