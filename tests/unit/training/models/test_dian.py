"""DIAN's own promises: the mixture of eq. 9, the label and loss of eq. 10, and what each half may see."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.data.batches import Batch
from training.layers import categories
from training.models import build_model, dian
from training.models.dian import SPEC, Dian, DianConfig, mixed_logit

SMALL = DianConfig(width=16, n_heads=2, top=(16, 8), similarity_width=8)


def small(config: DianConfig = SMALL, spread: float = 0.15) -> Dian:
    torch.manual_seed(2)
    model = with_large_weights(build_model(config, SIZES), spread=spread)
    assert isinstance(model, Dian)
    return model


# ---- the mixture (eq. 9) --------------------------------------------------------------------------------------------


def check_the_mixture() -> None:
    """Against eq. 9 in double precision, from certain to even."""
    steps = torch.tensor([-9.0, -3.0, -0.5, 0.0, 0.5, 3.0, 9.0])
    entering, tan, tfn = (x.flatten() for x in torch.meshgrid(steps, steps, steps, indexing="ij"))
    came, aware, free = (torch.sigmoid(x.double()) for x in (entering, tan, tfn))
    expected = torch.logit(came * aware + (1 - came) * free)
    assert (dian.mixed_logit(entering, tan, tfn).double() - expected).abs().max() < 1e-5


def test_the_mixture_is_of_probabilities() -> None:
    check_the_mixture()


def test_a_mixture_the_other_way_round_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dian, "mixed_logit", lambda entering, tan, tfn: mixed_logit(entering, tfn, tan))
    with pytest.raises(AssertionError):
        check_the_mixture()


def test_a_mixture_of_logits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_logits(entering: Tensor, tan: Tensor, tfn: Tensor) -> Tensor:
        return torch.sigmoid(entering) * tan + torch.sigmoid(-entering) * tfn

    monkeypatch.setattr(dian, "mixed_logit", of_logits)
    with pytest.raises(AssertionError):
        check_the_mixture()


def test_the_mixture_stays_within_its_clamp_and_keeps_finite_gradients() -> None:
    extreme = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    mixed = mixed_logit(torch.zeros(3), extreme, extreme)
    assert torch.sigmoid(mixed[:2].double()).tolist() == pytest.approx([1e-6, 1 - 1e-6], rel=1e-3)
    mixed.sum().backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()
    assert extreme.grad[2].item() == pytest.approx(1.0)


def check_the_whole_is_its_halves() -> None:
    """With the same weights: sure of the intention it is TAN, sure of none it is TFN; without the Net their mean."""
    model, inputs = small(), random_inputs((3, 4))
    halves = {}
    for part in ("tan", "tfn"):
        half = build_model(replace(SMALL, parts=part), SIZES).eval()
        half.load_state_dict(model.state_dict(), strict=False)
        halves[part] = half.score(half.encode_request(inputs), inputs).logits
    state = model.encode_request(inputs)

    def entered(logit: float) -> Tensor:
        return model.score({**state, "entering": torch.full((2, 1), logit)}, inputs).logits

    assert torch.allclose(entered(40.0), halves["tan"], atol=1e-5)
    assert torch.allclose(entered(-40.0), halves["tfn"], atol=1e-5)
    mean = build_model(replace(SMALL, mix="mean"), SIZES).eval()
    mean.load_state_dict(model.state_dict(), strict=False)
    averaged = torch.sigmoid(mean.score(mean.encode_request(inputs), inputs).logits)
    assert torch.allclose(averaged, (torch.sigmoid(halves["tan"]) + torch.sigmoid(halves["tfn"])) / 2, atol=1e-6)


@torch.no_grad()
def test_the_whole_is_made_of_its_halves() -> None:
    check_the_whole_is_its_halves()


@torch.no_grad()
def test_halves_that_are_swapped_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dian, "mixed_logit", lambda entering, tan, tfn: mixed_logit(entering, tfn, tan))
    with pytest.raises(AssertionError):
        check_the_whole_is_its_halves()


# ---- the loss (eq. 10) ----------------------------------------------------------------------------------------------


def batch_with_both_labels() -> Batch:
    """In the last page an item of the trigger's leaf is clicked, in the others none."""
    batch = random_batch((3, 1, 5, 4))
    batch.inputs.candidate_fields[-1, 1] = batch.inputs.trigger_fields[-1, 1] = 7
    batch.clicks[-1] = 1.0
    return batch


