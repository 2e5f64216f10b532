"""MWUF: whose gradient goes where, what is in the table when, vectors by hand, and a run that is killed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.checkpoint import load_tensors
from training.config import DataConfig, TrainConfig
from training.data.fit_encoder import fit_encoder
from training.data.synthetic import World, simulate
from training.facts import training_facts
from training.layers.embedding import EmbeddingWidths
from training.models import mwuf
from training.models.mwuf import META, SPEC, Mwuf, MwufConfig, mean_clickers
from training.models.spec import TrainingFacts
from training.optimizers import parameters_by_ratio
from training.recipes import row_config
from training.train import train

CONFIG = MwufConfig(EmbeddingWidths(8, 6, 4, 4), top=(24, 12), similarity_width=8, cold_below=4)
N_ITEMS = SIZES.item[0]
COUNTS = (3, 1, 4)


def facts() -> TrainingFacts:
    """Item i was shown i mod 7 times and clicked each time, all by user 2 + i mod 20."""
    items = np.repeat(np.arange(N_ITEMS), np.arange(N_ITEMS) % 7)
    chance = np.random.default_rng(3)
    fields = np.stack([np.arange(N_ITEMS), *(chance.integers(1, height, N_ITEMS) for height in SIZES.item[1:])], axis=1)
    return TrainingFacts(np.arange(N_ITEMS) % 7, np.arange(N_ITEMS) % 7, 2 + items % 20, items, fields)


def built(stage: str = META) -> Mwuf:
    torch.manual_seed(1)
    model = with_large_weights(Mwuf(CONFIG, SIZES), spread=0.35).double()
    assert isinstance(model, Mwuf)
    assert SPEC.before_stage is not None
    SPEC.before_stage(model, stage, facts())
    return model.train()


def id_table(model: Mwuf) -> Tensor:
    return model.din.page.behaviours.item_ids.weight.detach()


# ---- vectors --------------------------------------------------------------------------------------------------------


def test_the_mean_of_those_who_clicked() -> None:
    users = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 4.0], [4.0, 8.0]])
    means = mean_clickers(users, torch.tensor([2, 3, 3, 1]), torch.tensor([1, 1, 2, 1]), 4)
    nobody = [7 / 3, 13 / 3]
    torch.testing.assert_close(means, torch.tensor([nobody, [7 / 3, 13 / 3], [4.0, 8.0], nobody]))


def test_clicks_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    users, told = torch.randn(30, 3), facts()
    clicks = torch.from_numpy(told.click_user), torch.from_numpy(told.click_item)
    whole = mean_clickers(users, *clicks, N_ITEMS)
    monkeypatch.setattr(mwuf, "_CHUNK", 5)
    torch.testing.assert_close(mean_clickers(users, *clicks, N_ITEMS), whole)


def warm_by_hand(model: Mwuf, item: int) -> Tensor:
    """v_cold ⊙ scale(side) + shift(mean clicker), its clicks looked up one by one."""
    told = facts()
    page = model.din.page
    side = [table.weight[told.item_fields[item, 1 + i]] for i, table in enumerate(page.behaviours.items.tables[1:])]
    users = page.user.tables[0].weight
    who = [users[user] for user, clicked in zip(told.click_user, told.click_item, strict=True) if clicked == item]
    mean = torch.stack(who).mean(0) if who else users[1:].mean(0)
    return model.cold_ids.weight[item] * model.scale(torch.cat(side)) + model.shift(mean)


@torch.no_grad()
def check_table(model: Mwuf) -> None:
    """Cold items have their warm vectors, all others what they had learnt."""
    before = id_table(model).clone()
    model.eval()
    for item in range(N_ITEMS):
        is_cold = item >= 2 and item % 7 < 4
        expected = warm_by_hand(model, item) if is_cold else before[item]
        torch.testing.assert_close(id_table(model)[item], expected, rtol=0, atol=1e-10)
    model.train()
    assert torch.equal(id_table(model), before)


def test_whoever_scores_in_the_meta_stage_sees_warm_vectors_and_the_base_stays() -> None:
    check_table(built())


def test_without_the_exchange_cold_vectors_would_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mwuf, "write_warm_vectors", lambda _self: None)
    with pytest.raises(AssertionError):
        check_table(built())


def test_the_new_table_begins_as_the_mean_of_the_trained_ids() -> None:
    model = built()
    mean = id_table(model)[2:].mean(0)
    assert not model.cold_ids.weight[0].any()
    torch.testing.assert_close(model.cold_ids.weight[1:].detach(), mean.repeat(N_ITEMS - 1, 1))


def test_the_base_stage_scores_what_it_has_learnt() -> None:
    model = built("base")
    before = id_table(model).clone()
    assert torch.equal(id_table(model.eval()), before)


@torch.no_grad()
def test_at_the_end_it_is_a_plain_din_that_scores_as_in_the_last_validation() -> None:
    model, inputs = built(), random_inputs(COUNTS)
    validated = model.eval().score(model.encode_request(inputs), inputs).logits
    model.train()
    assert SPEC.after_training is not None
    SPEC.after_training(model, facts())
    for mode in (True, False, True):
        model.train(mode)
        assert torch.equal(model.score(model.encode_request(inputs), inputs).logits, validated)
    reopened = Mwuf(CONFIG, SIZES).double().eval()
    reopened.load_state_dict(model.state_dict())
    assert torch.equal(reopened.score(reopened.encode_request(inputs), inputs).logits, validated)


# ---- the loss -------------------------------------------------------------------------------------------------------


def gradients(model: Mwuf, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_gradients() -> None:
    """The new table moves by the loss with v_cold alone, the two networks by that with v_warm alone."""
    model, batch = built(), random_batch((9, 4, 12))
    inputs = batch.inputs
    with torch.no_grad():  # rows that differ, as after some steps
        model.cold_ids.weight += 0.1 * torch.randn(model.cold_ids.weight.shape)
    parameters_by_ratio(model, SPEC.stages(CONFIG)[1])
    found = gradients(model, model.own_loss(META, batch._replace(clicks=batch.clicks.double())))

    def loss_with(vectors: Tensor) -> Tensor:
        state = model.encode_request(inputs)
        rows = mwuf.CandidateRows.of(inputs.candidate_request, 3)
        logits = model._logits(rows, state, inputs, torch.cat([vectors, side], dim=1))
        return functional.binary_cross_entropy_with_logits(logits, batch.clicks.double())

    ids = inputs.candidate_fields[:, 0]
    side = model.din.page.item(inputs)[:, 8:]
    by_cold = gradients(model, loss_with(model.cold_ids(ids)))
    stopped = model.cold_ids.weight.detach()[ids]
    by_warm = gradients(model, loss_with(stopped * model.scale(side) + model.shift(model.mean_clicker[ids])))
    assert set(by_cold) == {"cold_ids.weight"}
    assert {name.partition(".")[0] for name in by_warm} == {"scale", "shift"}
    assert set(found) == set(by_cold) | set(by_warm)
    for name, gradient in {**by_cold, **by_warm}.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)


def test_no_gradient_crosses_between_the_table_and_the_networks() -> None:
    check_gradients()


def test_without_the_stop_it_would_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Mwuf.warmed

    def leaking(self: Mwuf, cold: Tensor, side: Tensor, clicker: Tensor) -> Tensor:
        assert not cold.requires_grad
        rows = (self.cold_ids.weight.detach() == cold.unsqueeze(1)).all(-1).to(torch.int64).argmax(1)
        return honest(self, self.cold_ids(rows), side, clicker)

    monkeypatch.setattr(Mwuf, "warmed", leaking)
    with pytest.raises(AssertionError):
        check_gradients()


def test_a_loss_of_another_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="'base'"):
        built().own_loss("base", random_batch(COUNTS))


def test_items_without_side_fields_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match="side fields"):
        Mwuf(CONFIG, replace(SIZES, item=(60,), item_kinds=("id",), leaf_category=None))


# ---- a whole run ----------------------------------------------------------------------------------------------------


class Dies:
    """Stops the run at a step of the meta stage."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, stage: str, step: int, *_rest: object) -> None:
        if stage == META and step == self.at:
            raise KeyboardInterrupt

    def validation(self, *_given: object) -> None:
        """Not listened to."""

    def note(self, *_given: object) -> None:
        """Not listened to."""


def run_config() -> TrainConfig:
    config = row_config("small", "mwuf_trigger")
    model = replace(config.model, base_epochs=1, meta_epochs=2, cold_below=20)
    return replace(config, model=model, data=DataConfig(batch_candidates=512), checkpoint_every=3, evaluate_every=4)


def test_killed_while_warming_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    world = tmp_path / "shop"
    simulate(world, World(n_requests=500, n_users=80, n_items=100, seed=5))
    numbers = train(run_config(), world, tmp_path / "whole", Dies(at=-1))
    with pytest.raises(KeyboardInterrupt):
        train(run_config(), world, tmp_path / "broken", Dies(at=8))
    assert train(run_config(), world, tmp_path / "broken", Dies(at=-1)) == numbers
    whole, pieces = (load_tensors(tmp_path / name / "weights.pt") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    told = training_facts(world, fit_encoder(world))
    assert not whole["warming"].any()
    assert np.array_equal(whole["is_cold"].numpy()[2:], told.item_impressions[2:] < 20)
    assert 0 < whole["is_cold"].sum() < len(told.item_clicks) - 2
