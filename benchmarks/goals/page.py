"""The page of the goals: results are kept beside it as JSON, so that one goal may be measured again alone.

A result is kept for each goal and share (ci, soak, or with another network than the small bundle's: "soak, daian").
Called by `__main__.py`; knows nothing of how anything is measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.goals.outcome import Check, Outcome
from benchmarks.goals.table import GOALS

INTRO = """# Reliability, measured

What daian promises when things go wrong, and what was found when they were made to. This page is written by

```sh
make chaos        # CI's share: minutes
make soak         # at full length: hours
make chaos ARGS='--only G1,G4'
make chaos ARGS='--only G1,G2,G3 --network daian'
```

`python -m benchmarks.goals --help` has the rest; [operate.md](operate.md) says what to do when one of these things
happens. Each measure starts the real service (`daian serve`, its own Valkey), on one core where there are two, with one
worker thread and a small bundle whose network is a table; the generator has another core. A network that costs
nothing is the hard case of overload: the capacity is some hundreds of pages a second, and six times that are
thousands of refusals, each a hundred microseconds of the same core. Shares named *daian* have the paper's network in
its sizes, over 20,000 items, for users without a history. Arrivals are Poisson and wait for nobody; times count from
the moment a request was due. Capacity is measured first in the same run, and loads are multiples of it; answers in
time are a share of that or of the capacity after the surge, whichever is larger. *0 of n* means, with 95 %
confidence, a rate below 3/n, which stands beside it. Counts hold on any machine; times are those of the machine and
the load average in the last table. A goal with one figure that was not met
is NOT reached.
"""


@dataclass(frozen=True)
class Result:
    """An outcome, and under what circumstances it was found."""

    goal: str
    share: str
    at: str
    seconds: float
    load_average: float
    machine: str
    versions: str
    command: str
    outcome: Outcome


def read_results(path: Path) -> dict[str, Result]:
    """Results by `goal/share`; none where there is no file."""
    if not path.exists():
        return {}
    found = {}
    for key, one in json.loads(path.read_text(encoding="utf-8")).items():
        outcome = one.pop("outcome")
        checks = [Check(**check) for check in outcome.pop("checks")]
        found[key] = Result(**one, outcome=Outcome(**outcome, checks=checks))
    return found


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    text = json.dumps({key: asdict(results[key]) for key in sorted(results)}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def page_of(results: Mapping[str, Result]) -> str:
    """The whole page."""
    return "\n".join([INTRO, *_summary(results), "", *_details(results), *_circumstances(results)])


def in_order(results: Mapping[str, Result]) -> list[Result]:
    """By goal, the long run of each first."""
    return sorted(results.values(), key=lambda one: (int(one.goal[1:]), not one.share.startswith("soak"), one.share))


def _summary(results: Mapping[str, Result]) -> list[str]:
    lines = ["| goal | promise | share | verdict |", "|---|---|---|---|"]
    for name, goal in GOALS.items():
        found = [one for one in in_order(results) if one.goal == name]
        lines += [f"| {name} | {goal.promise} | {one.share} | {verdict_of(one.outcome)} |" for one in found]
        if not found:
            lines.append(f"| {name} | {goal.promise} | | not measured: not run yet |")
    return lines


def verdict_of(outcome: Outcome) -> str:
    """The verdict, with the reason where there is none."""
    why = f": {outcome.unmeasured}" if outcome.verdict == "not measured" else ""
    return f"{outcome.verdict}{why}"


def _details(results: Mapping[str, Result]) -> list[str]:
    lines = ["## What was found", ""]
    for one in in_order(results):
        if not one.outcome.checks:
            continue
        lines += [f"### {one.goal}, {one.share}: {one.outcome.verdict}", "", f"{_sentence(one.outcome)}", ""]
        lines += ["| figure | found | asked for | |", "|---|---|---|---|"]
        lines += [_row(check) for check in one.outcome.checks] + [""]
    return lines


def _sentence(outcome: Outcome) -> str:
    parts = [part for part in (outcome.how, outcome.unmeasured) if part]
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _row(check: Check) -> str:
    return f"| {check.what} | {check.found} | {check.limit} | {'met' if check.is_met else 'NOT met'} |"


def _circumstances(results: Mapping[str, Result]) -> list[str]:
    lines = ["## When and where", "", "| goal | share | when (UTC) | took | load average | command |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {one.goal} | {one.share} | {one.at} | {one.seconds:.0f} s | {one.load_average:.1f} | `{one.command}` |"
        for one in in_order(results)
    ]
    lines += [
        "",
        "The load average is that of the machine just before: well above 0, others were at work, and times are "
        "theirs too.",
        "",
    ]
    for machine, versions in sorted({(one.machine, one.versions) for one in results.values()}):
        lines += [f"- {machine}; {versions}"]
    return [*lines, ""]


def printed(result: Result) -> Sequence[str]:
    """The lines of one result for a terminal."""
    outcome = result.outcome
    lines = [f"{result.goal:4} {verdict_of(outcome)}  ({result.seconds:.0f} s, load average {result.load_average:.1f})"]
    return lines + [
        f"       {'ok ' if one.is_met else 'NOT'} {one.what}: {one.found} (asked for {one.limit})"
        for one in outcome.checks
    ]
