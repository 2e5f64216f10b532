"""From the runs of a comparison to the numbers of its report, plain values only. Called by `training.report`.

Means and spreads are over seeds. Tests are in `training.report_tests`, claims in `training.report_claims`, Fig. 6 in
`training.report_diversity`. One number judges everything in a table, its `judged_by`. Runs of older programs lack some
numbers; what lacks is left out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.contract.encoder import Encoder
from training.baselines import baseline_numbers
from training.checkpoint import read_config
from training.compare import TIMING, TIMING_FAILED, Comparison, RowState, encoder_folder
from training.compare_worker import PERMUTED_SCORES, TEST_SCORES
from training.data.dataset import open_catalogue, open_dataset
from training.metrics import rela_impr
from training.recipes import TABLES
from training.report_cells import COLUMNS, averaged, number, spread, spreads
from training.report_claims import claims
from training.report_contrasts import contrasts
from training.report_diversity import OVER_BASE, gains_by_diversity, read_diversity
from training.report_intents import beside_truth, constant_intents, constants_to_observed, constants_to_truth
from training.report_intervals import intervals_of, rela_impr_interval
from training.report_tests import add_tests
from training.scores import Scored, load_scores
from training.table import strongest_line
from training.truth import oracle_numbers, read_truth

BASE = "din"
ORACLE = "attractiveness"  # the one of the claim: docs/world.md
OURS = ("daian", "levels")  # groups that are no rivals; DAIAN's ablations are none either


def report_numbers(comparison: Comparison, states: Mapping[str, RowState]) -> dict[str, Any]:
    """Everything that the report says. Raises DataError when scores or data cannot be read."""
    judged_by = TABLES[comparison.table].judged_by
    rows = {name: row_numbers(state, judged_by) for name, state in states.items()}
    lines = baseline_numbers(comparison.data, "test")
    found: dict[str, Any] = {
        "comparison": _about(comparison),
        "rows": rows,
        "lines": lines,
        "judged_by": judged_by,
        "judged_title": COLUMNS[judged_by],
        "strongest_line": strongest_line(lines, judged_by),
        "best_rival": best_rival(rows),
    }
    for name, row in rows.items():
        row["tried"] = tried(comparison.out / "rows" / name, row)
    each = [row["tried"] for row in rows.values()]
    found["comparison"]["learning_rates"] = sorted({rate for one in each for rate in one})
    found["comparison"]["n_settings"] = max(map(len, each), default=0)
    _add_relative(found, _timing(comparison))
    found["not_timed"] = why_not_timed(comparison.out, rows)
    _add_truth(found, comparison, states)
    _add_diversity(found, comparison, states)
    _add_intervals(found, comparison, states)
    add_tests(
        rows,
        found["best_rival"],
        judged_by,
        lambda name: load_row(comparison, states[name]),
        lambda name: load_row(comparison, states[name], PERMUTED_SCORES),
    )
    found["claims"] = claims(found)
    return found


def load_row(comparison: Comparison, state: RowState, file: str = TEST_SCORES) -> list[Scored]:
    """The test scores of all seeds of a row; none when permuted ones were not kept for all."""
    paths = [comparison.out / "rows" / state.row.name / name / file for name in sorted(state.runs)]
    if file == PERMUTED_SCORES and not all(path.is_file() for path in paths):
        return []
    return [load_scores(path) for path in paths]


def row_numbers(state: RowState, judged_by: str) -> dict[str, Any]:
    """One row: mean and spread over its seeds."""
    found: dict[str, Any] = {
        "title": state.row.title,
        "group": state.row.group,
        "failure": state.failure,
        "n_levels": state.row.n_levels,
        "ablation_of": state.row.ablation_of,
        "is_rival": state.row.group not in OURS and state.row.ablation_of != "daian",
        "n_seeds": len(state.runs),
        "learning_rate": None if state.setting is None else state.setting.learning_rate,
    }
    runs = [state.runs[name] for name in sorted(state.runs)]
    if not runs:
        return {**found, "failure": state.failure or "no run is finished"}
    measures = [run["measures"] for run in runs]
    return {
        **found,
        "numbers": {name: spread([value_of(run, name) for run in runs]) for name in COLUMNS},
        "random_trigger": spread([number(run["random_trigger"].get(judged_by)) for run in runs]),
        "validation": spread([number(run["validation"].get(judged_by)) for run in runs]),
        "code_sha256": sorted({run.get("code_sha256", "unknown") for run in runs}),
        "intent_js_specific": spread([_js_of_specific(found) for found in measures]),
        "cpu_seconds": spread([number(run["cpu_seconds"]) for run in runs]),
        "n_parameters": runs[0]["n_parameters"],
        "n_steps": runs[0]["n_steps"],
        "notes": sorted({note for run in runs for note in run["notes"]}),
        "inside": spreads([run["inside"] for run in runs]),
        "contrasts": contrasts([run["inside"] for run in runs]),
        "intent": averaged([found.get("intent", {}) for found in measures]),
        "by_intent_diversity": spreads([found.get("by_intent_diversity", {}) for found in measures]),
        "by_item": spreads([found.get("by_item", {}) for found in measures]),
        "by_user": spreads([found.get("by_user", {}) for found in measures]),
        "top": spreads([found.get("top", {}) for found in measures]),
        "by_level": averaged([found["by_level"] for found in measures]),
        "reliability": averaged([found["calibration"]["reliability"] for found in measures[:1]]),
    }


def _js_of_specific(measures: Mapping[str, Any]) -> float:
    part = measures.get("intent", {}).get("specific", {})
    return number(part["js_of_means"]["value"]) if "js_of_means" in part else math.nan


def value_of(run: Mapping[str, Any], name: str) -> float:
    """A column of one run."""
    return number(run["measures"]["calibration"][name]["value"] if name in ("ece", "copc") else run["test"].get(name))


def best_rival(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The rival with the highest mean on validation: chosen on the test split it would be the luckiest one."""
    means = {name: row["validation"]["mean"] for name, row in rows.items() if row["is_rival"] and "numbers" in row}
    return max((name for name in means if not math.isnan(means[name])), key=lambda name: means[name], default=None)


