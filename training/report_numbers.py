"""From the runs of a comparison to the numbers of its report, plain values only. Called by `training.report`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.compare import Comparison, RowState

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


def report_numbers(comparison: Comparison, states: Mapping[str, RowState]) -> dict[str, Any]:
    """Everything that the report says."""
    return {"table": comparison.table, "rows": {name: row_numbers(state) for name, state in states.items()}}


def row_numbers(state: RowState) -> dict[str, Any]:
    """One row: mean and spread over its seeds."""
    found: dict[str, Any] = {"title": state.row.title, "group": state.row.group, "failure": state.failure}
    runs = [state.runs[name] for name in sorted(state.runs)]
    if runs:
        found["numbers"] = {name: spread([value_of(run, name) for run in runs]) for name in COLUMNS}
    return found


def value_of(run: Mapping[str, Any], name: str) -> float:
    """A column of one run."""
    value = run["measures"]["calibration"][name]["value"] if name in ("ece", "copc") else run["test"][name]
    return float("nan") if value is None else float(value)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds (n - 1; NaN for one)."""
    array = np.array(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else float("nan"),
        "n": len(array),
    }
