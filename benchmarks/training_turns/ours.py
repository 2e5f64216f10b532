"""Trains our DIN or DAIAN in turns. Started by `training_speed` with a folder and the model's name.

The steps are those of `training.train`: its loss, its optimiser, its memory settings, batches from request files
through the encoder, kept once encoded as a comparison keeps them. Making a batch is in the time.
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
from training.allocator import keep_freed_memory
from training.config import OptimConfig
from training.data.batches import Batch, Batches, BatchPlan, Position
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


class TrainingSteps:
    """A model of a prepared folder and the steps that train it, in its last stage: there everything learns."""

    def __init__(self, folder: Path, name: str) -> None:
        self.terms = Terms.open(folder / "terms.json")
        self.encoder = Encoder.open(folder / "encoder", Catalogue.open(folder / "catalogue"))
        config = config_of(name, self.terms)
        torch.manual_seed(1)
        self._model = build_model(config, self.encoder.sizes)
        self._stage = spec_of(config).stages(config)[-1]
        optim = OptimConfig(kind="adam", learning_rate=self.terms.learning_rate)
        self._optimizer = make_optimizer(self._model, self._stage, optim)
        self._model.train()

    def take(self, batch: Batch) -> int:
        """One step. Returns the batch's candidates."""
        self._optimizer.zero_grad()
        batch_loss(self._model, self._stage, batch).backward()
        self._optimizer.step()
        return len(batch.clicks)


def steps(folder: Path, name: str) -> Iterator[int]:
    """Takes one step each time it is asked; gives the step's candidates. Ends never."""
    training = TrainingSteps(folder, name)
    plan = BatchPlan(batch_candidates=training.terms.batch_candidates)
    batches = Batches([folder / "train.parquet"], training.encoder, plan, KeptPools(training.encoder))
    position = Position()
    while True:
        for batch in batches.epoch(position):
            position = batch.after
            yield training.take(batch)


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    stay_on_one_core()
    torch.set_num_threads(1)
    keep_freed_memory()
    take_turns(steps(folder, name), f"ours/{name}")


if __name__ == "__main__":
    main()
