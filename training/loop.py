"""`fit_stage`: the only training loop. Every stage of every model runs through it; `training.train` calls it stage by
stage.

A stage freezes all but what it trains, makes a fresh optimiser, and takes steps until its epochs are over or validation
has stopped improving; then the best weights are put back. Its whole position lives in `StageState`, and a checkpoint
holds that, the weights, the optimiser and the random state: killed at any moment and resumed, it ends with the same
bits.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data.batches import Batch, Position
from training.losses import intent_loss
from training.models.spec import Stage
from training.optimizers import StageOptimizer, make_optimizer
from training.readiness import NO_LABELS, check_labelled, check_ranked, has_intent_label
from training.scores import all_numbers, score_batches

UNKNOWN = 1  # the contract's id for a value that the vocabulary does not hold


@runtime_checkable
class BatchSource(Protocol):
    """What `training.data.batches.Batches` offers: the rest of an epoch from a position on."""

    def epoch(self, start: Position = ...) -> Iterator[Batch]:
        """Batches whose `after` is the position to resume at."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """Where the numbers of a run go: TensorBoard and the terminal in `training.train`, a list in tests."""

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
        """One step was taken, in this many seconds."""
        ...

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """The validation split was scored."""
        ...

    def note(self, stage: str, text: str) -> None:
        """Something that whoever trains should know."""
        ...


@dataclass
class StageState:
    """Where a stage stands. Plain values and tensors only: it is written into checkpoints as it is."""

    position: Position = field(default_factory=Position)
    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    n_worse: int = 0
    finished: bool = False
    best_weights: dict[str, Tensor] | None = None


def batch_loss(model: Any, stage: Stage, batch: Batch) -> Tensor:
    """The stage's loss on one batch."""
    if stage.loss == "intent":
        state = model.encode_request(batch.inputs)
        return intent_loss(state["intent"][batch.has_intent], batch.intent[batch.has_intent])
    if stage.loss == "own":
        own: Tensor = model.own_loss(stage.name, batch)
        return own
    state = model.encode_request(batch.inputs, _given_intent(model, stage, batch))
    return batch.click_loss(model.score(state, batch.inputs).logits)


def _given_intent(model: Any, stage: Stage, batch: Batch) -> Tensor | None:
    """The label, in stages that are fed it; a clicked request that lacks one (no vector) gets the prediction."""
    if stage.intent != "true":
        return None
    if bool(batch.has_intent.all()):
        return batch.intent
    with torch.no_grad():
        predicted: Tensor = model.encode_request(batch.inputs)["intent"]
    return torch.where(batch.has_intent.unsqueeze(1), batch.intent, predicted)


def without_users(batch: Batch, share: float) -> Batch:
    """The batch with this share of its requests, drawn by torch's generator, by an unknown user."""
    if not share:
        return batch
    users = batch.inputs.user_fields.clone()
    users[torch.rand(len(users)) < share, 0] = UNKNOWN
    return batch._replace(inputs=batch.inputs._replace(user_fields=users))


def fit_stage(
    model: nn.Module,
    stage: Stage,
    train: BatchSource,
    validation: BatchSource,
    config: TrainConfig,
    recorder: Recorder,
    state: StageState | None = None,
    optimizer_state: dict[str, Any] | None = None,
    checkpoint: Callable[[StageState, StageOptimizer], None] = lambda _state, _optimizer: None,
    n_steps: int | None = None,
) -> StageState:
    """Trains one stage from `state` on and leaves the best weights in the model.

    `checkpoint` is called every `config.checkpoint_every` steps with all that is needed to go on from there. `n_steps`
    takes the place of the stage's epochs. A stage that learns intents is left out, and says so, when no request has a
    label: a shop without vectors. Raises DataError before the first step when the validation could not choose weights,
    FloatingPointError when a loss or a validation number is none.
    """
    state = state or StageState()
    if not _can_learn(stage, train, validation, config, recorder):
        state.finished = True
        return state
    optimizer = make_optimizer(model, stage, config.optim)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    model.train()
    while _goes_on(state, stage, n_steps):
        epoch = state.position.epoch
        for batch in train.epoch(state.position):
            _step(model, stage, without_users(batch, config.unknown_user_share), optimizer, state, recorder)
            state.position = batch.after
            due = config.evaluate_every and state.step % config.evaluate_every == 0
            if state.position.epoch > epoch or due or state.step == n_steps:
                _validate(model, stage, validation, config, recorder, state)
            if state.step % config.checkpoint_every == 0:
                checkpoint(state, optimizer)
            if not _goes_on(state, stage, n_steps):
                break
        if state.position.epoch == epoch and _goes_on(state, stage, n_steps):  # the epoch's last pool held nothing
            state.position = Position(epoch + 1)
            _validate(model, stage, validation, config, recorder, state)
    state.finished = True
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return state


