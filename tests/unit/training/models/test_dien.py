"""DIEN: the auxiliary loss by hand, whose behaviours may be negatives, who learns from what."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.layers.attention import masked_softmax
from training.loop import batch_loss
from training.models import dien
from training.models.dien import Dien, DienConfig, foreign_behaviours, stages

SMALL = DienConfig(top=(16, 8), n_steps=8)


def built(config: DienConfig = SMALL) -> Dien:
    torch.manual_seed(1)
    model = with_large_weights(Dien(config, SIZES), spread=0.3).eval()
    assert isinstance(model, Dien)
    return model


# ---- negatives ------------------------------------------------------------------------------------------------------


def check_negatives(draw: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Requests 0 and 1 are of one user, 2 and 3 of two others; request 4 has no history."""
    items = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0], [5, 10, 11, 12], [13, 6, 14, 0], [0, 0, 0, 0]])
    mask, users = items > 0, torch.tensor([4, 4, 1, 2, 3])
    torch.manual_seed(0)
    seen: set[tuple[int, int]] = set()
    for _ in range(200):
        places, usable = draw(items, mask, users)
        assert mask.flatten()[places].all()
        seen |= {(r, int(place)) for r in range(5) for place, fine in zip(places[r], usable[r], strict=True) if fine}
    foreign = {(r, int(items.flatten()[place])) for r, place in seen}
    assert foreign == {
        *((0, item) for item in (10, 11, 12, 13, 14)),
        *((1, item) for item in (5, 10, 11, 12, 13, 6, 14)),
        *((2, item) for item in (6, 7, 8, 9, 13, 14)),
        *((3, item) for item in (5, 7, 8, 9, 10, 11, 12)),
        *((4, item) for item in range(5, 15)),
    }


def test_a_negative_is_never_of_the_user_nor_of_the_own_sequence() -> None:
    check_negatives(foreign_behaviours)


def test_draws_that_nobody_looks_at_would_be_seen() -> None:
    def careless(items: Tensor, mask: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        places, usable = foreign_behaviours(items, mask, users)
        return places, torch.ones_like(usable)

    with pytest.raises(AssertionError):
        check_negatives(careless)


def test_a_batch_without_any_history_has_no_negatives_and_no_auxiliary_loss() -> None:
    inputs = random_inputs((2, 3))
    empty = inputs._replace(history_age=torch.zeros_like(inputs.history_age))
    model = built()
    state = model.encode_request(empty)
    assert model.auxiliary_loss(state["interests"], empty, torch.arange(2)).item() == 0
    assert torch.isfinite(model.score(state, empty).logits).all()


# ---- the losses -----------------------------------------------------------------------------------------------------


def interests_by_hand(model: Dien, inputs: ModelInputs, r: int) -> Tensor:
    keys, mask = model.page.history(inputs)
    return model.extractor.gru(keys[r : r + 1, : int(mask[r].sum())])[0][0]


@torch.no_grad()
def test_the_auxiliary_loss_is_equation_six(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built(), random_inputs((2, 3, 1, 2), seed=3)
    n_steps = SMALL.n_steps
    drawn: list[tuple[Tensor, Tensor]] = []

    def remembered(*given: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(foreign_behaviours(*given))
        return drawn[-1]

    monkeypatch.setattr(dien, "foreign_behaviours", remembered)
    torch.manual_seed(5)
    found = model.auxiliary_loss(model.encode_request(inputs)["interests"], inputs, torch.arange(4) // 2)
    ((places, usable),) = drawn
    right, wrong = [], []
    for r in range(4):
        length = int((inputs.history_age[r] > 0).sum())
        if length < 2:
            continue
        states = interests_by_hand(model, inputs, r)
        for t in range(length - 1):
            following = model.page.behaviours.item(inputs.history_fields[r, t + 1])
            right.append(-torch.log(torch.sigmoid(states[t] @ following)))
            if usable[r, t]:
                owner, step = divmod(int(places[r, t]), n_steps)
                stranger = model.page.behaviours.item(inputs.history_fields[owner, step])
                wrong.append(-torch.log(1 - torch.sigmoid(states[t] @ stranger)))
    assert len(right) >= 4
    assert len(wrong) >= 2
    wanted = torch.stack(right).mean() + torch.stack(wrong).mean()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


def extractor_learns(config: DienConfig) -> float:
    """How far the whole loss pulls at the extractor when no candidate's logit depends on it."""
    model = built(config).train()
    with torch.no_grad():
        model.top.first.candidate.weight.zero_()
    batch_loss(model, stages(config)[0], random_batch((3, 4, 2, 5))).backward()
    return sum(float(parameter.grad.abs().sum()) for parameter in model.extractor.parameters())


def test_the_auxiliary_loss_teaches_the_extractor() -> None:
    assert extractor_learns(SMALL) > 0


def test_without_it_only_the_clicks_would() -> None:
    assert extractor_learns(replace(SMALL, auxiliary_weight=0.0)) == 0


# ---- evolution ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("n_steps", [8, 3], ids=["all behaviours", "the newest three"])
def test_logits_are_the_papers_equations_one_candidate_at_a_time(n_steps: int) -> None:
    model, inputs = built(replace(SMALL, n_steps=n_steps, trigger_evolution=True)), random_inputs((2, 3, 1, 2), seed=3)
    logits = model.score(model.encode_request(inputs), inputs).logits

    def evolved(evolution: dien.InterestEvolution, query: Tensor, r: int) -> Tensor:
        keys, mask = model.page.history(inputs)
        behaviours = keys[r][mask[r]][-n_steps:]
        state = torch.zeros(model.page.item_width)
        if not len(behaviours):
            return state
        interests = model.extractor.gru(behaviours.unsqueeze(0))[0][0]
        scores = interests @ (evolution.query.weight @ query)
        weights = masked_softmax(scores, torch.ones(len(scores), dtype=torch.bool))
        for x_t, a_t in zip(evolution.augru.inputs(interests).split(1), weights, strict=True):
            x_u, x_r, x_h = x_t[0].chunk(3)
            s_u, s_r, s_h = (evolution.augru.recurrent.weight @ state).chunk(3)
            update, reset = a_t * torch.sigmoid(x_u + s_u), torch.sigmoid(x_r + s_r)
            state = (1 - update) * state + update * torch.tanh(x_h + reset * s_h)
        return state

    assert model.trigger_evolution is not None
    items, triggers = model.page.item(inputs), model.page.trigger(inputs)
    request, candidate = model.page.request(inputs), model.page.candidate(inputs, items)
    for n, r in enumerate(inputs.candidate_request.tolist()):
        of_request = torch.cat([request[r], evolved(model.trigger_evolution, triggers[r], r)])
        of_candidate = torch.cat([candidate[n], evolved(model.evolution, items[n], r)])
        wanted = model.top(model.top.request_part(of_request.unsqueeze(0)), of_candidate.unsqueeze(0))
        assert torch.allclose(logits[n], wanted[0], atol=1e-5)


def test_a_second_evolution_needs_the_trigger() -> None:
    with pytest.raises(ValueError, match="use_trigger"):
        Dien(replace(SMALL, use_trigger=False, trigger_evolution=True), SIZES)
