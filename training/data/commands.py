"""The data verbs of `daian`: `data simulate|check|stats|join`, and `embed`; `data prepare` is in `prepare_commands`.

Registered by `training/commands.py`. Nothing heavy is imported before a verb runs: `daian --help` stays quick.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from training.data.prepare_commands import AsJson, Overwrite, register_prepare, show

Json = Annotated[bool, Parameter(name="--json", negative="")]


def register_data(app: App) -> None:
    """Adds `data` and `embed` to the `daian` command."""
    data = App("data", help="Prepare, simulate, check and look at data.")
    register_prepare(data)
    for verb in (simulate, check, stats, join):
        data.command(verb)
    app.command(data)
    app.command(embed)


def simulate(
    *,
    out: Path,
    preset: Literal["small", "demo", "full"] = "demo",
    requests: int | None = None,
    users: int | None = None,
    items: int | None = None,
    seed: int | None = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a shop world whose truth is known: eight days, six of them for training. See docs/world.md.

    Parameters
    ----------
    out
        The folder to make; truth.parquet in it holds the true click probabilities and intents.
    preset
        The sizes: `small` (16,000 pages, 1,500 users, 1,200 items), `demo` (20,000, 3,000, 2,000), `full` (400,000,
        50,000, 30,000).
    requests
        How many pages are opened, instead of the preset's.
    users
        How many users there are, instead of the preset's.
    items
        How many items there are, instead of the preset's.
    seed
        The same seed and sizes give the same files. 0 if not given.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from training.data.synthetic import PRESETS
    from training.data.synthetic import simulate as simulate_world

    given = {"n_requests": requests, "n_users": users, "n_items": items, "seed": seed}
    world = replace(PRESETS[preset], **{name: size for name, size in given.items() if size is not None})
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("simulating", total=world.n_requests)
        dataset = simulate_world(out, world, overwrite, lambda made: bar.advance(task, made))
    show(dataset, out, as_json)


def check(data: Path, *, leak_auc: float = 0.95, as_json: Json = False) -> int:
    """Check a prepared folder: damage, behaviours from the future, repeated requests, fields that tell the clicks.

    Exit code 1 when something is wrong.

    Parameters
    ----------
    data
        The prepared folder.
    leak_auc
        A single field that tells the clicks with a higher AUC is a problem; 1 switches this alarm off.
    as_json
        Print JSON.
    """
    from training.data.check_requests import check_requests
    from training.data.show_report import check_lines

    found = check_requests(data, leak_auc if leak_auc < 1 else None, show_progress=not as_json)
    print(json.dumps(found.to_dict(), indent=1) if as_json else "\n".join(check_lines(found)))
    return 1 if found.problems else 0


def stats(data: Path, *, as_json: Json = False) -> None:
    """Show what a prepared folder holds: counts, click rates, similarity levels, history lengths.

    Parameters
    ----------
    data
        The prepared folder.
    as_json
        Print JSON.
    """
    from training.data.dataset import open_dataset

    show(open_dataset(data), data, as_json)


def join(*, requests: Path, clicks: Path, data: Path, out: Path, window_s: int = 3_600) -> None:
    """Join the service's request log with the click log into a request file for training.

    Parameters
    ----------
    requests
        The request log of the service, one JSON row a line.
    clicks
        Events as they were sent to POST /events, one JSON object a line.
    data
        A prepared folder; its fields are written.
    out
        The request file to write, such as DATA/train/2026-11-21.parquet.
    window_s
        A click counts for a request at most this long after it.
    """
    from training.data.dataset import open_dataset
    from training.data.join_clicks import join_clicks

    counts = join_clicks(requests, clicks, out, open_dataset(data).schema, window_s)
    print(f"{out}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def embed(
    items: Path,
    *,
    out: Path,
    encoder: str = "auto",
    item_id: str = "id",
    text: tuple[str, ...] = ("text",),
    image: str | None = "image",
    batch_size: int = 64,
    centre: bool = False,
    max_dimensions: int = 1024,
    device: str | None = None,
) -> None:
    """Encode item texts and images to vectors, resumable; `data prepare logs` reads the folder.

    Parameters
    ----------
    items
        A parquet, CSV or NDJSON file with one row per item.
    out
        The folder to make. Run again after an interruption, it goes on.
    encoder
        A sentence-transformers model by name or path, `hashed-ngrams` (needs no torch), or `auto`.
    item_id
        The column of the item's id.
    text
        The columns of the item's texts.
    image
        The column of the path of the item's image.
    batch_size
        Items encoded at once.
    centre
        Subtract the mean vector; image encoders need it.
    max_dimensions
        Longer vectors are cut to this length, at most 1024.
    device
        Such as cpu or cuda; the best one if not given.
    """
    from training.data import embed as embedding
    from training.data.item_files import ItemColumns

    report = embedding.embed(
        items,
        out,
        encoder,
        ItemColumns(item_id, text, image),
        batch_size=batch_size,
        centre=centre,
        max_dimensions=max_dimensions,
        device=device,
    )
    print(report)
