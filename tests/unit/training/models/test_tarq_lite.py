"""TARQ-lite: the two ways to the same h, the student follows the teacher, gradients stop at it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.training.random_inputs import SIZES, one_request, random_batch, random_inputs, with_large_weights
from training.layers.ragged import CandidateRows
from training.loop import batch_loss
from training.models import tarq_lite
from training.models.spec import TrainingFacts
from training.models.tarq_lite import TarqLite, TarqLiteConfig, before_stage, explained, stages
from training.optimizers import parameters_by_ratio

CONFIG = TarqLiteConfig(width=16, n_heads=2, top=(24, 12), code_width=8, n_codes=16, student_top=(16, 8))
TEACHER, STUDENT = stages(CONFIG)


def model(config: TarqLiteConfig = CONFIG) -> TarqLite:
    torch.manual_seed(1)
    built = TarqLite(config, SIZES)
    with_large_weights(built)
    return built


def slow_attended(one: TarqLite, inputs: object, rows: list[int]) -> Tensor:
    """h of some candidates of one request: each code of each candidate attends by itself, no table, no padding."""
    student = one.student
    sequence, mask = tarq_lite.trigger_and_history(student.tables, inputs)  # type: ignore[arg-type]
    codes = student.items.quantiser.all_codes()
    found = []
    for row in rows:
        z = student.items(inputs.candidate_fields[row : row + 1])  # type: ignore[attr-defined]
        parts = [
            student.attention.one_per_request(codes[k].unsqueeze(0), sequence, mask).squeeze(0)
            for k in student.items.quantiser.choose(z)[0]
        ]
        found.append(torch.stack(parts).sum(0))
    return torch.stack(found)


@torch.no_grad()
def test_the_table_gives_what_each_code_gives_by_itself() -> None:
    one = model().eval()
    inputs = one_request(random_inputs((4, 7, 5)), 1)
    state = one.encode_request(inputs)
    assert state["code_table"].shape == (1, CONFIG.n_levels * CONFIG.n_codes, CONFIG.code_width)
    rows = CandidateRows.of(inputs.candidate_request, 1)
    chosen = one.student.items.quantiser.choose(one.student.items(inputs.candidate_fields))
    attended = one.student.attended(state, rows, chosen)
    assert (attended - slow_attended(one, inputs, list(range(7)))).abs().max() < 1e-5


def test_several_requests_need_no_table() -> None:
    assert set(model().encode_request(random_inputs((2, 3)))) == {
        "history_keys",
        "history_values",
        "history_mask",
        "top",
    }


@torch.no_grad()
def test_the_trigger_is_the_first_token() -> None:
    one = model()
    inputs = random_inputs((2, 3))
    sequence, mask = tarq_lite.trigger_and_history(one.student.tables, inputs)
    assert mask[:, 0].all()
    item = one.student.tables.item_width
    assert torch.equal(sequence[:, 0, :item], one.student.tables.trigger(inputs))
    assert not sequence[:, 0, item:].any()  # no age


def test_the_student_stage_never_moves_the_teacher_nor_the_teacher_stage_the_codes() -> None:
    one, batch = model().train(), random_batch((9, 4, 12))
    codes = one.student.items.quantiser.codes.clone()
    parameters_by_ratio(one, TEACHER)
    batch_loss(one, TEACHER, batch).backward()
    assert all(parameter.grad is None for parameter in one.student.parameters())
    assert torch.equal(one.student.items.quantiser.codes, codes)
    one.zero_grad(set_to_none=True)
    for parameter in one.parameters():
        parameter.requires_grad_(True)  # the stops are the loss's own, not only the stage's
    batch_loss(one, STUDENT, batch).backward()
    assert all(parameter.grad is None for parameter in one.teacher.parameters())
    assert not torch.equal(one.student.items.quantiser.codes, codes)


def test_validation_does_not_move_the_codes() -> None:
    one, batch = model().eval(), random_batch((9, 4, 12))
    codes = one.student.items.quantiser.codes.clone()
    batch_loss(one, STUDENT, batch)
    assert torch.equal(one.student.items.quantiser.codes, codes)
    one.train()
    batch_loss(one, STUDENT, batch)
    assert not torch.equal(one.student.items.quantiser.codes, codes)


NOTHING = np.zeros(0, np.int64)
NO_FACTS = TrainingFacts(NOTHING, NOTHING, NOTHING, NOTHING, np.zeros((0, 3), np.int64))


def trained(distillation: float) -> float:
    """R² of the student's attention after some steps on one batch."""
    one = model(replace(CONFIG, distillation=distillation)).train()
    batch = random_batch((30, 24, 40, 28, 33), seed=4)
    before_stage(one, "student", NO_FACTS)
    optimizer = torch.optim.Adam(one.student.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        one.own_loss("student", batch).backward()
        optimizer.step()
    return explained(one.eval(), batch)


def test_the_student_learns_the_teachers_attention_and_without_distillation_does_not() -> None:
    assert trained(1.0) > 0.5
    assert trained(0.0) < 0.1


def test_the_student_begins_where_the_teacher_stands() -> None:
    one = model()
    assert not torch.equal(one.student.tables.behaviours.item_ids.weight, one.teacher.tables.behaviours.item_ids.weight)
    before_stage(one, "teacher", NO_FACTS)
    assert not torch.equal(one.student.tables.behaviours.item_ids.weight, one.teacher.tables.behaviours.item_ids.weight)
    before_stage(one, "student", NO_FACTS)
    assert torch.equal(one.student.tables.behaviours.item_ids.weight, one.teacher.tables.behaviours.item_ids.weight)
    inputs = random_inputs((40, 50))
    z = one.student.items(inputs.candidate_fields)
    assert z.std().item() == pytest.approx(tarq_lite.CODED_SPREAD, rel=0.4)
    # what is near for the teacher is near for the codes: a random turn keeps distances, about
    near = torch.pdist(one.teacher.tables.item(inputs)).log()
    coded = torch.pdist(z).log()
    known = torch.isfinite(near) & torch.isfinite(coded)
    assert torch.corrcoef(torch.stack([near[known], coded[known]]))[0, 1] > 0.3
