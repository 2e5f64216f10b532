"""DEI2N's own promises: the mixture by the instant interest, what UI2M reads, what the top network is fed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, random_inputs, with_large_weights
from training.models import build_model, dei2n
from training.models.dei2n import Dei2n, Dei2nConfig

SMALL = Dei2nConfig(intensity_hidden=(8,), top=(16, 8), similarity_width=8)


def small(config: Dei2nConfig = SMALL) -> Dei2n:
    torch.manual_seed(2)
    model = with_large_weights(build_model(config, SIZES))
    assert isinstance(model, Dei2n)
    return model


def page() -> ModelInputs:
    """Two pages; in the second behaviours 0, 2 and 5 are of the trigger's category 5, and so is candidate 1."""
    inputs = random_inputs((1, 3))
    inputs.trigger_fields[:, 1] = 5
    inputs.history_fields[1, :, 1] = torch.tensor([5, 6, 5, 7, 8, 5])
    return inputs


def fed_to_the_top(model: Dei2n, inputs: ModelInputs) -> Tensor:
    """Columns [e_a | e_sem | e_r - e_a | e_r ⊙ e_a | e_a ⊙ ΣE_seq | A_h | A_mix]."""
    seen: list[Tensor] = []
    hook = model.top.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    model.score(model.encode_request(inputs), inputs)
    hook.remove()
    return seen[0]


def check_the_top_is_fed_what_the_paper_says() -> None:
    """One candidate of the second page, from its parts."""
    model, inputs = small(), page()
    tables = model.tables
    behaviours, mask = tables.history(inputs)
    wide = tables.item_width
    keys, ages = model.timed(behaviours)[1:], behaviours[1:, :, wide:]
    trigger, item = tables.trigger(inputs)[1], tables.item(inputs)[2]
    total = behaviours[1, mask[1], :wide].sum(0)
    same = torch.tensor([[True, False, True, False, False, True]])

    def pooled(attention: torch.nn.Module, query: Tensor, among: Tensor) -> Tensor:
        return attention(query.view(1, 1, -1), keys, attention.gap(ages), among).flatten()

    g = model.encode_request(inputs)["intensity"][1]
    mixed = g * pooled(model.by_trigger, trigger, mask[1:]) + (1 - g) * pooled(model.by_candidate, item, mask[1:])
    parts = [trigger - item, trigger * item, item * total, pooled(model.in_category, item, same), mixed]
    fed = fed_to_the_top(model, inputs)[2]
    assert torch.equal(fed[:wide], item)
    assert torch.allclose(fed[wide + SMALL.similarity_width :], torch.cat(parts), atol=1e-5)


@torch.no_grad()
def test_the_top_is_fed_what_the_paper_says() -> None:
    check_the_top_is_fed_what_the_paper_says()


@torch.no_grad()
def test_a_category_that_is_the_whole_history_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dei2n, "trigger_subsequence", lambda inputs, _column: inputs.history_age > 0)
    with pytest.raises(AssertionError):
        check_the_top_is_fed_what_the_paper_says()


@torch.no_grad()
@pytest.mark.parametrize(("push", "reads_trigger"), [(60.0, True), (-60.0, False)])
def test_an_interest_that_is_all_or_nothing_leaves_one_attention(push: float, reads_trigger: bool) -> None:
    """g = 1: what the trigger finds, the same for all candidates; g = 0: what each candidate finds."""
    model = small()
    model.intensity.mlp.layers[-1].bias.copy_(torch.tensor([push, -push]))
    mixed = fed_to_the_top(model, page())[1:, -model.tables.item_width :]
    assert torch.allclose(mixed[0], mixed[1], atol=1e-6) == reads_trigger
    shown = model.score(model.encode_request(page()), page()).extras["intensity"]
    assert shown.tolist() == pytest.approx([float(reads_trigger)] * 4)


def check_the_intensity_counts() -> None:
    """The softmax pair over the user, context, trigger, the sum of the category's items, its product, their number."""
    model, inputs = small(), page()
    tables = model.tables
    behaviours, _ = tables.history(inputs)
    trigger, request = tables.trigger(inputs)[1], tables.request(inputs)[1]
    total = behaviours[1, [0, 2, 5], : tables.item_width].sum(0)
    counted = model.intensity.counts.weight[3 + 1]
    pair = model.intensity.mlp(torch.cat([request, total, trigger * total, counted]))
    expected = torch.exp(pair[0]) / torch.exp(pair).sum()
    assert torch.allclose(model.encode_request(inputs)["intensity"][1, 0], expected, atol=1e-6)


@torch.no_grad()
def test_the_intensity_is_of_the_triggers_category() -> None:
    check_the_intensity_counts()


@torch.no_grad()
def test_an_intensity_of_the_whole_history_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dei2n, "trigger_subsequence", lambda inputs, _column: inputs.history_age > 0)
    with pytest.raises(AssertionError):
        check_the_intensity_counts()


@torch.no_grad()
def test_more_behaviours_than_are_counted_count_as_the_most() -> None:
    model = small(replace(SMALL, n_counted=2))
    inputs = page()
    assert torch.isfinite(model.encode_request(inputs)["intensity"]).all()
    seen: list[Tensor] = []
    model.intensity.counts.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.encode_request(inputs)
    assert seen[0].tolist() == [1, 3]  # no history at all, and three of which two count


def test_a_schema_without_a_leaf_category_is_refused() -> None:
    with pytest.raises(ValueError, match="leaf_category"):
        build_model(SMALL, replace(SIZES, leaf_category=None))
