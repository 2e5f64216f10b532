"""Goals that a test suite measures: the suite is run, and its own counts are read.

A test that proves a goal says what it found with `record_property("G6", "5xx answers: 0 of 10000")`: that line, any
number of times, is all that this file asks of it. A suite that is not there, or says nothing, is not measured. Called
by `__main__.py`.
"""

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from benchmarks.goals.lab import SOAK, Lab
from benchmarks.goals.outcome import Check, Outcome, none_of, not_measured

ROOT = Path(__file__).resolve().parents[2]
COUNT = re.compile(r"(?P<what>.+): (?P<failed>[\d,]+) of (?P<n>[\d,]+)")
AT_MOST = re.compile(r"(?P<what>.+): (?P<found>[\d.]+) (?P<unit>\S+), at most (?P<limit>[\d.]+)")
LONGEST_S = 14_400


@dataclass(frozen=True)
class Suite:
    """Test files that prove a goal, and what makes them run at full length."""

    goal: str
    paths: tuple[str, ...]
    soak: dict[str, str]

    def measure(self, lab: Lab) -> Outcome:
        """Runs what there is of it."""
        there = [path for path in self.paths if (ROOT / path).exists()]
        if not there:
            return not_measured(f"no suite yet: {', '.join(self.paths)}")
        report = lab.folder / f"{self.goal}.xml"
        environment = self.soak if lab.sizes == SOAK else {}
        command = [sys.executable, "-m", "pytest", *there, f"--junitxml={report}", "-p", "no:cacheprovider",
                   "--timeout", str(LONGEST_S)]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, env=_environment(environment), capture_output=True, check=False)
        if not report.exists():
            return not_measured(f"the suite did not run (exit {ended.returncode})")
        return read_report(self.goal, report.read_text(), there)


def read_report(goal: str, text: str, paths: list[str]) -> Outcome:
    """An outcome of what the tests of a JUnit report say about `goal`, and of whether they passed."""
    root = ElementTree.fromstring(text)
    cases = list(root.iter("testcase"))
    n_failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    n_skipped = sum(case.find("skipped") is not None for case in cases)
    said = [one.get("value", "") for one in root.iter("property") if one.get("name") == goal]
    how = f"{', '.join(paths)}" + (f"; {n_skipped} tests were skipped" if n_skipped else "")
    checks = [none_of("failed tests", n_failed, len(cases) - n_skipped)]
    if not said:
        return Outcome(how, [] if n_failed == 0 else checks, f"its {len(cases)} tests say nothing of {goal} yet")
    return Outcome(how, [*[_check(line) for line in said], *checks])


def _check(line: str) -> Check:
    """A check out of what a test said. Raises ValueError for a line of another form."""
    if found := COUNT.fullmatch(line):
        failed, n = (int(found[key].replace(",", "")) for key in ("failed", "n"))
        return none_of(found["what"], failed, n)
    if found := AT_MOST.fullmatch(line):
        is_met = float(found["found"]) <= float(found["limit"])
        return Check(
            found["what"], f"{found['found']} {found['unit']}", f"≤ {found['limit']} {found['unit']}", is_met, "time"
        )
    raise ValueError(f"{line!r} is neither `what: 0 of n` nor `what: x unit, at most y`: say it in one of these forms")


def _environment(added: dict[str, str]) -> dict[str, str]:
    """A long run tries what no run has tried: a seed of its own, which the suite prints when it finds something."""
    seed = {"DAIAN_TEST_FUZZ_SEED": str(int(time.time()))} if added else {}
    return {**os.environ, **seed, **added}


SUITES = {
    suite.goal: suite
    for suite in (
        Suite("G5", ("tests/chaos/test_store_modes.py",), {}),
        Suite("G6", ("tests/fuzz",), {"DAIAN_TEST_FUZZ_CASES": "1000000"}),
        Suite("G13", ("tests/chaos/test_hostile_bundles.py", "tests/hostile"), {"DAIAN_TEST_MUTANTS": "10000"}),
        Suite("G18", ("tests/e2e/test_erasure.py",), {"DAIAN_TEST_ERASED_USERS": "1000"}),
    )
}
