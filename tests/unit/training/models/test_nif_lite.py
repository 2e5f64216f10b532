"""NIF-lite: InfoNCE, both regularisers and TSP against the definitions; the flow stays frozen."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.layers.label_pairs import pairs_over_time
from training.loop import batch_loss
from training.models import nif_lite
from training.models.nif_lite import NifLite, NifLiteConfig, before_stage, diversity, drawn_places, stages
from training.models.spec import TrainingFacts

CONFIG = NifLiteConfig(attention="dot", width=16, n_heads=2, top=(24, 12))
FLOW, CLICKS = stages(CONFIG)
NOTHING = np.zeros(0, np.int64)
NO_FACTS = TrainingFacts(NOTHING, NOTHING, NOTHING, NOTHING, np.zeros((0, 3), np.int64))
COUNTS = (9, 4, 12, 8, 11)


def model() -> NifLite:
    torch.manual_seed(1)
    built = NifLite(CONFIG, SIZES)
    with_large_weights(built)
    return built


@torch.no_grad()
def test_info_nce_by_loops() -> None:
    one = model().eval()
    fields = torch.tensor([[5, 2, 3], [6, 2, 3], [5, 2, 3], [7, 4, 4]])
    flow = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    wanted = F.normalize(one.flow.target(one.flow.tables.item(fields)), dim=-1)
    frequency = [2 / 4, 1 / 4, 2 / 4, 1 / 4]
    losses = []
    for i in range(4):
        scores = [
            float(flow[i] @ wanted[j]) / 0.07 - math.log(frequency[j])
            for j in range(4)
            if j == i or fields[j, 0] != fields[i, 0]  # the same item once more is no negative
        ]
        own = float(flow[i] @ wanted[i]) / 0.07 - math.log(frequency[i])
        losses.append(math.log(sum(math.exp(score) for score in scores)) - own)
    assert one.flow._info_nce(flow, fields).item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_diversity_by_hand() -> None:
    """Two vectors: what is left of them without their mean points to opposite sides. Four around a circle: by pairs."""
    two = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert diversity(two).item() == pytest.approx(1.0, abs=1e-5)
    axis, around = math.sqrt(0.5), math.sqrt(0.5)
    four = torch.tensor([[[axis, around, 0], [axis, 0, around], [axis, -around, 0], [axis, 0, -around]]])
    assert diversity(four).item() == pytest.approx(4 / 12, abs=1e-5)  # of 12 ordered pairs 4 are opposite


def test_velocity_by_hand_and_only_training_moves_its_mean() -> None:
    one = model()
    turns = torch.tensor([0.0, 0.2, 0.8])
    flow = torch.stack([turns.cos(), turns.sin()], dim=-1).unsqueeze(0)
    one.eval()
    one.flow.mean_angle.fill_(0.3)
    assert one.flow._velocity(flow).item() == pytest.approx((0.1**2 + 0.3**2) / 2, abs=1e-4)
    assert one.flow.mean_angle.item() == pytest.approx(0.3)
    one.train()
    one.flow._velocity(flow)
    assert one.flow.mean_angle.item() == pytest.approx(0.3 * 0.99 + 0.4 * 0.01, abs=1e-5)


def test_a_place_is_drawn_where_there_is_a_next_one() -> None:
    mask = torch.arange(5) < torch.tensor([0, 1, 2, 5]).unsqueeze(1)
    seen = torch.stack([drawn_places(mask) for _ in range(200)])
    assert seen[:, 0].unique().tolist() == [-1]
    assert seen[:, 1].unique().tolist() == [-1]
    assert seen[:, 2].unique().tolist() == [0]
    assert seen[:, 3].unique().tolist() == [0, 1, 2, 3]


@torch.no_grad()
def test_the_flow_is_unit_vectors_and_nothing_without_history() -> None:
    inputs = random_inputs(COUNTS)
    flow = model().flow(inputs)
    assert flow.shape == (5, 4, 16)
    assert not flow[0].any()  # the first request has no history
    assert flow[-1].norm(dim=-1).sub(1).abs().max() < 1e-5


def test_the_flow_is_frozen_for_the_clicks() -> None:
    one, batch = model().train(), random_batch(COUNTS)
    batch_loss(one, CLICKS, batch).backward()
    assert all(parameter.grad is None for parameter in one.flow.parameters())
    one.zero_grad(set_to_none=True)
    batch_loss(one, FLOW, batch).backward()
    assert all(parameter.grad is None for parameter in one.ranker.parameters())
    assert all(parameter.grad is not None for parameter in one.flow.parameters())


def test_without_the_detachment_clicks_would_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda x: x)
    one, batch = model().train(), random_batch(COUNTS)
    batch_loss(one, CLICKS, batch).backward()
    assert any(parameter.grad is not None for parameter in one.flow.parameters())


def test_histories_without_a_next_behaviour_are_no_fault() -> None:
    one, batch = model().train(), random_batch((3, 2))
    alone = torch.zeros_like(batch.inputs.history_age)
    alone[:, 0] = 1
    loss = batch_loss(one, FLOW, batch._replace(inputs=batch.inputs._replace(history_age=alone)))
    loss.backward()
    assert loss.item() == 0


def test_the_click_loss_is_cross_entropy_plus_pairs_over_time() -> None:
    one = model().eval()
    batch = random_batch(COUNTS)
    users = torch.full((len(COUNTS),), 5)  # all requests are of one user,
    batch = batch._replace(user_group=users.numpy())
    batch.inputs.user_fields[:, 0] = 1  # which the inputs hide
    with torch.no_grad():
        torch.manual_seed(4)
        loss = one.own_loss("clicks", batch).item()
        logits = one.score(one.encode_request(batch.inputs), batch.inputs).logits
        torch.manual_seed(4)
        pairs = pairs_over_time(users, batch.inputs.candidate_request, batch.clicks, 1024).tolist()
    wanted = [math.log(1 + math.exp(-(float(logits[a]) - float(logits[b])))) for a, b in pairs]
    clicks = F.binary_cross_entropy_with_logits(logits, batch.clicks).item()
    assert len(pairs) > 100
    assert loss == pytest.approx(clicks + 0.1 * sum(wanted) / 1024, abs=1e-4)


def test_the_ranker_begins_with_the_generators_items() -> None:
    one = model()
    mine, told = one.ranker.tables.behaviours.item_ids.weight, one.flow.tables.item_ids.weight
    before_stage(one, "flow", NO_FACTS)
    assert not torch.equal(mine, told)
    before_stage(one, "clicks", NO_FACTS)
    assert torch.equal(mine, told)


def test_the_generator_learns_what_comes_next() -> None:
    """Histories that count: each of eight items is followed by the next. The newest place then tells its successor."""
    torch.manual_seed(0)
    one = NifLite(CONFIG, SIZES).train()
    assert told_right(one) < 0.3  # an eighth by chance
    optimizer = torch.optim.Adam(one.flow.parameters(), lr=1e-2)
    for seed in range(80):
        optimizer.zero_grad()
        one.own_loss("flow", counting(seed)).backward()
        optimizer.step()
    assert told_right(one) > 0.4


@torch.no_grad()
def told_right(one: NifLite) -> float:
    """Share of histories whose next item is the nearest to the first vector of the flow."""
    batch = counting(999)
    items = torch.stack([torch.arange(10, 18), torch.full((8,), 2), torch.full((8,), 2)], dim=1)
    wanted = F.normalize(one.flow.target(one.flow.tables.item(items)), dim=-1)
    guessed = (one.flow(batch.inputs)[:, 0] @ wanted.T).argmax(1) + 10
    follows = 10 + (batch.inputs.history_fields[:, -1, 0] - 10 + 1) % 8
    return (guessed == follows).float().mean().item()


def counting(seed: int) -> nif_lite.LabelledInputs:
    n = 40
    batch = random_batch((2,) * n, seed)
    start = torch.randint(0, 8, (n, 1), generator=torch.Generator().manual_seed(seed))
    ids = 10 + (start + torch.arange(6)) % 8
    fields = torch.stack([ids, torch.full_like(ids, 2), torch.full_like(ids, 2)], dim=-1)
    age = torch.arange(6, 0, -1).expand(n, -1)
    return batch._replace(inputs=batch.inputs._replace(history_fields=fields, history_age=age))
