"""AMEN-lite: what the moveline reads, the pairwise term against its definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.layers.label_pairs import pairs_over_time
from training.models.amen_lite import AmenLite, AmenLiteConfig

CONFIG = AmenLiteConfig(width=16, n_heads=2, top=(24, 12))


def model() -> AmenLite:
    torch.manual_seed(1)
    built = AmenLite(CONFIG, SIZES)
    with_large_weights(built)
    return built.eval()


@torch.no_grad()
def test_the_moveline_reads_when_and_not_what() -> None:
    one, inputs = model(), random_inputs((3, 4, 5))
    others = inputs._replace(history_fields=inputs.history_fields.flip(2).clamp_max(5))
    state, other = one.encode_request(inputs), one.encode_request(others)
    assert torch.equal(state["scene_keys"], other["scene_keys"])
    assert not torch.equal(state["item_keys"], other["item_keys"])
    slower = inputs._replace(history_age=(inputs.history_age * 2).clamp_max(18))
    assert not torch.equal(one.encode_request(slower)["scene_keys"], state["scene_keys"])


@torch.no_grad()
def test_items_and_scenes_meet_in_both_spaces() -> None:
    """The definition for one candidate: MHTA(A e_a; S), and MHTA(e_a; E_seq + B S)."""
    one, inputs = model(), random_inputs((3, 4, 5))
    request, candidate = 2, 8
    assert int(inputs.candidate_request[candidate]) == request
    sequence, mask = one.tables.history(inputs)
    scenes = one.moveline(inputs.history_age)
    item = one.tables.item(inputs)[candidate]
    side = slice(request, request + 1)
    in_scenes = one.scene_attention.one_per_request(one.item_to_scene(item).unsqueeze(0), scenes[side], mask[side])
    mixed = (sequence + scenes @ one.scene_to_item.weight.T)[side]
    in_items = one.item_attention.one_per_request(item.unsqueeze(0), mixed, mask[side])
    features = [one.tables.candidate(inputs, one.tables.item(inputs))[candidate : candidate + 1], in_scenes, in_items]
    wanted = one.top(one.top.request_part(one.tables.request(inputs)[side]), torch.cat(features, dim=-1))
    found = one.score(one.encode_request(inputs), inputs).logits[candidate]
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_the_loss_is_cross_entropy_plus_pairs_over_time() -> None:
    one, batch = model(), random_batch((9, 4, 12, 8, 11))
    users = torch.tensor([5, 5, 6, 6, 7])
    batch = batch._replace(user_group=users.numpy())
    batch.inputs.user_fields[:, 0] = 1  # whoever it is, the inputs may hide it
    with torch.no_grad():
        torch.manual_seed(4)
        loss = one.own_loss("clicks", batch).item()
        logits = one.score(one.encode_request(batch.inputs), batch.inputs).logits
        torch.manual_seed(4)
        pairs = pairs_over_time(users, batch.inputs.candidate_request, batch.clicks, 1024).tolist()
    wanted = [math.log(1 + math.exp(-(float(logits[a]) - float(logits[b])))) for a, b in pairs]
    clicks = F.binary_cross_entropy_with_logits(logits, batch.clicks).item()
    assert pairs
    assert loss == pytest.approx(clicks + 0.1 * sum(wanted) / 1024, abs=1e-4)


def test_a_batch_of_strangers_has_clicks_alone() -> None:
    one, batch = model(), random_batch((9, 4, 12))
    inputs = batch.inputs
    inputs.user_fields[:, 0] = 1
    logits = one.score(one.encode_request(inputs), inputs).logits
    clicks = F.binary_cross_entropy_with_logits(logits, batch.clicks).item()
    assert one.own_loss("clicks", batch._replace(user_group=np.arange(3))).item() == pytest.approx(clicks, abs=1e-6)