def check_the_loss() -> None:
    """Impression by impression: a page's label is shared by all of its impressions."""
    model, batch = small(), batch_with_both_labels()
    inputs = batch.inputs
    state = model.encode_request(inputs)
    logits = model.score(state, inputs).logits
    owners = inputs.candidate_request.tolist()
    label = [0.0] * 4
    for n, owner in enumerate(owners):
        leaf = int(inputs.candidate_fields[n, 1])
        if batch.clicks[n] and leaf > 1 and leaf == int(inputs.trigger_fields[owner, 1]):
            label[owner] = 1.0
    assert set(label) == {0.0, 1.0}
    total = 0.0
    for n, owner in enumerate(owners):
        total += functional.binary_cross_entropy_with_logits(logits[n], batch.clicks[n]).item()
        said = state["entering"][owner, 0]
        total += 0.1 * functional.binary_cross_entropy_with_logits(said, torch.tensor(label[owner])).item()
    assert model.own_loss("clicks", batch).item() == pytest.approx(total / len(owners), rel=1e-5)


def test_the_loss_is_eq_10() -> None:
    check_the_loss()


def test_a_label_of_any_click_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categories, "same_value", lambda left, _right: torch.ones_like(left, dtype=torch.bool))
    with pytest.raises(AssertionError):
        check_the_loss()


def test_the_intention_learns_from_its_label_and_without_weight_from_clicks_alone() -> None:
    assert [stage.loss for stage in SPEC.stages(SMALL)] == ["own"]
    for without in (replace(SMALL, intention_loss=0.0), replace(SMALL, mix="mean"), replace(SMALL, parts="tan")):
        assert [stage.loss for stage in SPEC.stages(without)] == ["click"]
    batch = random_batch((3, 1, 5, 4))
    silent = small(replace(SMALL, intention_loss=0.0)).own_loss("clicks", batch)
    assert small().own_loss("clicks", batch) > silent


# ---- what each part sees --------------------------------------------------------------------------------------------


def another_trigger() -> tuple[Tensor, ...]:
    inputs = random_inputs((3, 4))
    other = inputs._replace(
        trigger_fields=inputs.trigger_fields.flip(0),
        candidate_similarity=inputs.candidate_similarity.flip(0),
        history_similarity=inputs.history_similarity * 0.5,
        related_fields=inputs.related_fields.flip(0),
        related_age=inputs.related_age.flip(0),
    )
    return inputs, other


@torch.no_grad()
@pytest.mark.parametrize(("part", "sees"), [("tfn", False), ("tan", True), ("both", True)])
def test_tfn_never_sees_the_trigger(part: str, sees: bool) -> None:
    model = small(replace(SMALL, parts=part))
    inputs, other = another_trigger()
    one = model.score(model.encode_request(inputs), inputs).logits
    two = model.score(model.encode_request(other), other).logits
    assert torch.equal(one, two) != sees


@torch.no_grad()
def test_a_candidate_finds_behaviours_of_its_own_category_only() -> None:
    """With plain attention out of the way, a behaviour of another category is not heard."""
    model = small(replace(SMALL, parts="tfn"))
    model.free_interest.short.out.weight.zero_()
    inputs = random_inputs((1, 4))
    inputs.history_fields[1, :, 1] = torch.tensor([5, 5, 6, 6, 7, 7])
    inputs.candidate_fields[1:, 1] = torch.tensor([5, 6, 8, 1])
    changed = inputs._replace(history_fields=inputs.history_fields.clone())
    changed.history_fields[1, 2:4, 0] = torch.tensor([3, 4])  # other items, of category 6

    def logits(given: object) -> Tensor:
        return model.score(model.encode_request(given), given).logits

    moved = (logits(inputs) - logits(changed)).abs() > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_a_schema_without_a_leaf_category_is_refused() -> None:
    with pytest.raises(ValueError, match="leaf_category"):
        build_model(SMALL, replace(SIZES, leaf_category=None))


def test_what_the_intention_says_is_shown_per_candidate() -> None:
    model, inputs = small(), random_inputs((3, 4))
    state = model.encode_request(inputs)
    shown = model.score(state, inputs).extras["entering"]
    assert torch.equal(shown, torch.sigmoid(state["entering"].squeeze(-1))[inputs.candidate_request])