def _can_learn(
    stage: Stage, train: BatchSource, validation: BatchSource, config: TrainConfig, recorder: Recorder
) -> bool:
    """False, and said so, for a stage without a label. Raises DataError when nothing could choose its weights."""
    if stage.selects == "own_loss":
        return True
    if stage.loss != "intent":
        check_ranked(validation.epoch(), config.select_by)
    elif has_intent_label(train.epoch()):
        check_labelled(validation.epoch())
    else:
        recorder.note(stage.name, NO_LABELS)
        return False
    return True


def _goes_on(state: StageState, stage: Stage, n_steps: int | None) -> bool:
    left = state.position.epoch < stage.max_epochs if n_steps is None else state.step < n_steps
    return left and not state.finished


def _step(
    model: nn.Module,
    stage: Stage,
    batch: Batch,
    optimizer: StageOptimizer,
    state: StageState,
    recorder: Recorder,
) -> None:
    started = time.perf_counter()
    optimizer.zero_grad()
    loss = batch_loss(model, stage, batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"stage {stage.name!r}, step {state.step + 1}: the loss is {loss.item()}; lower the learning rate"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    state.step += 1
    recorder.step(stage.name, state.step, loss.item(), len(batch.clicks), time.perf_counter() - started)


def _validate(
    model: nn.Module, stage: Stage, validation: BatchSource, config: TrainConfig, recorder: Recorder, state: StageState
) -> None:
    """Scores the validation split with the predicted intent, whatever was fed, and remembers the best weights."""
    numbers, select_by, sign = _validation_numbers(model, stage, validation, config)
    value = sign * numbers[select_by]
    recorder.validation(stage.name, state.step, numbers)
    if math.isnan(value):  # it would lose against any other: no weights would ever be kept
        raise FloatingPointError(
            f"stage {stage.name!r}, step {state.step}: {select_by} of the validation is nan; lower the learning rate"
        )
    if value > state.best:
        state.best, state.best_step, state.n_worse = value, state.step, 0
        state.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    else:
        state.n_worse += 1
        state.finished = state.n_worse >= config.patience


def _validation_numbers(
    model: nn.Module, stage: Stage, validation: BatchSource, config: TrainConfig
) -> tuple[dict[str, float], str, int]:
    """The numbers of the validation split, the one that chooses weights, and 1 if more of it is better, else -1."""
    if stage.selects == "own_loss":
        return {"own_loss": _mean_loss(model, stage, validation)}, "own_loss", -1
    numbers = all_numbers(score_batches(model, validation.epoch()))
    return (numbers, "intent_kl", -1) if stage.loss == "intent" else (numbers, config.select_by, 1)


@torch.no_grad()
def _mean_loss(model: nn.Module, stage: Stage, validation: BatchSource) -> float:
    """The stage's loss over the validation split, batches weighted by their requests.

    Its chance is the same each time and leaves the training's untouched.
    """
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [(batch_loss(model, stage, batch).item(), len(batch.has_intent)) for batch in validation.epoch()]
    model.train()
    return sum(loss * n for loss, n in found) / max(1, sum(n for _, n in found))
