"""POSO's gates against eq. 11, its code by hand, and where the counts live."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, one_request, random_inputs, with_large_weights
from training.layers.embedding import EmbeddingWidths
from training.layers.ragged import CandidateRows
from training.models import poso
from training.models.poso import SPEC, Poso, PosoConfig, bucket
from training.models.spec import TrainingFacts

CONFIG = PosoConfig(EmbeddingWidths(8, 6, 4, 4), top=(24, 12), code_width=4, gate_hidden=6, similarity_width=8)
COUNTS = (3, 1, 4)


def facts(impressions: np.ndarray) -> TrainingFacts:
    nothing = np.zeros(0, np.int64)
    fields = np.zeros((len(impressions), len(SIZES.item)), np.int64)
    return TrainingFacts(impressions, np.zeros_like(impressions), nothing, nothing, fields)


def impressions() -> np.ndarray:
    """Item i was shown 3 i times."""
    return np.arange(SIZES.item[0]) * 3


def built(config: PosoConfig = CONFIG) -> Poso:
    torch.manual_seed(1)
    model = with_large_weights(Poso(config, SIZES), spread=0.35).double().eval()
    assert isinstance(model, Poso)
    assert SPEC.before_stage is not None
    SPEC.before_stage(model, "clicks", facts(impressions()))
    return model


def test_buckets_are_the_powers_of_two_that_a_count_has_reached() -> None:
    counts = [0, 1, 2, 3, 4, 7, 8, 63, 64, 10**9]
    assert bucket(torch.tensor(counts), 8).tolist() == [1, 2, 3, 3, 4, 4, 5, 7, 8, 8]


def test_what_is_not_known_was_never_shown() -> None:
    """Unknown items share an id that may well have been shown often; each of them is new."""
    model = built()
    codes = model.item_bucket.tolist()
    assert codes[:2] == [1, 1]
    assert codes[2:6] == [4, 5, 5, 5]  # shown 6, 9, 12 and 15 times


def test_in_training_a_row_does_not_count_itself() -> None:
    model = built()
    model.count(torch.tensor([0, 0, 0, 1, 2, 4] + [9] * (SIZES.item[0] - 6)))
    assert model.others_bucket[2:6].tolist() == [1, 1, 2, 3]
    assert model.item_bucket[2:6].tolist() == [1, 2, 3, 4]
    inputs = random_inputs(COUNTS)
    inputs.candidate_fields[:, 0] = 3  # shown once: in training nobody else has shown it
    never = []
    for training in (True, False):
        model.train(training)
        logits = model.score(model.encode_request(inputs), inputs).logits.sum()
        (slope,) = torch.autograd.grad(logits, model.item_code.weight)
        never.append(bool(slope[1].any()))
    assert never == [True, False]


def test_a_fresh_model_has_only_new_items() -> None:
    assert set(Poso(CONFIG, SIZES).item_bucket.tolist()) == {1}


def gates_by_hand(model: Poso, code: Tensor) -> list[Tensor]:
    """C · sigmoid(W' ReLU(W code + b) + b') for each hidden layer, its W cut out of the common one."""
    inner = model.top.gate_inner
    weight = torch.cat([inner.request.weight, inner.candidate.weight], dim=1)
    gates = []
    for number, outer in enumerate(model.top.gate_outer):
        take = slice(6 * number, 6 * number + 6)
        hidden = (weight[take] @ code + inner.request.bias[take]).clamp_min(0)
        gates.append(2 / (1 + torch.exp(-(outer.weight @ hidden + outer.bias))))
    return gates


@torch.no_grad()
def slow(model: Poso, inputs: ModelInputs) -> Tensor:
    """One candidate after the other."""
    logits = []
    for row, request in enumerate(inputs.candidate_request.tolist()):
        one = one_request(inputs, request)
        page, below = model.inputs.page, model.inputs
        n = int((one.history_age > 0).sum())
        powers_reached = 1 + sum(n >= 2**k for k in range(7))
        shown = int(inputs.candidate_fields[row, 0]) * 3
        shown_code = 1 + sum(shown >= 2**k for k in range(21)) if inputs.candidate_fields[row, 0] > 1 else 1
        code = torch.cat([model.history_code.weight[powers_reached], model.item_code.weight[shown_code]])
        item = page.item(inputs)[row : row + 1]
        alone = inputs._replace(candidate_similarity=inputs.candidate_similarity[row : row + 1])
        rows = CandidateRows.of(torch.zeros(1, dtype=torch.int64), 1)
        candidate = below.candidates(rows, below.history(one), alone, item)[0]
        first = model.top.first
        x = first.request.weight @ page.request(one)[0] + first.request.bias + first.candidate.weight @ candidate
        gates = gates_by_hand(model, code)
        x = gates[0] * x.clamp_min(0)
        x = gates[1] * (model.top.layers[0].weight @ x + model.top.layers[0].bias).clamp_min(0)
        logits.append((model.top.out.weight @ x + model.top.out.bias)[0])
    return torch.stack(logits)


@torch.no_grad()
def check(config: PosoConfig = CONFIG) -> None:
    model, inputs = built(config), random_inputs(COUNTS)
    found = model.score(model.encode_request(inputs), inputs).logits
    torch.testing.assert_close(found, slow(model, inputs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("use_trigger", [True, False])
def test_every_hidden_layer_is_gated_as_eq_11_says(use_trigger: bool) -> None:
    check(replace(CONFIG, use_trigger=use_trigger))


def test_without_counts_it_would_be_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poso.Poso, "count", lambda _self, _impressions: None)
    with pytest.raises(AssertionError):
        check()


def test_counts_are_saved_with_the_weights() -> None:
    model = built()
    again = Poso(CONFIG, SIZES).double().eval()
    again.load_state_dict(model.state_dict())
    inputs = random_inputs(COUNTS)
    one, other = (m.score(m.encode_request(inputs), inputs).logits for m in (model, again))
    assert torch.equal(one, other)
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name != "item_bucket"}
    forgetful = Poso(CONFIG, SIZES).double().eval()
    forgetful.load_state_dict(fresh, strict=False)
    assert not torch.equal(one, forgetful.score(forgetful.encode_request(inputs), inputs).logits)
