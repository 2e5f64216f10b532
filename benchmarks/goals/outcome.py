"""Outcome: what was found for one goal, and what it is held against.

Made by the measures of this folder, written by `page.py`. A check is a count (true on any machine, so it may fail a
CI run) or a time (true of one machine and its load). Zero events in n tries say no more than a rate below 3/n, with
95 % confidence: that bound is always given.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tests.chaos.open_loop import Sent

Kind = Literal["count", "time"]
Verdict = Literal["reached", "NOT reached", "not measured"]
D_S = 0.1  # the deadline of a request that names none, in seconds


@dataclass(frozen=True)
class Check:
    """One figure: what it is, what was found, what was asked for."""

    what: str
    found: str
    limit: str
    is_met: bool
    kind: Kind = "count"


@dataclass(frozen=True)
class Outcome:
    """The checks of one goal; `unmeasured` says why there is no verdict."""

    how: str
    checks: list[Check] = field(default_factory=list)
    unmeasured: str = ""

    @property
    def verdict(self) -> Verdict:
        if any(not check.is_met for check in self.checks):
            return "NOT reached"
        return "not measured" if self.unmeasured or not self.checks else "reached"


def not_measured(why: str) -> Outcome:
    """No figure, and why."""
    return Outcome("", [], why)


def none_of(what: str, n_failed: int, n: int) -> Check:
    """Zero of n, with the bound; n = 0 proves nothing and is not met."""
    bound = f" (bound < {300 / n:.2g} %)" if n and not n_failed else ""
    return Check(what, f"{n_failed:,} of {n:,}{bound}", "0", n > 0 and n_failed == 0)


def all_200(what: str, answers: Sequence[Sent]) -> Check:
    """None of the answers is anything but 200; what else came is told by status, 0 for a broken connection."""
    others = Counter(one.status for one in answers if one.status != 200)
    check = none_of(what, others.total(), len(answers))
    told = ", ".join(f"{status}: {n}" for status, n in sorted(others.items()))
    return replace(check, found=f"{check.found} ({told})") if others else check


def at_most(what: str, found: float, limit: float, unit: str, kind: Kind = "time") -> Check:
    return Check(what, amount(found, unit), f"≤ {amount(limit, unit)}", found <= limit, kind)


def at_least(what: str, found: float, limit: float, unit: str, kind: Kind = "time") -> Check:
    return Check(what, amount(found, unit), f"≥ {amount(limit, unit)}", found >= limit, kind)


def amount(value: float, unit: str) -> str:
    """A number of three digits, thousands apart, with its unit."""
    shown = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def percentile_ms(seconds: Sequence[float], q: float) -> float:
    """Of times in seconds, in milliseconds; infinite where there is none, so that no limit is met."""
    return float(np.percentile(seconds, q)) * 1000 if len(seconds) else float("inf")
