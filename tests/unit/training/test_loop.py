"""The training loop on batches made in memory: what it freezes, when it validates and stops, what it leaves behind."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.unit.training.random_inputs import SIZES, random_batch
from training.config import OptimConfig, TrainConfig
from training.data.batches import Batch, Position
from training.loop import StageState, fit_stage, without_users
from training.models import build_model
from training.models.din import DinConfig
from training.models.spec import Stage
from training.optimizers import make_optimizer
from training.scores import all_numbers, score_batches

MODEL = DinConfig(top=(8,))
CLICKS = Stage("clicks", trains=("",), intent="none", max_epochs=3)
CONFIG = TrainConfig("test", MODEL, patience=100)
N_BATCHES = 4


class InMemory:
    """Batches of an epoch, made from its number; remembers where it was asked to start."""

    def __init__(self, n_batches: int = N_BATCHES, says_when_an_epoch_ends: bool = True) -> None:
        self.n_batches = n_batches
        self.says = says_when_an_epoch_ends
        self.starts: list[Position] = []

    def epoch(self, start: Position = Position()) -> Iterator[Batch]:  # noqa: B008
        self.starts.append(start)
        for number in range(start.batch, self.n_batches):
            last = number + 1 == self.n_batches and self.says
            after = Position(start.epoch + 1) if last else Position(start.epoch, 0, number + 1)
            yield random_batch((5, 3, 6), seed=start.epoch * 100 + number, after=after)


class Memory:
    """Remembers what the loop tells."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.validations: list[tuple[int, dict[str, float]]] = []

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
        assert (stage, n_candidates) == ("clicks", 14)
        assert seconds > 0
        self.steps.append(step)
        self.losses.append(loss)

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        assert stage == "clicks"
        self.validations.append((step, numbers))


def fresh() -> nn.Module:
    torch.manual_seed(4)
    return build_model(MODEL, SIZES)


def fit(config: TrainConfig = CONFIG, train: InMemory | None = None) -> tuple[nn.Module, StageState, Memory]:
    model, memory = fresh(), Memory()
    state = fit_stage(model, CLICKS, train or InMemory(), InMemory(1), config, memory)
    return model, state, memory


def test_every_epoch_is_taken_whole_and_validated_once_at_its_end() -> None:
    _, state, memory = fit()
    assert memory.steps == list(range(1, 3 * N_BATCHES + 1))
    assert [step for step, _ in memory.validations] == [4, 8, 12]
    assert state.finished


def test_an_epoch_whose_end_no_batch_announces_is_validated_as_well() -> None:
    source = InMemory(says_when_an_epoch_ends=False)
    _, _, memory = fit(train=source)
    assert [step for step, _ in memory.validations] == [4, 8, 12]
    assert [start.epoch for start in source.starts] == [0, 1, 2]


def test_validation_between_epochs_and_at_their_end_never_twice() -> None:
    _, _, memory = fit(replace(CONFIG, evaluate_every=2))
    assert [step for step, _ in memory.validations] == [2, 4, 6, 8, 10, 12]


def test_the_best_weights_stay_not_the_last() -> None:
    model, state, memory = fit()
    values = [numbers["gauc_request"] for _, numbers in memory.validations]
    assert state.best == max(values)
    assert state.best_step == 4 * (1 + values.index(max(values)))
    assert all_numbers(score_batches(model, InMemory(1).epoch()))["gauc_request"] == state.best


def test_a_stage_ends_when_validation_stops_improving() -> None:
    learning_backwards = replace(CONFIG, patience=1, optim=OptimConfig(learning_rate=0.0))
    model, state, memory = fit(learning_backwards)
    assert [step for step, _ in memory.validations] == [4, 8]  # no better at 8: the end
    assert state.best_step == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh().parameters(), strict=True))


def test_the_loss_falls() -> None:
    class Same(InMemory):
        def epoch(self, start: Position = Position()) -> Iterator[Batch]:  # noqa: B008
            for number in range(30):
                after = Position(start.epoch + 1) if number == 29 else Position(start.epoch, 0, number + 1)
                yield random_batch((5, 3, 6), seed=1, after=after)

    _, _, memory = fit(replace(CONFIG, optim=OptimConfig(initial_accumulator=1e-4)), Same())
    assert memory.losses[-1] < 0.5 * memory.losses[0]


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step() -> None:
    model = fresh()
    with torch.no_grad():
        next(iter(model.parameters()))[:] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1"):
        fit_stage(model, CLICKS, InMemory(), InMemory(1), CONFIG, Memory())


def test_checkpoints_come_every_so_many_steps() -> None:
    seen: list[tuple[int, Position]] = []
    config = replace(CONFIG, checkpoint_every=5)
    fit_stage(
        fresh(), CLICKS, InMemory(), InMemory(1), config, Memory(),
        checkpoint=lambda state, _optimizer: seen.append((state.step, state.position)),
    )  # fmt: skip
    assert seen == [(5, Position(1, 0, 1)), (10, Position(2, 0, 2))]


def test_adagrad_starts_with_its_accumulator_and_tables_never_decay() -> None:
    model = fresh()
    optimizer = make_optimizer(model, CLICKS, OptimConfig(weight_decay=0.01))
    assert all(state["sum"].min() == pytest.approx(0.1) for state in optimizer.state.values())
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.0 if id(p) in tables else 0.01) for p in model.parameters())


def test_a_fresh_id_does_not_jump() -> None:
    """Trap T15: from an accumulator of 0 a first touch moves a coordinate by the whole rate, whatever the gradient."""

    def first_move(initial: float) -> float:
        weight = nn.Parameter(torch.zeros(1))
        weight.grad = torch.full((1,), 1e-6)
        torch.optim.Adagrad([weight], lr=0.05, initial_accumulator_value=initial).step()
        return weight.abs().item()

    assert first_move(OptimConfig().initial_accumulator) < 1e-6
    assert first_move(0.0) > 0.04


def test_a_share_of_users_is_made_unknown_and_nothing_else_changes() -> None:
    batch = random_batch((1,) * 400)
    torch.manual_seed(0)
    changed = without_users(batch, 0.25)
    user, before = changed.inputs.user_fields, batch.inputs.user_fields
    assert 60 < (user[:, 0] != before[:, 0]).sum() < 140
    assert set(user[user[:, 0] != before[:, 0], 0].tolist()) == {1}
    assert torch.equal(user[:, 1:], before[:, 1:])
    for found, expected in zip(changed.inputs[1:], batch.inputs[1:], strict=True):
        assert torch.equal(found, expected)
    assert without_users(batch, 0.0) is batch
