"""From a recipe's config and a prepared data folder to a trained run folder. Called by `daian train` and the demo.

Interrupted at any moment and called again with the same arguments, it goes on at its newest checkpoint and ends with
the same weights. It never imports the exporter: whoever calls may hand in a check that refuses a model that cannot be
exported.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from service.contract.encoder import Encoder
from service.contract.strict_json import strict_json
from training.allocator import keep_freed_memory
from training.checkpoint import latest_checkpoint, save_checkpoint, save_run_start, save_weights
from training.config import TrainConfig
from training.content_start import start_from_content
from training.data.batches import Batches, BatchPlan, Position
from training.data.dataset import Split, dataset_sha256, open_catalogue, split_files
from training.data.fit_encoder import fit_encoder
from training.data.pools import FreshPools, PoolSource
from training.data.whole_files import write_whole
from training.facts import training_facts
from training.loop import BatchSource, Recorder, StageState, fit_stage
from training.models import build_model, spec_of
from training.models.spec import ModelSpec, RankingModel, Stage, TrainingFacts
from training.optimizers import StageOptimizer
from training.readiness import has_intent_label
from training.scores import all_numbers, score_batches

ExportCheck = Callable[[RankingModel, Encoder], object]  # raises to refuse


def train(
    config: TrainConfig,
    data_folder: Path,
    run_folder: Path,
    recorder: Recorder,
    refuse_if_not_exportable: ExportCheck | None = None,
    pools: PoolSource | None = None,
) -> dict[str, float]:
    """Trains all stages and writes the run folder; returns the validation numbers of the final weights.

    `pools`: the encoder fitted on this data and its encoded requests, for whoever trains many runs on it; the weights
    are the same bit for bit.

    Raises DataError for bad data, CheckpointError when the folder holds another run, and whatever the export check
    raises.
    """
    torch.set_num_threads(config.n_threads)
    keep_freed_memory()
    encoder = _encoder(data_folder, run_folder) if pools is None else pools.encoder
    if refuse_if_not_exportable is not None:
        # A model of its own: the check may do with it what it likes.
        refuse_if_not_exportable(cast(RankingModel, build_model(config.model, encoder.sizes)), encoder)
    torch.manual_seed(config.seed)
    model = build_model(config.model, encoder.sizes)
    if config.content_start:
        _start_from_content(model, encoder, config, recorder)
    # Before the folder is made: data without validation days leaves nothing behind.
    validation = evaluation_batches(data_folder, "validation", encoder, config, pools, config.data.validation_every)
    save_run_start(run_folder, config, encoder, dataset_sha256(data_folder))
    _fit_all(model, config, data_folder, run_folder, pools or FreshPools(encoder), validation, recorder)
    save_weights(run_folder, model)
    numbers = all_numbers(score_batches(model, validation.epoch()))
    write_metrics(run_folder, "validation", numbers)
    return numbers


def _start_from_content(model: nn.Module, encoder: Encoder, config: TrainConfig, recorder: Recorder) -> None:
    """A shop without vectors trains all the same, and is told."""
    if encoder.catalogue.has_vector.any():
        start_from_content(model, encoder, config.content_start)
    else:
        recorder.note("start", "no item has a vector, so ids start from small random numbers, not from content")


def _encoder(data_folder: Path, run_folder: Path) -> Encoder:
    """The run's own encoder when it has one already, so that a resumed run does not count the training days again."""
    if (run_folder / "config.json").is_file():
        return Encoder.open(run_folder / "encoder", open_catalogue(data_folder))
    return fit_encoder(data_folder)


def evaluation_batches(
    data_folder: Path,
    split: Split,
    encoder: Encoder,
    config: TrainConfig,
    pools: PoolSource | None = None,
    every: int = 1,
) -> Batches:
    """The requests of a split in their fixed order, or every n-th of them."""
    plan = BatchPlan(batch_candidates=config.data.evaluation_candidates, every=every, shuffle=False)
    return Batches(split_files(data_folder, split), encoder, plan, pools)


