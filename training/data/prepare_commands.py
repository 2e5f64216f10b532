"""The verbs `daian data prepare logs|wikispeedia|alimama|movielens`, and the options that they share.

Registered by `training.data.commands`. Nothing heavy is imported before a verb runs: `daian --help` stays quick.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from training.data.dataset import Dataset

Out = Annotated[Path, Parameter(help="The folder to make.")]
Overwrite = Annotated[bool, Parameter(help="Replace a prepared folder that is there already.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the report as JSON.")]


def register_prepare(data: App) -> None:
    """Adds `prepare` to the `daian data` command."""
    prepare = App("prepare", help="Make a prepared data folder from logs or a public data set.")
    prepare.command(prepare_logs, name="logs")
    prepare.command(prepare_wikispeedia, name="wikispeedia")
    prepare.command(prepare_alimama, name="alimama")
    prepare.command(prepare_movielens, name="movielens")
    data.command(prepare)


def prepare_logs(
    *,
    mapping: Path | None = None,
    out: Out | None = None,
    encoder: str = "auto",
    max_missing: float = 0.5,
    overwrite: Overwrite = False,
    example: bool = False,
    as_json: AsJson = False,
) -> None:
    """Prepare a shop's own tables (parquet or CSV): impressions, items, and if there are any behaviours and users.

    Parameters
    ----------
    mapping
        A JSON file that says which files and columns mean what.
    encoder
        Encodes item texts and images when the mapping names no vectors; as for `daian embed`.
    max_missing
        Largest share of missing values (empty, NaN, infinite) that a feature column may have.
    example
        Print a mapping file to start from, and stop.
    """
    from training.data import prepare_logs as logs
    from training.data.mapping import EXAMPLE

    if example:
        print(EXAMPLE, end="")
        return
    if mapping is None or out is None:
        raise ValueError("give --mapping FILE and --out FOLDER, or --example for a mapping file to start from")
    dataset = logs.prepare_logs(mapping, out, encoder=encoder, max_missing=max_missing, overwrite=overwrite)
    show(dataset, out, as_json)


def prepare_wikispeedia(
    source: Path,
    *,
    out: Out,
    encoder: str = "auto",
    with_goal: bool = False,
    text: Literal["title and category", "title"] = "title and category",
    behaviour_days: float = 14,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Prepare Wikispeedia: each article that a player reads is a trigger, its links are the candidates.

    Parameters
    ----------
    source
        The folder with SNAP's files (articles.tsv, categories.tsv, links.tsv, paths_unfinished.tsv,
        paths_finished.tsv).
    encoder
        Encodes the articles; as for `daian embed`.
    with_goal
        Add the article that the player wants to reach as a context field. A shop has no such field.
    text
        What is encoded of an article.
    behaviour_days
        How far back a request's behaviours go.
    """
    from training.data import prepare_wikispeedia as wikispeedia

    dataset = wikispeedia.prepare_wikispeedia(
        source, out, encoder, with_goal, text=text, behaviour_days=behaviour_days, overwrite=overwrite
    )
    show(dataset, out, as_json)


def prepare_alimama(
    source: Path,
    *,
    out: Out,
    by: Literal["time", "trigger"] = "time",
    with_behaviour_log: bool = False,
    validation_share: float = 0.1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Prepare Alimama's display advertising logs (Tianchi 56): the last ad clicked within four hours is the trigger.

    Parameters
    ----------
    source
        The folder with raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv.
    by
        What makes one request: impressions of a user at the same time, or under the same trigger.
    with_behaviour_log
        Count the category behaviours of the 22-day log as context fields.
    validation_share
        Share of the users whose day 7 is the validation; 0 leaves all 7 days to the training, as in the paper.
    """
    from training.data import prepare_alimama as alimama

    dataset = alimama.prepare_alimama(
        source,
        out,
        by,
        with_behaviour_log=with_behaviour_log,
        validation_share=validation_share,
        overwrite=overwrite,
    )
    show(dataset, out, as_json)


def prepare_movielens(
    source: Path,
    *,
    out: Out,
    encoder: str = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Prepare MovieLens-100k: a rating of 4 or 5 is a click, the last one within four hours the trigger. For plumbing.

    Parameters
    ----------
    source
        The folder with RecBole's ml-100k.inter, ml-100k.item and ml-100k.user.
    encoder
        Encodes titles and genres; as for `daian embed`.
    """
    from training.data import prepare_movielens as movielens

    dataset = movielens.prepare_movielens(source, out, encoder, overwrite=overwrite)
    show(dataset, out, as_json)


def show(dataset: "Dataset", folder: Path, as_json: bool) -> None:
    """Prints what a prepared folder holds."""
    from training.data.show_report import dataset_lines

    print(json.dumps(dict(dataset.report), indent=1) if as_json else "\n".join(dataset_lines(dataset, folder)))
