"""`daian train`, `daian evaluate` and `daian baselines`; the data verbs come from `training.data.commands`.

Found through the entry point. Nothing heavy is imported before a verb runs: `daian --help` stays quick.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from training.data.commands import register_data

if TYPE_CHECKING:
    from training.train import ExportCheck

EXPORT_CHECK = "daian.export_check"


def register(app: App) -> None:
    """Adds training's verbs to the `daian` command."""
    app.command(train)
    app.command(evaluate)
    app.command(baselines)
    register_data(app)


def train(recipe: str, *, data: Path, out: Path) -> None:
    """Train a recipe on a prepared data folder; again with the same arguments, it goes on where it was interrupted.

    Parameters
    ----------
    recipe
        Name of a recipe in training/recipes.py, such as daian_demo.
    data
        A folder made by `daian data prepare` or `daian data simulate`.
    out
        The run folder: weights, encoder, config, checkpoints, curves.
    """
    run_training(recipe, data, out)


def run_training(recipe: str, data: Path, out: Path) -> dict[str, float]:
    """What `train` does; returns the validation numbers."""
    from training.progress import RunProgress
    from training.recipes import recipe as recipe_of
    from training.train import train as train_run

    config = recipe_of(recipe)
    with RunProgress(out) as progress:
        numbers = train_run(config, data, out, progress, export_check())
        shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        progress.console.print(
            f"{config.name} trained into {out}\nvalidation: {shown}", highlight=False, soft_wrap=True
        )
    return numbers


def export_check() -> "ExportCheck | None":
    """The installed exporter's dry run, None without one: an entry point, for it lies above this package."""
    found = entry_points(group=EXPORT_CHECK)
    return next(iter(found)).load() if found else None


def evaluate(
    run: Path,
    *,
    data: Path,
    split: Literal["train", "validation", "test"] = "test",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Score a split with a finished run and print its numbers beside those of counting.

    Parameters
    ----------
    run
        The run folder that `daian train` wrote.
    data
        The data folder that it was trained on.
    split
        Which requests to score.
    as_json
        Print JSON instead of a table.
    """
    from training.evaluate import evaluate as evaluate_run

    _print_numbers(evaluate_run(run, data, split), as_json)


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


def _print_numbers(numbers: dict[str, dict[str, float]], as_json: bool) -> None:
    from service.contract.strict_json import strict_json
    from training.table import ranking_table

    print(strict_json(numbers, indent=1) if as_json else ranking_table(numbers))
