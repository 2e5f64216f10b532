"""A finished run on one split of a data folder -> its numbers beside those of counting. Called by `daian evaluate`."""

from pathlib import Path

import torch

from training.baselines import baseline_numbers
from training.checkpoint import open_run
from training.data.dataset import Split, open_catalogue
from training.metrics import rela_impr
from training.scores import all_numbers, score_batches
from training.train import evaluation_batches, write_metrics

Numbers = dict[str, dict[str, float]]


def evaluate(run_folder: Path, data_folder: Path, split: Split) -> Numbers:
    """Numbers by ranker: the model under its own name, then the baselines. Also written into the run's metrics.json."""
    run = open_run(run_folder, open_catalogue(data_folder))
    torch.set_num_threads(run.config.n_threads)
    scored = score_batches(run.model, evaluation_batches(data_folder, split, run.encoder, run.config).epoch())
    numbers = {run.config.name: all_numbers(scored), **baseline_numbers(data_folder, split, run.encoder)}
    base = numbers["click_rate"]["gauc_request"]
    for found in numbers.values():
        if base != 0.5:
            found["rela_impr_gauc_request"] = rela_impr(found["gauc_request"], base)
    write_metrics(run_folder, split, numbers)
    return numbers


def as_table(numbers: Numbers) -> str:
    """Rankers in rows, numbers in columns; a dash where a ranker has none."""
    columns = list(next(iter(numbers.values())))
    width = max(len(name) for name in numbers)
    lines = [" ".join([" " * width, *columns])]
    for name, found in numbers.items():
        cells = [f"{found[c]:.4f}" if c in found else "-" for c in columns]
        row = (cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=True))
        lines.append(" ".join([name.ljust(width), *row]))
    return "\n".join(lines)
