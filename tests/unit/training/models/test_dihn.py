"""DIHN's own promises: the blend of eq. 3, the label and weights of eq. 13, which sub-sequences HSM reads."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.data.batches import Batch
from training.models import build_model, dihn
from training.models.dihn import SPEC, Dihn, DihnConfig

SMALL = DihnConfig(width=16, uin_hidden=(16,), top=(16, 8), similarity_width=8)


def small(config: DihnConfig = SMALL) -> Dihn:
    torch.manual_seed(2)
    model = with_large_weights(build_model(config, SIZES))
    assert isinstance(model, Dihn)
    return model


# ---- the blend (eq. 3) ----------------------------------------------------------------------------------------------


def blends_of(model: Dihn, inputs: ModelInputs) -> Tensor:
    """The queries that SSM's pooling is asked, [R C I]."""
    seen: list[Tensor] = []
    hook = model.pool.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.score(model.encode_request(inputs), inputs)
    hook.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("gate", ["vector", "scalar"])
def test_the_query_lies_between_trigger_and_candidate(gate: str) -> None:
    model, inputs = small(replace(SMALL, gate=gate)), random_inputs((2, 2))
    keys, mask = model.tables.history(inputs)
    trigger, item = model.tables.trigger(inputs), model.tables.item(inputs)
    vector, logit = model.uin(model.tables.user(inputs.user_fields), trigger, keys, mask)
    share = vector if gate == "vector" else torch.sigmoid(logit).expand_as(vector)
    asked = blends_of(model, inputs).flatten(0, 1)
    owner = inputs.candidate_request
    for n in range(4):
        expected = share[owner[n]] * trigger[owner[n]] + (1 - share[owner[n]]) * item[n]
        assert torch.allclose(asked[n], expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("bias", "answer"), [(60.0, "trigger"), (-60.0, "item")])
def test_a_sure_gate_asks_for_one_of_them_alone(bias: float, answer: str) -> None:
    model, inputs = small(), random_inputs((3,))
    model.uin.gate.bias.fill_(bias)
    expected = getattr(model.tables, answer)(inputs).expand(3, -1)
    assert torch.allclose(blends_of(model, inputs)[0], expected, atol=1e-6)


# ---- the loss (eq. 2, 13) -------------------------------------------------------------------------------------------


def labelled_batch() -> Batch:
    """Page 0: a click on another leaf; page 1: no click; page 2: a click on the trigger's leaf, and two of it."""
    batch = random_batch((2, 1, 3))
    inputs = batch.inputs
    inputs.trigger_fields[:, 1] = torch.tensor([5, 6, 7])
    inputs.candidate_fields[:, 1] = torch.tensor([5, 8, 6, 7, 7, 9])
    batch.clicks[:] = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    return batch


LABELS = {"page": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "candidate": [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]}


def check_the_loss(label: str) -> None:
    model, batch = small(replace(SMALL, label=label)), labelled_batch()
    state = model.encode_request(batch.inputs)
    logits = model.score(state, batch.inputs).logits
    said = state["entering"].squeeze(-1)[torch.tensor([0, 0, 1, 2, 2, 2])]
    of_intent = functional.binary_cross_entropy_with_logits(said, torch.tensor(LABELS[label]))
    of_clicks = functional.binary_cross_entropy_with_logits(logits, batch.clicks)
    assert model.own_loss("clicks", batch).item() == pytest.approx((1.0 * of_intent + 0.8 * of_clicks).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("label", ["page", "candidate"])
def test_the_loss_is_eq_13(label: str) -> None:
    check_the_loss(label)


@torch.no_grad()
@pytest.mark.parametrize("label", ["page", "candidate"])
def test_the_other_label_is_caught(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELS, label, LABELS["page" if label == "candidate" else "candidate"])
    with pytest.raises(AssertionError):
        check_the_loss(label)


def test_without_uins_loss_the_gate_learns_from_clicks_alone() -> None:
    model = small(replace(SMALL, uin_loss=0.0))
    assert model.uin.out is None
    inputs = random_inputs((3, 4))
    assert "entering" not in model.encode_request(inputs)
    assert model.score(model.encode_request(inputs), inputs).extras == {}
    model.own_loss("clicks", labelled_batch()).backward()
    assert model.uin.gate.weight.grad is not None
    assert model.uin.gate.weight.grad.abs().sum() > 0
    assert [stage.loss for stage in SPEC.stages(SMALL)] == ["own"]


# ---- sub-sequences (eq. 4-8) ----------------------------------------------------------------------------------------


def check_a_stranger_is_not_read() -> None:
    """A behaviour that shares nothing with the trigger is nothing to HSM; one that shares its price is."""
    model, inputs = small(), random_inputs((1, 2))
    inputs.trigger_fields[1] = torch.tensor([9, 5, 7])
    inputs.history_fields[1] = torch.tensor([[2, 5, 3], [3, 6, 7], [4, 6, 3], [5, 5, 7], [6, 1, 1], [7, 0, 0]])

    def interest(given: ModelInputs) -> Tensor:
        keys, mask = model.tables.history(given)
        return model.hsm(given, model.tables.user(given.user_fields), keys, mask)[1]

    heard = []
    for t in range(6):
        changed = inputs._replace(history_fields=inputs.history_fields.clone())
        changed.history_fields[1, t, 0] = 20
        heard.append(not torch.equal(interest(inputs), interest(changed)))
    assert heard == [True, True, False, True, False, False]


@torch.no_grad()
def test_sub_sequences_are_those_that_share_a_value_with_the_trigger() -> None:
    check_a_stranger_is_not_read()


@torch.no_grad()
def test_sub_sequences_under_the_mask_of_the_whole_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dihn, "trigger_subsequence", lambda inputs, _column: inputs.history_age > 0)
    with pytest.raises(AssertionError):
        check_a_stranger_is_not_read()


def test_attributes_start_with_the_leaf_and_never_hold_the_id() -> None:
    sizes = replace(SIZES, leaf_category=2)
    model = build_model(SMALL, sizes)
    assert isinstance(model, Dihn)
    assert model.hsm.columns == (2, 1)
    assert build_model(replace(SMALL, n_attributes=1), sizes).hsm.columns == (2,)
    assert not hasattr(build_model(replace(SMALL, use_hsm=False), sizes), "hsm")


def test_a_schema_without_a_leaf_category_is_refused() -> None:
    with pytest.raises(ValueError, match="leaf_category"):
        build_model(SMALL, replace(SIZES, leaf_category=None))


@torch.no_grad()
def test_a_shop_without_user_fields_is_served() -> None:
    model = build_model(SMALL, replace(SIZES, user=(), user_kinds=()))
    inputs = random_inputs((2, 2))
    inputs = inputs._replace(user_fields=inputs.user_fields[:, :0])
    assert torch.isfinite(model.score(model.encode_request(inputs), inputs).logits).all()
