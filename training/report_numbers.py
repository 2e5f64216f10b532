"""From the runs of a comparison to the numbers of its report, plain values only. Called by `training.report`.

Means and spreads are over seeds; tests are paired over users of the test split, each ranker the mean of its seeds
(`training.paired`). At most the test scores of three rows are in memory at a time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from training.baselines import baseline_numbers
from training.compare import SWEPT, Comparison, RowState
from training.compare_worker import TEST_SCORES
from training.data.dataset import open_dataset
from training.metrics import rela_impr
from training.paired import paired_test
from training.report_claims import claims
from training.scores import Scored, load_scores
from training.truth import intent_to_truth, oracle_numbers, read_truth, share_of_oracle

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
JUDGED_BY = "gauc_request"
BASE = "din"
OURS = ("daian", "ablation", "levels")  # groups that are no rivals
COUNTING = ("popularity", "click_rate", "pair_rate", "logit_click_rate_trigger", "logit_all")  # a goal is no shop's
Loader = Callable[[str], list[Scored]]


def report_numbers(comparison: Comparison, states: Mapping[str, RowState]) -> dict[str, Any]:
    """Everything that the report says. Raises DataError when scores or data cannot be read."""
    rows = {name: row_numbers(state) for name, state in states.items()}
    lines = baseline_numbers(comparison.data, "test")
    found: dict[str, Any] = {
        "comparison": _about(comparison),
        "rows": rows,
        "lines": lines,
        "strongest_line": max(
            (name for name in COUNTING if name in lines), key=lambda name: lines[name][JUDGED_BY], default=None
        ),
        "best_rival": best_rival(rows),
    }
    _add_relative(rows, lines, found["strongest_line"], _timing(comparison))
    _add_truth(found, comparison, states)
    _add_tests(found, lambda name: load_row(comparison, states[name]))
    found["claims"] = claims(found)
    return found


def load_row(comparison: Comparison, state: RowState) -> list[Scored]:
    """The test scores of all seeds of a row."""
    folder = comparison.out / "rows" / state.row.name
    return [load_scores(folder / name / TEST_SCORES) for name in sorted(state.runs)]


def row_numbers(state: RowState) -> dict[str, Any]:
    """One row: mean and spread over its seeds."""
    found: dict[str, Any] = {
        "title": state.row.title,
        "group": state.row.group,
        "failure": state.failure,
        "n_levels": state.row.n_levels,
        "learning_rate": None if state.setting is None else state.setting.learning_rate,
    }
    runs = [state.runs[name] for name in sorted(state.runs)]
    if not runs:
        return {**found, "failure": state.failure or "no run is finished"}
    measures = [run["measures"] for run in runs]
    return {
        **found,
        "numbers": {name: spread([value_of(run, name) for run in runs]) for name in COLUMNS},
        "random_trigger": spread([number(run["random_trigger"][JUDGED_BY]) for run in runs]),
        "cpu_seconds": spread([number(run["cpu_seconds"]) for run in runs]),
        "n_parameters": runs[0]["n_parameters"],
        "n_steps": runs[0]["n_steps"],
        "notes": sorted({note for run in runs for note in run["notes"]}),
        "inside": averaged([run["inside"] for run in runs]),
        "intent": averaged([found.get("intent", {}) for found in measures]),
        "by_intent_diversity": averaged([found.get("by_intent_diversity", {}) for found in measures]),
        "by_item": averaged([found.get("by_item", {}) for found in measures]),
        "by_user": averaged([found.get("by_user", {}) for found in measures]),
        "top": averaged([found.get("top", {}) for found in measures]),
        "by_level": averaged([found["by_level"] for found in measures]),
        "reliability": averaged([found["calibration"]["reliability"] for found in measures[:1]]),
    }


def value_of(run: Mapping[str, Any], name: str) -> float:
    """A column of one run."""
    return number(run["measures"]["calibration"][name]["value"] if name in ("ece", "copc") else run["test"].get(name))


def number(value: float | None) -> float:
    """NaN is null on disk."""
    return math.nan if value is None else float(value)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1; NaN for one) and range over the seeds that have the number."""
    there = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(there):
        return {"mean": math.nan, "sd": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    sd = float(there.std(ddof=1)) if len(there) > 1 else math.nan
    low, high = float(there.min()), float(there.max())
    return {"mean": float(there.mean()), "sd": sd, "low": low, "high": high, "n": len(there)}


def averaged(parts: Sequence[Any]) -> Any:
    """Means of equal structures, number by number; the interval of a measure is dropped, its value stays."""
    first = parts[0]
    if isinstance(first, Mapping):
        if set(first) == {"value", "low", "high"}:
            return spread([number(part["value"]) for part in parts])["mean"]
        return {key: averaged([part[key] for part in parts]) for key in first if all(key in part for part in parts)}
    if isinstance(first, list):
        return [averaged(list(column)) for column in zip(*parts, strict=True)]
    return spread([number(part) for part in parts])["mean"]


def best_rival(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The rival with the highest mean on the test split. Chosen there, it is the harder one to beat."""
    rivals = [name for name, row in rows.items() if row["group"] not in OURS and "numbers" in row]
    return max(rivals, key=lambda name: rows[name]["numbers"][JUDGED_BY]["mean"], default=None)


def _about(comparison: Comparison) -> dict[str, Any]:
    plan = json.loads((comparison.out / "plan.json").read_text(encoding="utf-8"))
    dataset = open_dataset(comparison.data)
    splits = {split: dataset.report[split] for split in ("train", "validation", "test") if split in dataset.report}
    sizes = {split: {key: part[key] for key in ("requests", "candidates", "clicks")} for split, part in splits.items()}
    return {**plan, "seeds": comparison.n_seeds, "n_levels": dataset.n_levels, "sizes": sizes}


def _timing(comparison: Comparison) -> dict[str, Any]:
    path = comparison.out / "timing.json"
    return json.loads(path.read_text(encoding="utf-8")).get("rows", {}) if path.is_file() else {}


def _add_relative(
    rows: dict[str, dict[str, Any]],
    lines: Mapping[str, Mapping[str, float]],
    line: str | None,
    timing: Mapping[str, Any],
) -> None:
    """RelaImpr and latency against DIN, and whether counting ranks as well."""
    base = rows.get(BASE, {}).get("numbers")
    for name, row in rows.items():
        if "numbers" not in row:
            continue
        mean = row["numbers"][JUDGED_BY]["mean"]
        row["rela_impr"] = rela_impr(mean, base[JUDGED_BY]["mean"]) if base else math.nan
        row["below_counting"] = line is not None and mean <= lines[line][JUDGED_BY]
        if name in timing:
            row["latency_ms"] = timing[name]["median_ms"]
            row["latency_ratio"] = row["latency_ms"] / timing[BASE]["median_ms"] if BASE in timing else math.nan


def _add_truth(found: dict[str, Any], comparison: Comparison, states: Mapping[str, RowState]) -> None:
    """Against the oracle, where the data set is a simulated one."""
    truth = read_truth(comparison.data, "test")
    if truth is None:
        return
    found["oracle"] = oracle_numbers(truth)
    own = open_dataset(comparison.data).n_levels
    for name, state in states.items():
        row = found["rows"][name]
        scored = load_row(comparison, state)
        if not scored:
            continue
        shares = [share_of_oracle(one, truth) for one in scored]
        row["oracle_share"] = {key: spread([share[key] for share in shares]) for key in shares[0]}
        if scored[0].intent is not None and scored[0].intent.shape[1] == own:
            found_js = [intent_to_truth(one, truth) for one in scored]
            row["intent_to_truth"] = {
                kind: {key: spread([part[kind][key] for part in found_js]) for key in found_js[0][kind]}
                for kind in found_js[0]
            }


def _add_tests(found: dict[str, Any], load: Loader) -> None:
    """Every row against the best rival, and DAIAN against every row: differences in GAUC per request."""
    rows, rival = found["rows"], found["best_rival"]
    trained = [name for name, row in rows.items() if "numbers" in row]
    best = load(rival) if rival else None
    daian = load(SWEPT) if SWEPT in trained else None
    for name in trained:
        own = load(name)
        if best is not None and name != rival:
            rows[name]["against_best_rival"] = paired_test(own, best, JUDGED_BY)._asdict()
        if daian is not None and name != SWEPT:
            rows[name]["daian_minus_this"] = paired_test(daian, own, JUDGED_BY)._asdict()
