"""Cells of a report's tables as text, and what is over seeds in them.

Called by the sections of reports: `training.report_sections`, `training.report_groups`, and what makes their numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from training.report_tests import is_starred

Numbers = Mapping[str, Any]

COLUMNS = {
    "auc": "AUC",
    "gauc_user": "GAUC user",
    "gauc_request": "GAUC request",
    "auc_per_request": "AUC/request",
    "log_loss": "log-loss",
    "ndcg_at_10": "NDCG@10",
    "ece": "ECE",
    "copc": "COPC",
}


def trained(found: Numbers) -> dict[str, Any]:
    """The rows that have numbers."""
    return {name: row for name, row in found["rows"].items() if "numbers" in row}


def difference(test: Numbers | None) -> str:
    """A paired difference with its interval and p; a star where it stands after Holm's adjustment."""
    if test is None or math.isnan(test["p"]):
        return "–"
    mark = " *" if is_starred(test) else ""
    return f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}] p {test['p']:.4f}{mark}"


def gain(found: Numbers) -> str:
    """A difference with its interval alone."""
    if math.isnan(found["difference"]):
        return "–"
    return f"{found['difference']:+.4f} [{plain(found['low'], '+.4f')}, {plain(found['high'], '+.4f')}]"


def plus_minus(found: Numbers | None, form: str = ".4f") -> str:
    """Mean ± standard deviation."""
    if found is None or math.isnan(found["mean"]):
        return "–"
    sd = "" if math.isnan(found["sd"]) else f" ± {found['sd']:{form.removeprefix('+')}}"
    return f"{found['mean']:{form}}{sd}"


def bracketed(found: Numbers | None, form: str = ".4f") -> str:
    """A number with its interval in brackets."""
    if found is None or math.isnan(found["value"]):
        return "–"
    if math.isnan(found["low"]):
        return f"{found['value']:{form}}"
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def plain(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1; NaN for one) and range over the seeds that have the number."""
    there = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(there):
        return {"mean": math.nan, "sd": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    sd = float(there.std(ddof=1)) if len(there) > 1 else math.nan
    low, high = float(there.min()), float(there.max())
    return {"mean": float(there.mean()), "sd": sd, "low": low, "high": high, "n": len(there)}


def number(value: float | None) -> float:
    """NaN is null on disk."""
    return math.nan if value is None else float(value)


def averaged(parts: Sequence[Any]) -> Any:
    """Means of equal structures, number by number; the interval of a measure is dropped, its value stays."""
    return _joined(parts, lambda values: spread(values)["mean"])


def spreads(parts: Sequence[Any]) -> Any:
    """The same with the spread over seeds in the place of each number."""
    return _joined(parts, spread)


def _joined(parts: Sequence[Any], of: Callable[[Sequence[float]], Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        if set(first) == {"value", "low", "high"}:
            return of([number(part["value"]) for part in parts])
        return {key: _joined([part[key] for part in parts], of) for key in first if all(key in part for part in parts)}
    if isinstance(first, list):
        return [_joined(list(column), of) for column in zip(*parts, strict=True)]
    return of([number(part) for part in parts])
