"""A finished run on one split of a data folder -> its numbers beside those of counting, and beside a live bundle's.

Called by `daian evaluate` and the demo. `evaluate` is the table alone; `evaluate_fully` adds every number of the report
with its interval, the paired tests, and leaves the scores in the run folder. Printed by `training.table` and
`training.evaluation_report`. Numbers on other data than the run was trained on are never written into its folder.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from service.contract.strict_json import strict_json
from training.baselines import LINES, baseline_numbers, numbers_of_lines, read_lines
from training.checkpoint import Run, open_run
from training.data.dataset import Split, dataset_sha256, open_catalogue
from training.data.whole_files import write_whole
from training.measures import USUAL_PLAN, Plan, measure
from training.metrics import rela_impr
from training.paired import paired_test, verdict
from training.scores import Scored, all_numbers, score_batches
from training.split_facts import Items, read_candidates, read_training_days
from training.table import strongest_line
from training.train import evaluation_batches, write_metrics

Numbers = dict[str, dict[str, float]]
ScoreBundle = Callable[[Path, Path, Split], tuple[str, Scored]]  # bundle, data folder, split -> its name, its scores

NEWEST_LINE = "popularity"  # never absent from what today's program writes
TESTED_BY = "gauc_request"


@dataclass(frozen=True)
class Evaluation:
    """Everything known about a run on a split, as plain values.

    numbers: the table, by ranker. measures: `training.measures.measure` by ranker. tests: paired tests of the run
    against others, with their sentences. warnings: what whoever reads the numbers must know first.
    """

    run: str
    data: str
    split: str
    numbers: Numbers
    measures: dict[str, dict[str, Any]]
    tests: list[dict[str, Any]]
    warnings: list[str]


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
    score_bundle: ScoreBundle | None = None,
    plan: Plan = USUAL_PLAN,
) -> Evaluation:
    """The table, all numbers of the report with their intervals, and paired tests against the best line and a bundle.

    `against`: the folder of a published bundle, which `score_bundle` scores. Writes metrics.json, measures_<split>.json
    and scores_<split>.npz into the run folder when it was trained on this data. Raises DataError, CheckpointError and
    BundleError for what cannot be read, ValueError when `against` is given without `score_bundle`.
    """
    if against is not None and score_bundle is None:
        raise ValueError("nothing here can score a bundle: give score_bundle")
    warning = other_data(run_folder, data_folder)
    run = open_run(run_folder, open_catalogue(data_folder))
    name = run.config.name
    scores = {name: _scores_of(run, data_folder, split)}
    if against is not None and score_bundle is not None:
        bundle, found = score_bundle(against, data_folder, split)
        scores[_other_name(bundle, name)] = found
    shown = read_lines(data_folder, split)
    numbers: Numbers = {ranker: all_numbers(scored) for ranker, scored in scores.items()} | numbers_of_lines(shown)
    add_rela_impr(numbers)
    rivals = {ranker: scored for ranker, scored in scores.items() if ranker != name}
    best = best_line(numbers)
    if best is not None:
        rivals[LINES[best]] = shown.scored(best)
    evaluation = Evaluation(
        run=name,
        data=str(data_folder),
        split=split,
        numbers=numbers,
        measures=_measures(scores, run, data_folder, split, plan),
        tests=[_test(name, scores[name], rival, scored, plan) for rival, scored in rivals.items()],
        warnings=[warning] if warning else [],
    )
    if warning is None:
        _write(evaluation, scores[name], run_folder)
    return evaluation


def _scores_of(run: Run, data_folder: Path, split: Split) -> Scored:
    torch.set_num_threads(run.config.n_threads)
    return score_batches(run.model, evaluation_batches(data_folder, split, run.encoder, run.config).epoch()).in_order()


def _measures(
    scores: dict[str, Scored], run: Run, data_folder: Path, split: Split, plan: Plan
) -> dict[str, dict[str, Any]]:
    """By the run's own levels, for all of them."""
    items = Items.open(data_folder, run.encoder.scale)
    candidates, training = read_candidates(data_folder / split, items), read_training_days(data_folder, items)
    return {ranker: measure(scored, candidates, training, items, plan) for ranker, scored in scores.items()}


def _test(name: str, scored: Scored, rival: str, other: Scored, plan: Plan) -> dict[str, Any]:
    found = paired_test([scored], [other], TESTED_BY, plan.unit, plan.resampling)
    return {"against": rival, "metric": TESTED_BY, **found._asdict(), "sentence": verdict(found, name, rival)}


def _write(evaluation: Evaluation, scored: Scored, run_folder: Path) -> None:
    split = evaluation.split
    write_metrics(run_folder, split, evaluation.numbers)
    scored.save(run_folder / f"scores_{split}.npz")
    write_whole(run_folder / f"measures_{split}.json", strict_json(vars(evaluation), indent=1).encode())


def _other_name(bundle: str, run: str) -> str:
    return f"{bundle} (bundle)" if bundle == run or bundle in LINES else bundle


def best_line(numbers: Numbers) -> str | None:
    """The counting line with the highest GAUC per request, as `training.table.strongest_line` has it."""
    return strongest_line(numbers, TESTED_BY)


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
