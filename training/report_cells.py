"""Cells of a comparison's tables as text. Called by `training.report_sections` and `training.report_groups`."""

import math
from collections.abc import Mapping
from typing import Any

from training.report_tests import is_starred

Numbers = Mapping[str, Any]


def trained(found: Numbers) -> dict[str, Any]:
    """The rows that have numbers."""
    return {name: row for name, row in found["rows"].items() if "numbers" in row}


def difference(test: Numbers | None) -> str:
    """A paired difference with its interval and p; a star where it stands after Holm's adjustment."""
    if test is None or math.isnan(test["p"]):
        return "–"
    mark = " *" if is_starred(test) else ""
    return f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}] p {test['p']:.4f}{mark}"


def plus_minus(found: Numbers | None, form: str = ".4f") -> str:
    """Mean ± standard deviation."""
    if found is None or math.isnan(found["mean"]):
        return "–"
    sd = "" if math.isnan(found["sd"]) else f" ± {found['sd']:{form}}"
    return f"{found['mean']:{form}}{sd}"


def plain(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"
