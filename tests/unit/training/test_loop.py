"""The training loop on batches made in memory: what it freezes, when it validates and stops, what it leaves behind."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.unit.training.random_inputs import SIZES, random_batch
from training import loop
from training.config import OptimConfig, TrainConfig
from training.data.batches import Batch, Position
from training.data.errors import DataError
from training.loop import StageState, fit_stage, without_users
from training.models import build_model
from training.models.daian import DaianConfig
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
        self.notes: list[str] = []

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:
        assert (stage, n_candidates) == ("clicks", 14)
        assert seconds > 0
        self.steps.append(step)
        self.losses.append(loss)

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        assert stage == "clicks"
        self.validations.append((step, numbers))

    def note(self, stage: str, text: str) -> None:
        self.notes.append(f"{stage}: {text}")


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


# ---- what a stage can learn from, and be chosen by ------------------------------------------------------------------


class Changed(InMemory):
    """The same batches, each with something changed."""

    def __init__(self, change: Callable[[Batch], Batch], n_batches: int = 1) -> None:
        super().__init__(n_batches)
        self.change = change

    def epoch(self, start: Position = Position()) -> Iterator[Batch]:  # noqa: B008
        for batch in super().epoch(start):
            yield self.change(batch)


def without_labels(batch: Batch) -> Batch:
    """A shop without vectors: no click has a level."""
    nothing = torch.zeros_like(batch.has_intent)
    return batch._replace(has_intent=nothing, intent=torch.zeros_like(batch.intent))


INTENT = Stage("clicks", trains=("uim",), loss="intent", intent="none", requests="clicked")
INTERESTS = Stage("clicks", trains=("tables", "base", "top", "implicit", "explicit"), intent="true")
DAIAN = DaianConfig(width=16, top=(8,), uim_hidden=(8,), similarity_width=8)


def fit_daian(stage: Stage, train: InMemory, validation: InMemory) -> tuple[nn.Module, StageState, Memory]:
    torch.manual_seed(4)
    model, memory = build_model(DAIAN, SIZES), Memory()
    state = fit_stage(model, stage, train, validation, replace(CONFIG, model=DAIAN), memory)
    return model, state, memory


def test_an_intent_stage_without_any_label_is_left_out_and_says_so() -> None:
    torch.manual_seed(4)
    before = build_model(DAIAN, SIZES).state_dict()
    model, state, memory = fit_daian(INTENT, Changed(without_labels, N_BATCHES), Changed(without_labels))
    assert (state.finished, state.step, memory.steps) == (True, 0, [])
    assert len(memory.notes) == 1
    assert "no training request has an intent label" in memory.notes[0]
    assert "daian embed" in memory.notes[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_other_stages_learn_without_a_label() -> None:
    _, state, memory = fit_daian(INTERESTS, Changed(without_labels, N_BATCHES), Changed(without_labels))
    assert state.step == len(memory.steps) == N_BATCHES
    assert state.best_weights is not None


def test_labels_in_training_and_none_in_validation_are_refused_before_the_first_step() -> None:
    memory = Memory()
    model = build_model(DAIAN, SIZES)
    with pytest.raises(DataError, match=r"no validation request has an intent label.*prepare the data"):
        fit_stage(model, INTENT, InMemory(), Changed(without_labels), replace(CONFIG, model=DAIAN), memory)
    assert not memory.steps


@pytest.mark.parametrize("select_by", ["gauc_request", "gauc_user"])
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["nobody clicks", "all is clicked"])
def test_a_validation_that_cannot_choose_weights_is_refused_before_the_first_step(select_by: str, value: float) -> None:
    of_one_kind = Changed(lambda batch: batch._replace(clicks=torch.full_like(batch.clicks, value)))
    memory, config = Memory(), replace(CONFIG, select_by=select_by)
    with pytest.raises(DataError, match=rf"{select_by}.*prepare the data"):
        fit_stage(fresh(), CLICKS, InMemory(), of_one_kind, config, memory)
    assert not memory.steps


def test_users_may_choose_weights_where_no_request_can() -> None:
    """Pages of one candidate: no request has both kinds, but a user with two of them has."""

    def one_page_each(batch: Batch) -> Batch:
        pages = random_batch((1, 1, 1, 1))
        return pages._replace(clicks=torch.tensor([1.0, 0.0, 1.0, 0.0]), after=batch.after)

    config = replace(CONFIG, select_by="gauc_user")
    state = fit_stage(fresh(), CLICKS, InMemory(), Changed(one_page_each), config, Memory())
    assert state.best_weights is not None
    with pytest.raises(DataError, match=r"gauc_request.*select_by='gauc_user'"):
        fit_stage(fresh(), CLICKS, InMemory(), Changed(one_page_each), CONFIG, Memory())


def test_an_empty_validation_is_refused_before_the_first_step() -> None:
    memory = Memory()
    with pytest.raises(DataError, match="gauc_request"):
        fit_stage(fresh(), CLICKS, InMemory(), InMemory(0), CONFIG, memory)
    assert not memory.steps


def test_a_number_that_is_none_never_ends_a_stage_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "all_numbers", lambda _scored: {"gauc_request": float("nan")})
    with pytest.raises(FloatingPointError, match="gauc_request"):
        fit()


def test_a_stage_may_be_given_its_number_of_steps() -> None:
    """6 steps of epochs of 4: one and a half, whatever the stage says of epochs; validated where it ends."""
    model, memory = fresh(), Memory()
    state = fit_stage(model, CLICKS, InMemory(), InMemory(1), CONFIG, memory, n_steps=6)
    assert state.step == 6
    assert [step for step, _ in memory.validations] == [4, 6]
    longer = Memory()
    fit_stage(fresh(), replace(CLICKS, max_epochs=1), InMemory(), InMemory(1), CONFIG, longer, n_steps=8)
    assert [step for step, _ in longer.validations] == [4, 8]


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
