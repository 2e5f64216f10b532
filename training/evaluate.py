"""A finished run on one split of a data folder -> its numbers beside those of counting.

Called by `daian evaluate` and the demo; the table is `training.table`.
"""

import json
import math
from pathlib import Path

import torch

from training.baselines import LINES, baseline_numbers
from training.checkpoint import open_run
from training.data.dataset import Split, open_catalogue
from training.metrics import rela_impr
from training.scores import all_numbers, score_batches
from training.train import evaluation_batches, write_metrics

Numbers = dict[str, dict[str, float]]


def evaluate(run_folder: Path, data_folder: Path, split: Split, lines: Numbers | None = None) -> Numbers:
    """Numbers by ranker: the model under its own name, then the counting lines; NaN where nothing could be measured.

    Also written into the run's metrics.json. `lines`: the counting lines of this split, where they are known already.
    """
    run = open_run(run_folder, open_catalogue(data_folder))
    torch.set_num_threads(run.config.n_threads)
    scored = score_batches(run.model, evaluation_batches(data_folder, split, run.encoder, run.config).epoch())
    numbers: Numbers = {run.config.name: all_numbers(scored)}
    numbers |= baseline_numbers(data_folder, split) if lines is None else lines
    add_rela_impr(numbers)
    write_metrics(run_folder, split, numbers)
    return numbers


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
    if saved is None or "cosine_random" not in saved:  # the control is never absent
        return None
    return {name: {k: math.nan if v is None else v for k, v in found.items()} for name, found in saved.items()}


def lines_of(numbers: Numbers) -> Numbers:
    """The counting lines alone."""
    return {name: found for name, found in numbers.items() if name in LINES}
