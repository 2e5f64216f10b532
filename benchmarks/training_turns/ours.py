"""Trains our DIN or DAIAN in turns. Started by `training_speed` with a folder and the model's name.

The steps are those of `training.loop`: its loss, its optimiser, batches from request files through the encoder, kept
once encoded as a comparison keeps them. Making a batch is in the time.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.peers.terms import Terms
from benchmarks.peers.train_ours import model_config
from benchmarks.training_turns.turns import stay_on_one_core, take_turns
from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from training.config import OptimConfig
from training.data.batches import Batches, BatchPlan, Position
from training.data.pools import KeptPools
from training.layers.embedding import EmbeddingWidths
from training.loop import batch_loss
from training.models import build_model, spec_of
from training.models.daian import DaianConfig
from training.optimizers import make_optimizer


def config_of(name: str, terms: Terms) -> object:
    """The model in the widths of the comparison; DAIAN's own parts keep the paper's sizes."""
    if name == "din":
        return model_config("din", terms)
    return DaianConfig(widths=EmbeddingWidths(*[terms.width] * 4), attention_hidden=terms.attention, top=terms.top)


def steps(folder: Path, name: str) -> Iterator[int]:
    """Takes one step each time it is asked; gives the step's candidates. Ends never."""
    terms = Terms.open(folder / "terms.json")
    encoder = Encoder.open(folder / "encoder", Catalogue.open(folder / "catalogue"))
    config = config_of(name, terms)
    torch.manual_seed(1)
    model = build_model(config, encoder.sizes)
    stage = spec_of(config).stages(config)[-1]  # everything learns in the last one
    optimizer = make_optimizer(model, stage, OptimConfig(kind="adam", learning_rate=terms.learning_rate))
    plan = BatchPlan(batch_candidates=terms.batch_candidates)
    batches = Batches([folder / "train.parquet"], encoder, plan, KeptPools(encoder))
    model.train()
    position = Position()
    while True:
        for batch in batches.epoch(position):
            optimizer.zero_grad()
            batch_loss(model, stage, batch).backward()
            optimizer.step()
            position = batch.after
            yield len(batch.clicks)


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    stay_on_one_core()
    torch.set_num_threads(1)
    take_turns(steps(folder, name), f"ours/{name}")


if __name__ == "__main__":
    main()
