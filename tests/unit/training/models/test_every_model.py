"""What every model must do. A new model is tested by its rows in `training.rows`; nothing is added here.

Each protection has its twin: the same check on a model with the protection taken out must fail.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, TINY, one_request, random_batch, random_inputs, with_large_weights
from training.layers import attention
from training.layers.ragged import CandidateRows
from training.loop import batch_loss
from training.models import MODELS, build_model, spec_of
from training.models.daian import DaianConfig
from training.models.din import DinConfig
from training.optimizers import parameters_by_ratio
from training.rows import ROWS

ABLATIONS = {
    "din without trigger": DinConfig(use_trigger=False),
    "din dot": DinConfig(attention="dot", trigger_product=True),
    "din 2ta": DinConfig(trigger_attention=True),
    "daian without uim": DaianConfig(intent_form="score"),
    "daian without die": DaianConfig(use_die=False),
    "daian without sein": DaianConfig(use_sein=False),
    "daian one stage": DaianConfig(three_stages=False),
    "daian dot, concat, product": DaianConfig(attention="dot", concat_similarity=True, hse_product=True),
    "daian mean pool, shared tables, shared gate": DaianConfig(
        uim_pool="mean", uim_shares_tables=True, gate_shared=True
    ),
    "daian ids stopped": DaianConfig(hse_stop="ids"),
    "daian both norms stopped": DaianConfig(hse_stop="ratio_both"),
}
CONFIGS = {**{name: row.config(TINY) for name, row in ROWS.items()}, **ABLATIONS}

every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
# The twins take out a block that a model need not use: they run on the models that are known to use it.
every_known_model = pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS.keys())
COUNTS = (3, 1, 7, 5)


def built(config: object) -> nn.Module:
    torch.manual_seed(1)
    return with_large_weights(build_model(config, SIZES), spread=0.15 if config in ABLATIONS.values() else 0.35).eval()


@torch.no_grad()
def logits(model: nn.Module, inputs: ModelInputs) -> Tensor:
    return model.score(model.encode_request(inputs), inputs).logits


def assert_same(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    assert left.shape == right.shape
    assert (left - right).abs().max().item() <= tolerance


# ---- shapes ---------------------------------------------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_one_finite_logit_and_extra_per_candidate(config: object) -> None:
    model, inputs = built(config), random_inputs(COUNTS)
    state = model.encode_request(inputs)
    outputs = model.score(state, inputs)
    assert outputs.logits.shape == (sum(COUNTS),)
    assert torch.isfinite(outputs.logits).all()
    assert all(extra.shape == (sum(COUNTS),) for extra in outputs.extras.values())
    assert all(len(tensor) == len(COUNTS) for tensor in state.values())
    assert outputs.logits.std() > 0.01  # the weights are large enough for the other tests to see anything


@every_model
@torch.no_grad()
def test_the_intent_is_a_distribution_over_levels(config: object) -> None:
    state = built(config).encode_request(random_inputs(COUNTS))
    if "intent" in state:
        assert state["intent"].shape == (len(COUNTS), SIZES.n_levels)
        assert_same(state["intent"].sum(1), torch.ones(len(COUNTS)))


# ---- the request phase sees no candidate (trap T1) ------------------------------------------------------------------


@torch.no_grad()
def check_candidates_leave_the_state(model: nn.Module) -> None:
    inputs = random_inputs(COUNTS)
    others = inputs._replace(
        candidate_fields=inputs.candidate_fields.flip(0), candidate_similarity=inputs.candidate_similarity.flip(0) * 0.5
    )
    one, other = model.encode_request(inputs), model.encode_request(others)
    assert all(torch.equal(one[key], other[key]) for key in one)


@every_model
def test_other_candidates_leave_the_state_bit_for_bit(config: object) -> None:
    check_candidates_leave_the_state(built(config))


@every_model
@pytest.mark.parametrize("peeked_at", ["candidate_similarity", "candidate_fields"])
def test_a_request_phase_that_peeks_at_candidates_is_caught(config: object, peeked_at: str) -> None:
    model = built(config)
    honest = model.encode_request

    def peeking(inputs: ModelInputs, given_intent: Tensor | None = None) -> dict[str, Tensor]:
        state = honest(inputs, given_intent)
        of_candidates = getattr(inputs, peeked_at).float().reshape(len(inputs.candidate_request), -1).mean(1)
        sums = torch.zeros(len(inputs.user_fields)).index_add(0, inputs.candidate_request, of_candidates)
        key = next(key for key, tensor in state.items() if tensor.is_floating_point() and tensor.dim() == 2)
        return {**state, key: state[key] + 1e-3 * sums.unsqueeze(1)}

    model.encode_request = peeking
    with pytest.raises(AssertionError):
        check_candidates_leave_the_state(model)


# ---- gradients ------------------------------------------------------------------------------------------------------


@every_model
def test_every_stage_moves_all_that_it_trains_and_nothing_else(config: object) -> None:
    model = built(config).train()
    batch = random_batch((9, 4, 12, 8, 11))
    for stage in spec_of(config).stages(config):
        parameters_by_ratio(model, stage)
        model.zero_grad(set_to_none=True)
        batch_loss(model, stage, batch).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{stage.name}: {name} is trained but gets no gradient"
                assert parameter.grad.abs().sum() > 0, f"{stage.name}: the gradient of {name} is zero"
            else:
                assert parameter.grad is None, f"{stage.name}: {name} is frozen but gets a gradient"


def test_a_stage_that_names_an_unknown_part_is_refused() -> None:
    config = DinConfig()
    stage = replace(spec_of(config).stages(config)[0], trains=("top", "tower"))
    with pytest.raises(ValueError, match="tower"):
        parameters_by_ratio(build_model(config, SIZES), stage)


# ---- padding --------------------------------------------------------------------------------------------------------


def longer(inputs: ModelInputs) -> ModelInputs:
    """Three more places at the end of both sequences, filled with what nobody may read."""

    def extend(x: Tensor, value: int) -> Tensor:
        return torch.cat([x, torch.full((len(x), 3, *x.shape[2:]), value, dtype=x.dtype)], dim=1)

    return inputs._replace(
        history_fields=extend(inputs.history_fields, 5),
        history_similarity=extend(inputs.history_similarity, 1),
        history_age=extend(inputs.history_age, 0),
        related_fields=extend(inputs.related_fields, 5),
        related_similarity=extend(inputs.related_similarity, 1),
        related_age=extend(inputs.related_age, 0),
    )


def check_padding(config: object) -> None:
    model, inputs = built(config), random_inputs(COUNTS)
    assert_same(logits(model, inputs), logits(model, longer(inputs)))


@every_model
def test_padding_never_matters(config: object) -> None:
    check_padding(config)


@every_known_model
def test_without_the_mask_padding_would_matter(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "masked_softmax", lambda scores, _mask: torch.softmax(scores, dim=-1))
    with pytest.raises(AssertionError):
        check_padding(config)


@every_model
@torch.no_grad()
def test_a_request_without_any_history_is_scored_as_if_its_sequence_were_one_pad(config: object) -> None:
    model = built(config)
    inputs = one_request(random_inputs(COUNTS), 0)
    assert not inputs.history_age.any()
    shortest = inputs._replace(**{name: getattr(inputs, name)[:, :1] for name in inputs._fields[3:9]})
    assert torch.isfinite(logits(model, shortest)).all()
    assert_same(logits(model, inputs), logits(model, shortest))


# ---- order and company ----------------------------------------------------------------------------------------------


@every_model
def test_the_order_of_candidates_never_matters(config: object) -> None:
    model, inputs = built(config), random_inputs(COUNTS)
    order = torch.tensor([2, 0, 1, 3, 10, 9, 8, 7, 6, 5, 4, 15, 11, 14, 12, 13])
    mixed = inputs._replace(
        candidate_fields=inputs.candidate_fields[order], candidate_similarity=inputs.candidate_similarity[order]
    )
    assert_same(logits(model, inputs)[order], logits(model, mixed))


def check_alone_as_in_company(config: object) -> None:
    model, inputs = built(config), random_inputs(COUNTS)
    together = logits(model, inputs)
    for request in range(len(COUNTS)):
        alone = logits(model, one_request(inputs, request))
        assert_same(alone, together[inputs.candidate_request == request])


@every_model
def test_a_request_scores_alone_as_in_a_batch(config: object) -> None:
    check_alone_as_in_company(config)


@every_known_model
def test_a_wrong_gather_would_be_seen(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CandidateRows, "per_candidate", lambda self, x: x[:1].expand(len(self.request), *x.shape[1:]))
    with pytest.raises(AssertionError):
        check_alone_as_in_company(config)


@every_model
def test_a_candidate_scores_alone_as_among_many(config: object) -> None:
    model, inputs = built(config), one_request(random_inputs((4, 9)), 1)
    many = logits(model, inputs)
    for row in range(9):
        single = inputs._replace(
            candidate_fields=inputs.candidate_fields[row : row + 1],
            candidate_similarity=inputs.candidate_similarity[row : row + 1],
            candidate_request=inputs.candidate_request[:1],
        )
        assert_same(logits(model, single), many[row : row + 1])


# ---- unknowns -------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("value", [0, 1], ids=["nothing", "unknown"])
def test_ids_that_say_nothing_are_scored(config: object, value: int) -> None:
    inputs = random_inputs(COUNTS)
    blank: Callable[[Tensor], Tensor] = lambda x: torch.full_like(x, value)  # noqa: E731
    names = ("user_fields", "context_fields", "trigger_fields", "history_fields", "related_fields", "candidate_fields")
    unknown = inputs._replace(
        candidate_similarity=torch.full((sum(COUNTS),), -2.0), **{name: blank(getattr(inputs, name)) for name in names}
    )
    assert torch.isfinite(logits(built(config), unknown)).all()


# ---- what a model that does not know the trigger may not know ------------------------------------------------------


def with_another_trigger(inputs: ModelInputs) -> ModelInputs:
    """The same page below another trigger: all that is said of the trigger is another."""
    return inputs._replace(
        trigger_fields=inputs.trigger_fields.flip(0),
        history_similarity=inputs.history_similarity * 0.3,
        related_fields=inputs.related_fields.flip(0),
        related_similarity=inputs.related_similarity.flip(0),
        related_age=inputs.related_age.flip(0),
        candidate_similarity=inputs.candidate_similarity.flip(0) * 0.5,
    )


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.group == "trigger-free"])
def test_a_trigger_free_row_cannot_see_the_trigger(name: str) -> None:
    model, inputs = built(CONFIGS[name]), random_inputs(COUNTS)
    assert torch.equal(logits(model, inputs), logits(model, with_another_trigger(inputs)))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.group != "trigger-free"])
def test_every_other_row_does(name: str) -> None:
    model, inputs = built(CONFIGS[name]), random_inputs(COUNTS)
    assert (logits(model, inputs) - logits(model, with_another_trigger(inputs))).abs().max() > 1e-3


# ---- the registry ---------------------------------------------------------------------------------------------------


def test_a_stranger_config_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="DinConfig"):
        build_model(object(), SIZES)


def test_every_model_has_a_row() -> None:
    without = set(MODELS) - {spec_of(config).name for config in CONFIGS.values()}
    assert not without, f"no row in training/rows.py for {sorted(without)}"


@every_model
def test_the_same_seed_builds_the_same_model(config: object) -> None:
    def first() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return build_model(config, SIZES).state_dict()

    one, other = first(), first()
    assert all(torch.equal(one[name], other[name]) for name in one)