def _fit_all(
    model: nn.Module,
    config: TrainConfig,
    data_folder: Path,
    run_folder: Path,
    pools: PoolSource,
    validation: BatchSource,
    recorder: Recorder,
) -> None:
    """Stage by stage from where the run stands.

    A checkpoint between two stages is written before the next one's `before_stage`, and the last one before
    `after_training`: a run that is resumed there calls them again on the same weights and random state.
    """
    folder = run_folder / "checkpoints"
    spec = spec_of(config.model)
    stages = spec.stages(config.model)
    facts = _facts(spec, data_folder, pools.encoder)
    resumed = Resumed(latest_checkpoint(folder))
    resumed.restore(model)
    n_before = resumed.n_before
    for number in range(resumed.stage, len(stages)):
        stage = stages[number]
        batches = training_batches(data_folder, pools, config, stage, number)
        n_steps = _n_steps(stage, data_folder, pools, config)
        save = _saver(model, folder, number, n_before)
        state, optimizer_state = resumed.state_of(number)
        if state is None and facts is not None and spec.before_stage is not None:
            spec.before_stage(model, stage.name, facts)
        state = fit_stage(model, stage, batches, validation, config, recorder, state, optimizer_state, save, n_steps)
        n_before += state.step
        save_checkpoint(folder, n_before, between_stages(model, number + 1, n_before))
    if facts is not None and spec.after_training is not None:
        spec.after_training(model, facts)


def _facts(spec: ModelSpec, data_folder: Path, encoder: Encoder) -> TrainingFacts | None:
    """Counted for models that ask for them alone: it is a pass over the training requests."""
    asked = spec.before_stage is not None or spec.after_training is not None
    return training_facts(data_folder, encoder) if asked else None


def training_batches(data_folder: Path, pools: PoolSource, config: TrainConfig, stage: Stage, number: int) -> Batches:
    """What the stage of this number trains on, in its own order."""
    plan = BatchPlan(
        config.data.batch_candidates,
        config.data.page_candidates,
        requests=stage.requests,
        seed=config.seed * 1000 + number,
    )
    return Batches(split_files(data_folder, "train"), pools.encoder, plan, pools)


def _n_steps(stage: Stage, data_folder: Path, pools: PoolSource, config: TrainConfig) -> int | None:
    """As many steps as the stages that this one replaces would take together; None when it replaces none."""
    if not stage.as_long_as:
        return None
    total = 0
    for number, part in enumerate(stage.as_long_as):
        batches = training_batches(data_folder, pools, config, part, number)
        if part.loss != "intent" or has_intent_label(batches.epoch()):
            total += sum(batches.n_batches(epoch) for epoch in range(part.max_epochs))
    return total


def _saver(model: nn.Module, folder: Path, stage: int, n_before: int) -> Callable[[StageState, StageOptimizer], None]:
    def save(state: StageState, optimizer: StageOptimizer) -> None:
        save_checkpoint(folder, n_before + state.step, checkpoint_content(model, stage, n_before, state, optimizer))

    return save


def checkpoint_content(
    model: nn.Module, stage: int, n_before: int, state: StageState, optimizer: StageOptimizer
) -> dict[str, Any]:
    """All that the rest of the run depends on. `n_before`: steps of the stages before this one."""
    plain = {key: value for key, value in vars(state).items() if key not in ("position", "best_weights")}
    return {
        **between_stages(model, stage, n_before),
        "state": {**plain, "position": asdict(state.position), "best_weights": state.best_weights},
        "optimizer": optimizer.state_dict(),
    }


def between_stages(model: nn.Module, stage: int, n_before: int) -> dict[str, Any]:
    """A checkpoint at the start of a stage."""
    return {"model": model.state_dict(), "random": torch.get_rng_state(), "stage": stage, "n_before": n_before}


class Resumed:
    """What the newest checkpoint says about where to go on; the very start without one."""

    def __init__(self, content: dict[str, Any] | None) -> None:
        self.content = content
        self.stage: int = 0 if content is None else content["stage"]
        self.n_before: int = 0 if content is None else content["n_before"]

    def restore(self, model: nn.Module) -> None:
        """Puts weights and the random state back."""
        if self.content is not None:
            model.load_state_dict(self.content["model"])
            torch.set_rng_state(self.content["random"])

    def state_of(self, stage: int) -> tuple[StageState | None, dict[str, Any] | None]:
        """Position and optimiser of the stage that was interrupted; nothing for the others."""
        if self.content is None or stage != self.stage or "state" not in self.content:
            return None, None
        saved = dict(self.content["state"])
        return StageState(**{**saved, "position": Position(**saved["position"])}), self.content["optimizer"]


def write_metrics(run_folder: Path, split: str, numbers: dict[str, Any]) -> None:
    """Adds the numbers of a split to the run's metrics.json; NaN is written as null."""
    path = run_folder / "metrics.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found[split] = numbers
    write_whole(path, strict_json(found, indent=1, sort_keys=True).encode())
