"""R3S's experts and critics against the formulas of its docstring; what counts as new; what 2TA adds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, one_request, random_inputs, with_large_weights
from training.layers.embedding import EmbeddingWidths
from training.layers.ragged import CandidateRows
from training.models.r3s import R3s, R3sConfig

CONFIG = R3sConfig(
    EmbeddingWidths(8, 6, 4, 4), field_width=6, expert_width=10, top=(5,), similarity_width=8, dropout=0.0
)
COUNTS = (3, 1, 4)


def built(config: R3sConfig = CONFIG) -> R3s:
    torch.manual_seed(1)
    model = with_large_weights(R3s(config, SIZES), spread=0.35).double().eval()
    assert isinstance(model, R3s)
    return model


def inputs_with_shared_fields() -> ModelInputs:
    """The first candidate of each page shares its category with the trigger, the last one all fields."""
    inputs = random_inputs(COUNTS)
    fields = inputs.candidate_fields.clone()
    owner = inputs.candidate_request
    for request in range(len(COUNTS)):
        rows = torch.nonzero(owner == request).flatten()
        fields[rows[0], 1] = inputs.trigger_fields[request, 1]
        fields[rows[-1]] = inputs.trigger_fields[request]
    return inputs._replace(candidate_fields=fields)


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0)


def linear(of: object, x: Tensor) -> Tensor:
    """A split layer over [request ⊕ candidate] as the one layer it stands for."""
    weight = torch.cat([of.request.weight, of.candidate.weight], dim=1)  # type: ignore[attr-defined]
    return weight @ x + of.request.bias  # type: ignore[attr-defined]


@torch.no_grad()
def slow(model: R3s, inputs: ModelInputs) -> Tensor:
    """One candidate after the other."""
    logits = []
    for row, request in enumerate(inputs.candidate_request.tolist()):
        one, page = one_request(inputs, request), model.page
        a, r = page.item(inputs)[row], page.trigger(one)[0]
        a_fields, r_fields = torch.split(a, [8, 6, 4]), torch.split(r, [8, 6, 4])
        n = int((one.history_age > 0).sum())
        keys, _ = page.history(one)
        mean = keys[0, :n].mean(0) if n else torch.zeros_like(keys[0, 0])
        known = torch.cat([page.user(one.user_fields)[0], page.context(one.context_fields)[0], mean])
        request_side = torch.cat([known, r])

        in_one_width = [layer(x) for layer, x in zip([*model.inward] * 2, [*a_fields, *r_fields], strict=True)]
        both = torch.stack(in_one_width).unsqueeze(0)
        alone = CandidateRows.of(torch.zeros(1, dtype=torch.int64), 1)
        of = model.field_attention
        met = of(alone, of.projected(both[:, :3]), of.projected(both[:, 3:]))[0]
        interaction = relu(model.interaction_out(relu(linear(model.interaction, torch.cat([known, met])))))
        dots = torch.stack([(x * y).sum() for x, y in zip(a_fields, r_fields, strict=True)])
        content = page.similarity(inputs.candidate_similarity)[row]  # type: ignore[misc]
        similarity = relu(linear(model.similarity, torch.cat([known, a * r, dots, content])))
        same = (inputs.candidate_fields[row] == one.trigger_fields[0]) & (inputs.candidate_fields[row] > 1)
        news = [torch.zeros_like(x) if same[i] else x for i, x in enumerate(a_fields)]
        gain = relu(linear(model.gain, torch.cat([known, *news])))

        experts = torch.stack([interaction, similarity, gain])
        votes = []
        for critic in range(4):
            take = slice(3 * critic, 3 * critic + 3)
            gate = torch.softmax(model.gates.weight[take] @ request_side + model.gates.bias[take], dim=0)
            votes.append(gate @ experts)
        bilinear = torch.cat([model.heard_by_request.weight, model.heard_by_candidate.weight], dim=1)
        x = torch.cat([request_side, a])
        heard = torch.softmax(torch.stack([vote @ bilinear @ x for vote in votes]), dim=0)
        logits.append(model.top(sum(w * vote for w, vote in zip(heard, votes, strict=True)))[0])
    return torch.stack(logits)


@torch.no_grad()
def check(model: R3s) -> None:
    inputs = inputs_with_shared_fields()
    found = model.score(model.encode_request(inputs), inputs).logits
    torch.testing.assert_close(found, slow(model, inputs), rtol=0, atol=1e-9)


def test_every_pair_as_the_formulas_say() -> None:
    check(built())


def test_a_gain_that_counts_what_both_have_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(R3s, "_is_new", lambda _self, candidate, _trigger: torch.ones(len(candidate), 1))
    with pytest.raises(AssertionError):
        check(built())


@torch.no_grad()
def test_the_trigger_itself_brings_nothing_new() -> None:
    model, inputs = built(), inputs_with_shared_fields()
    owner = inputs.candidate_request
    new = model._is_new(inputs.candidate_fields, inputs.trigger_fields[owner])
    last = torch.tensor([2, 3, 7])
    assert not new[last].any()
    assert new[0].tolist() == [1.0] * 8 + [0.0] * 6 + [1.0] * 4  # another id, the same category, another price


def test_two_unknown_values_are_not_the_same_one() -> None:
    model = built()
    unknown = torch.tensor([[1, 0, 7]])
    assert model._is_new(unknown, unknown)[0].tolist() == [1.0] * 8 + [1.0] * 6 + [0.0] * 4


@torch.no_grad()
def test_two_attentions_hear_the_history_by_candidate_and_by_trigger() -> None:
    """Without 2TA the order of ages against items only matters through the mean; with it, by who asks."""
    inputs = one_request(inputs_with_shared_fields(), 2)
    model = built(replace(CONFIG, two_attentions=True))
    state = model.encode_request(inputs)
    honest = model.score(state, inputs).logits
    blind = {**state, "history_mask": torch.zeros_like(state["history_mask"])}
    assert (model.score(blind, inputs).logits - honest).abs().max() > 1e-3
    keys, mask = model.page.history(inputs)
    pooled = model.trigger_attention.one_per_request(model.page.trigger(inputs), keys, mask)[0]
    weight = model.gain.request.weight[:, -keys.shape[-1] :]
    without = state["gain"][0] - weight @ pooled
    known = [model.page.user(inputs.user_fields)[0], model.page.context(inputs.context_fields)[0]]
    mean = keys[0, mask[0]].mean(0)
    rest = model.gain.request.weight[:, : -keys.shape[-1]] @ torch.cat([*known, mean]) + model.gain.request.bias
    torch.testing.assert_close(without, rest, rtol=0, atol=1e-9)