def _about(comparison: Comparison) -> dict[str, Any]:
    plan = json.loads((comparison.out / "plan.json").read_text(encoding="utf-8"))
    dataset = open_dataset(comparison.data)
    splits = {split: dataset.report[split] for split in ("train", "validation", "test") if split in dataset.report}
    sizes = {split: {key: part[key] for key in ("requests", "candidates", "clicks")} for split, part in splits.items()}
    return {**plan, "seeds": comparison.n_seeds, "n_levels": dataset.n_levels, "sizes": sizes}


def tried(folder: Path, row: Mapping[str, Any]) -> list[float]:
    """The learning rates that a row was trained with, as its runs recorded them: those of its trials, or of its seeds.

    What today's table says may not be what was run.
    """
    trials = [read_config(path.parent)[0] for path in sorted(folder.glob("trial-*/config.json"))]
    there = {config.optim.learning_rate for config in trials}
    return sorted(there or ({row["learning_rate"]} - {None}))


def _timing(comparison: Comparison) -> dict[str, Any]:
    path = comparison.out / TIMING
    return json.loads(path.read_text(encoding="utf-8")).get("rows", {}) if path.is_file() else {}


def why_not_timed(out: Path, rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why finished rows have no latency; None when all of them have one. Rows of other levels are never timed."""
    lack = [
        row["title"]
        for row in rows.values()
        if "numbers" in row and row["n_levels"] is None and "latency_ms" not in row
    ]
    if not lack:
        return None
    failed = out / TIMING_FAILED
    if failed.is_file():
        return f"timing failed: {failed.read_text(encoding='utf-8').partition(chr(10))[0]}"
    if not (out / TIMING).is_file():
        return "the graphs were not timed yet: the same call without --report-only does it when all rows are finished"
    return f"not timed: {', '.join(lack)}; there was no exporter, or they were finished later, or cannot be exported"


def _add_relative(found: dict[str, Any], timing: Mapping[str, Any]) -> None:
    """RelaImpr and latency against DIN, and whether counting ranks as well."""
    rows, lines, line, judged_by = found["rows"], found["lines"], found["strongest_line"], found["judged_by"]
    base = rows.get(BASE, {}).get("numbers")
    is_above_chance = base is not None and base[judged_by]["mean"] > 0.5
    for name, row in rows.items():
        if "numbers" not in row:
            continue
        mean = row["numbers"][judged_by]["mean"]
        row["rela_impr"] = rela_impr(mean, base[judged_by]["mean"]) if is_above_chance else math.nan
        row["below_counting"] = line is not None and mean <= lines[line][judged_by]
        if name in timing:
            row["latency_ms"] = timing[name]["median_ms"]
            row["latency_ratio"] = row["latency_ms"] / timing[BASE]["median_ms"] if BASE in timing else math.nan


def _add_truth(found: dict[str, Any], comparison: Comparison, states: Mapping[str, RowState]) -> None:
    """Against the oracle, where the data set is a simulated one."""
    encoder = Encoder.open(encoder_folder(comparison, None), open_catalogue(comparison.data))
    truth, constants = read_truth(comparison.data, "test"), constant_intents(comparison.data, encoder.scale)
    for row in found["rows"].values():
        if row.get("intent"):
            row["constants_to_observed"] = constants_to_observed(constants, row["intent"])
    if truth is None:
        return
    found["oracle"] = oracle_numbers(truth)
    for name, state in states.items():
        row = found["rows"][name]
        scored = load_row(comparison, state)
        if not scored:
            continue
        row |= beside_truth(scored, truth)
        row["oracle_share"] = row["oracle_shares"][ORACLE]
        if "intent_to_truth" in row:
            row["constants_to_truth"] = constants_to_truth(constants, scored[0], truth)


def _add_diversity(found: dict[str, Any], comparison: Comparison, states: Mapping[str, RowState]) -> None:
    """What some rows gain over DIN by intent diversity; nothing where DIN or leaf categories are missing."""
    rows = found["rows"]
    shown = [name for name in shown_by_diversity(found["best_rival"]) if "numbers" in rows.get(name, ())]
    training = read_diversity(comparison.data) if shown and "numbers" in rows.get(BASE, ()) else None
    if training is None:
        return
    base = load_row(comparison, states[BASE])
    for name in shown:
        rows[name][OVER_BASE] = gains_by_diversity(load_row(comparison, states[name]), base, training)


def _add_intervals(found: dict[str, Any], comparison: Comparison, states: Mapping[str, RowState]) -> None:
    """Of every number of the table over users and seeds, and of RelaImpr over DIN."""
    rows, judged_by = found["rows"], found["judged_by"]
    base = load_row(comparison, states[BASE]) if "numbers" in rows.get(BASE, ()) else []
    for name, row in rows.items():
        if "numbers" in row:
            scored = load_row(comparison, states[name])
            row["intervals"] = intervals_of(scored, tuple(COLUMNS))
            if base and name != BASE:
                row["rela_impr_interval"] = rela_impr_interval(scored, base, judged_by)


def shown_by_diversity(best_rival: str | None) -> list[str]:
    """The rows of Fig. 6: DAIAN, the best rival, and the models made for triggers that the paper has there."""
    return [name for name in dict.fromkeys(("daian", best_rival, "dihn", "dian")) if name and name != BASE]
