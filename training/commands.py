"""`daian train`, `daian evaluate` and `daian baselines`; the data verbs come from `training.data.commands`.

Found through the entry point. Nothing heavy is imported before a verb runs: `daian --help` stays quick.
"""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from training.data.commands import register_data

if TYPE_CHECKING:
    from training.evaluate_inside import ScoreBundle, TimeGraphs
    from training.train import ExportCheck

EXPORT_CHECK = "daian.export_check"
BUNDLE_SCORES = "daian.bundle_scores"
EXPORT_TIMING = "daian.export_timing"


def register(app: App) -> None:
    """Adds training's verbs to the `daian` command."""
    app.command(train)
    app.command(evaluate)
    app.command(baselines)
    app.command(compare)
    register_data(app)


def train(recipe: str, *, data: Path, out: Path, check: bool = True) -> None:
    """Train a recipe on a prepared data folder; again with the same arguments, it goes on where it was interrupted.

    Data that `daian data check` finds fault with is refused before the first step.

    Parameters
    ----------
    recipe
        Name of a recipe in training/recipes.py, such as daian_demo.
    data
        A folder made by `daian data prepare` or `daian data simulate`.
    out
        The run folder: weights, encoder, config, checkpoints, curves.
    check
        Look through the data first, all of it, once; a run that goes on has been through it.
    """
    run_training(recipe, data, out, check)


def run_training(recipe: str, data: Path, out: Path, check: bool = True) -> dict[str, float]:
    """What `train` does; returns the validation numbers."""
    from training.data.check_requests import refuse_unfit
    from training.progress import RunProgress
    from training.recipes import recipe as recipe_of
    from training.train import train as train_run

    config = recipe_of(recipe)
    if check and not (out / "config.json").is_file():
        refuse_unfit(data, show_progress=sys.stderr.isatty())
    with RunProgress(out) as progress:
        numbers = train_run(config, data, out, progress, export_check())
        shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        progress.console.print(
            f"{config.name} trained into {out}\nvalidation: {shown}", highlight=False, soft_wrap=True
        )
        for line in note_drift(out, data):
            progress.console.print(line, highlight=False, soft_wrap=True)
    return numbers


def note_drift(run: Path, data: Path) -> list[str]:
    """Compares the held-out days with the training days, writes that into the run; a line for what is above a limit."""
    from service.contract.encoder import Encoder
    from training.data.dataset import open_catalogue
    from training.data.errors import DataError
    from training.drift import drift_of, write_drift

    try:
        drift = drift_of(run, data, Encoder.open(run / "encoder", open_catalogue(data)))
    except DataError as error:  # held-out days that no training needs: its weights are there, and good
        return [f"drift not measured, `daian export` will try again: {error}"]
    write_drift(run, data, drift)
    above = [f"drift in the {drift.split} days: {sentence}" for sentence in drift.above]
    return [*above, "`daian export` refuses this run unless it is told --allow-drift"] if above else []


def export_check() -> "ExportCheck | None":
    """The installed exporter's dry run, None without one: an entry point, for it lies above this package."""
    found = entry_points(group=EXPORT_CHECK)
    return next(iter(found)).load() if found else None


def score_bundle() -> "ScoreBundle":
    """The installed exporter's way to score with a bundle, an entry point too. Raises DaianError without one."""
    from service.contract.errors import DaianError

    found = entry_points(group=BUNDLE_SCORES)
    if not found:
        raise DaianError(
            "nothing installed can score with a bundle: install the project with its extra `export`, again if it was "
            "installed before this version"
        )
    scorer: ScoreBundle = next(iter(found)).load()
    return scorer


def time_graphs() -> "TimeGraphs | None":
    """The installed exporter's timing of graphs, None without one: an entry point as well."""
    found = entry_points(group=EXPORT_TIMING)
    return next(iter(found)).load() if found else None


