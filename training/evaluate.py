"""A finished run on one split of a data folder -> its numbers beside those of counting, and beside a live bundle's.

Called by `daian evaluate` and the demo. `evaluate` is the table alone; `evaluate_fully` adds every number of the report
with its interval, the paired tests, what `training.evaluate_inside` sees behind the ranking, and leaves the scores in
the run folder. Printed by `training.table` and `training.evaluation_report`. Numbers on other data than the run was
trained on are never written into its folder.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from service.contract.strict_json import strict_json
from training.baselines import LINES, Shown, baseline_numbers, numbers_of_lines, read_lines
from training.checkpoint import Run, open_run
from training.compare_inside import permuted_trigger_scores
from training.data.dataset import Split, dataset_sha256, open_catalogue
from training.data.whole_files import write_whole
from training.evaluate_cost import cost_of
from training.evaluate_days import DaysSeen, days_seen
from training.evaluate_inside import ScoreBundle, TimeGraphs, bundle_under_other_triggers, latency, look_behind
from training.measures import USUAL_PLAN, Plan, measure
from training.metrics import rela_impr
from training.paired import paired_test, verdict
from training.recipes import TABLES
from training.report_intervals import rela_impr_interval
from training.scores import Scored, all_numbers, score_batches
from training.split_facts import Items, read_candidates, read_training_days
from training.table import strongest_line
from training.train import evaluation_batches, write_metrics

Numbers = dict[str, dict[str, float]]

NEWEST_LINE = "popularity"  # never absent from what today's program writes
JudgedBy = Literal["gauc_request", "auc_per_request"]
USUALLY: JudgedBy = "gauc_request"
JUDGES: dict[JudgedBy, str] = {"gauc_request": "GAUC per request", "auc_per_request": "AUC per request"}
_READ_WITH_CARE = "(But see the warning: the bundle may know these days.)"


@dataclass(frozen=True)
class Evaluation:
    """Everything known about a run on a split, as plain values.

    numbers: the table, by ranker. measures: `training.measures.measure` by ranker. tests: paired tests of the run
    against others, with their sentences, by `judged_by`. warnings: what whoever reads the numbers must know first.
    notes: what was found in order. behind: `training.evaluate_inside.look_behind`. latency: of the exported graphs.
    cost: `training.evaluate_cost.cost_of`.
    """

    run: str
    data: str
    split: str
    numbers: Numbers
    measures: dict[str, dict[str, Any]]
    tests: list[dict[str, Any]]
    warnings: list[str]
    judged_by: JudgedBy = USUALLY
    notes: list[str] = field(default_factory=list)
    behind: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exporter:
    """What the installed exporter can do for an evaluation, None without one: it lies above this package."""

    score_bundle: ScoreBundle | None = None
    time_graphs: TimeGraphs | None = None


def evaluate(run_folder: Path, data_folder: Path, split: Split, lines: Numbers | None = None) -> Numbers:
    """Numbers by ranker: the model under its own name, then the counting lines; NaN where nothing could be measured.

    Also written into the run's metrics.json. `lines`: the counting lines of this split, where they are known already.
    """
    run = open_run(run_folder, open_catalogue(data_folder))
    numbers: Numbers = {run.config.name: all_numbers(_scores_of(run, data_folder, split))}
    numbers |= baseline_numbers(data_folder, split) if lines is None else lines
    add_rela_impr(numbers)
    if not other_data(run_folder, data_folder):
        write_metrics(run_folder, split, numbers)
    return numbers


def evaluate_fully(
    run_folder: Path,
    data_folder: Path,
    split: Split,
    against: Path | None = None,
    exporter: Exporter = Exporter(),
    judged_by: JudgedBy | None = None,
    plan: Plan = USUAL_PLAN,
) -> Evaluation:
    """The table, all numbers of the report with their intervals, and paired tests against the best line and a bundle.

    `against`: the folder of a published bundle, which `exporter.score_bundle` scores. `judged_by`: the number of the
    tests and of the best line; None: see `judge_of`. Writes metrics.json, measures_<split>.json and scores_<split>.npz
    into the run folder when it was trained on this data. Raises DataError, CheckpointError and BundleError for what
    cannot be read, ValueError when `against` is given and nobody can score it.
    """
    if against is not None and exporter.score_bundle is None:
        raise ValueError("nothing here can score a bundle: give an exporter with score_bundle")
    run = open_run(run_folder, open_catalogue(data_folder))
    name, judge = run.config.name, judged_by or judge_of(run.config.name)
    seen = None if against is None else days_seen(against, data_folder, split)
    scores, permuted = _scores_of_all(run, data_folder, split, against, exporter.score_bundle)
    shown = read_lines(data_folder, split)
    numbers: Numbers = {ranker: all_numbers(scored) for ranker, scored in scores.items()} | numbers_of_lines(shown)
    add_rela_impr(numbers)
    items = Items.open(data_folder, run.encoder.scale)
    facts = read_candidates(data_folder / split, items), read_training_days(data_folder, items)
    other = other_data(run_folder, data_folder)
    evaluation = Evaluation(
        run=name,
        data=str(data_folder),
        split=split,
        numbers=numbers,
        measures=_with_rela_impr(
            {ranker: measure(scored, *facts, items, plan) for ranker, scored in scores.items()}, scores, shown, plan
        ),
        tests=_tests(scores, _best_line(shown, numbers, judge), seen, judge, plan),
        warnings=[text for text in (other, seen.text if seen and not seen.is_fair else None) if text],
        judged_by=judge,
        notes=[seen.text] if seen and seen.is_fair else [],
        behind=look_behind(run, data_folder, split, scores, permuted, facts, judge, plan),
        latency=latency(run_folder, data_folder, exporter.time_graphs),
        cost=cost_of(run_folder, run.model),
    )
    if other is None:
        _write(evaluation, scores[name], run_folder)
    return evaluation


def judge_of(name: str) -> JudgedBy:
    """What the table judges by that a run was trained for ("wikispeedia/daian"); GAUC per request for any other."""
    table = TABLES.get(name.partition("/")[0])
    return USUALLY if table is None else table.judged_by


def _scores_of_all(
    run: Run, data_folder: Path, split: Split, against: Path | None, score_bundle: ScoreBundle | None
) -> tuple[dict[str, Scored], dict[str, Scored]]:
    """Of the run and of the bundle, if any: their scores, and their scores under triggers of other requests."""
    name, rules = run.config.name, run.encoder.rules
    scores = {name: _scores_of(run, data_folder, split)}
    permuted = {name: permuted_trigger_scores(run.model, run.encoder, data_folder, split).in_order()}
    if against is not None and score_bundle is not None:
        bundle, found = score_bundle(against, data_folder, split)
        other = _other_name(bundle, name)
        scores[other] = found
        permuted[other] = bundle_under_other_triggers(score_bundle, against, data_folder, split, rules)
    return scores, permuted


def _scores_of(run: Run, data_folder: Path, split: Split) -> Scored:
    torch.set_num_threads(run.config.n_threads)
    return score_batches(run.model, evaluation_batches(data_folder, split, run.encoder, run.config).epoch()).in_order()


def _best_line(shown: Shown, numbers: Numbers, judged_by: JudgedBy) -> dict[str, Scored]:
    """The best counting line by its title; empty when none could be measured."""
    best = best_line(numbers, judged_by)
    return {} if best is None else {LINES[best]: shown.scored(best)}


def _tests(
    scores: Mapping[str, Scored],
    line: Mapping[str, Scored],
    seen: DaysSeen | None,
    judged_by: JudgedBy,
    plan: Plan,
) -> list[dict[str, Any]]:
    """The run, which is the first of `scores`, against the others and the best line."""
    (name, own), *others = scores.items()
    doubt = "" if seen is None or seen.is_fair else f" {_READ_WITH_CARE}"
    found = []
    for rival, scored, but in [*((*other, doubt) for other in others), *((*one, "") for one in line.items())]:
        test = paired_test([own], [scored], judged_by, plan.unit, plan.resampling)
        sentence = verdict(test, name, rival, JUDGES[judged_by]) + but
        found.append({"against": rival, "metric": judged_by, **test._asdict(), "sentence": sentence})
    return found


def _with_rela_impr(
    measures: dict[str, dict[str, Any]], scores: Mapping[str, Scored], shown: Shown, plan: Plan
) -> dict[str, dict[str, Any]]:
    """The same with RelaImpr over the click rate, and its interval, beside the other ranking numbers."""
    base = [shown.scored("click_rate")]
    for ranker, scored in scores.items():
        found = rela_impr_interval([scored], base, unit=plan.unit, resampling=plan.resampling)
        measures[ranker]["ranking"]["rela_impr_gauc_request"] = found
    return measures


def _write(evaluation: Evaluation, scored: Scored, run_folder: Path) -> None:
    split = evaluation.split
    write_metrics(run_folder, split, evaluation.numbers)
    scored.save(run_folder / f"scores_{split}.npz")
    write_whole(run_folder / f"measures_{split}.json", strict_json(vars(evaluation), indent=1).encode())


def _other_name(bundle: str, run: str) -> str:
    return f"{bundle} (bundle)" if bundle == run or bundle in LINES else bundle


def best_line(numbers: Numbers, judged_by: JudgedBy = USUALLY) -> str | None:
    """The best counting line, as `training.table.strongest_line` has it."""
    return strongest_line(numbers, judged_by)


def other_data(run_folder: Path, data_folder: Path) -> str | None:
    """A warning when the run was trained on other data than this folder; None when it was this, or nobody knows."""
    path = run_folder / "config.json"
    trained_on = json.loads(path.read_text(encoding="utf-8")).get("data_sha256") if path.is_file() else None
    found = dataset_sha256(data_folder)
    if not trained_on or trained_on == found:
        return None
    return (
        f"{data_folder} is not the data set that {run_folder} was trained on (dataset.json has SHA-256 {found[:12]}, "
        f"the run's is {trained_on[:12]}). The counting lines know these training days and the run does not, which is "
        "an advantage of theirs; the numbers are not written into the run's folder."
    )


def add_rela_impr(numbers: Numbers) -> None:
    """Adds RelaImpr of the GAUC per request over the click rate's; it says nothing unless that lies above chance."""
    base = numbers["click_rate"]["gauc_request"]
    if base > 0.5:
        for found in numbers.values():
            found["rela_impr_gauc_request"] = rela_impr(found["gauc_request"], base)


def saved_numbers(run_folder: Path, split: Split) -> Numbers | None:
    """What an earlier `evaluate` wrote into metrics.json; None when it did not, or knew fewer lines than today."""
    path = run_folder / "metrics.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get(split) if path.is_file() else None
    if saved is None or NEWEST_LINE not in saved:
        return None
    return {name: {k: math.nan if v is None else v for k, v in found.items()} for name, found in saved.items()}


def lines_of(numbers: Numbers) -> Numbers:
    """The counting lines alone."""
    return {name: found for name, found in numbers.items() if name in LINES}