def evaluate(
    run: Path,
    *,
    data: Path,
    split: Literal["train", "validation", "test"] = "test",
    against: Path | None = None,
    report: Path | None = None,
    judged_by: Literal["gauc_request", "auc_per_request"] | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Score a split with a finished run: its numbers beside those of counting, all metrics with 95 % intervals, and
    whether it is better than the best line and than a live bundle.

    Parameters
    ----------
    run
        The run folder that `daian train` wrote.
    data
        The data folder that it was trained on; another one is allowed, and said.
    split
        Which requests to score.
    against
        A published bundle, or the folder of bundles that holds `current`: scored on the same requests and compared.
    report
        Also write the report into this file: .html with figures, in one file that needs no network, or .md.
    judged_by
        What decides who is better; none: what the run's table is judged by, GAUC per request for a run of no table.
    as_json
        Print JSON instead of tables.
    """
    from service.contract.strict_json import strict_json
    from training.data.dataset import open_dataset

    open_dataset(data)  # what is no prepared folder is told at once, before torch is loaded
    from training.evaluate import Exporter, evaluate_fully
    from training.evaluation_report import evaluation_text, write_evaluation_report

    if report is not None:
        check_report_name(report)
    exporter = Exporter(None if against is None else score_bundle(), time_graphs())
    found = evaluate_fully(run, data, split, against, exporter, judged_by)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if report is not None:
        write_evaluation_report(found, report)
    print(strict_json(vars(found), indent=1) if as_json else evaluation_text(found), end="\n" if as_json else "")


def check_report_name(path: Path) -> None:
    """Raises DaianError, before anything is scored, for a report of a kind that cannot be written."""
    from service.contract.errors import DaianError
    from training.evaluation_report import WRITERS

    if path.suffix not in WRITERS:
        raise DaianError(
            f"--report {path}: a report is a page with figures or Markdown; give a name that ends in .html or .md"
        )


def baselines(
    data: Path,
    *,
    split: Literal["train", "validation", "test"] = "test",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Print what counting and cosines alone achieve on a split: the lines that a model must beat.

    Parameters
    ----------
    data
        A folder made by `daian data prepare` or `daian data simulate`.
    split
        Which requests to score. Rates are counted on train and logits fitted on validation, whatever is scored.
    as_json
        Print JSON instead of a table.
    """
    from training.baselines import baseline_numbers

    _print_numbers(baseline_numbers(data, split), as_json)


def compare(
    table: str,
    *,
    data: Path,
    out: Path,
    rows: str | None = None,
    groups: str | None = None,
    seeds: int = 5,
    trials: int = 2,
    jobs: int = 2,
    levels: str | None = None,
    report_only: bool = False,
    check: bool = True,
) -> None:
    """Train every row of a table, searched alike, over seeds; write one report. Again, it goes on where it stopped.

    Parameters
    ----------
    table
        The shared sizes and training of all rows: a key of TABLES in training/recipes.py, such as small.
    data
        A folder made by `daian data prepare` or `daian data simulate`; a shop's own logs as well.
    out
        Where runs, report.md and report.html go.
    rows
        Names of rows in training/rows.py with commas between; none: all.
    groups
        Groups of rows with commas between, such as "trigger-induced,daian"; added to the rows.
    seeds
        Runs of every row at its best setting.
    trials
        Settings that every row may try, on validation.
    jobs
        Processes, one torch thread each.
    levels
        Numbers of similarity levels to try with the row daian, such as 2,4,6,8,10.
    report_only
        Write the report of what is finished; train nothing.
    check
        --no-check compares on the data as they are. A comparison that goes on was checked when it began.
    """
    from training.compare import PLAN, Comparison, chosen_levels, chosen_rows, read_states
    from training.compare import compare as run_comparison
    from training.compare_progress import CompareProgress
    from training.data.check_requests import refuse_unfit
    from training.report import write_report

    comparison = Comparison(table, data, out, chosen_rows(rows, groups), seeds, trials, jobs, chosen_levels(levels))
    if report_only:
        states = read_states(comparison)
    else:
        if check and not (out / PLAN).is_file():
            refuse_unfit(data, show_progress=sys.stderr.isatty())
        with CompareProgress() as progress:
            states = run_comparison(comparison, progress)
    for path in write_report(comparison, states):
        print(path)


def _print_numbers(numbers: dict[str, dict[str, float]], as_json: bool) -> None:
    from service.contract.strict_json import strict_json
    from training.table import ranking_table

    print(strict_json(numbers, indent=1) if as_json else ranking_table(numbers))
