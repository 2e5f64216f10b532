"""DAIAN's own promises: where gradients stop, where the norm ratio tends, what each stage moves, how stages join."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models_export import parity
from models_export.errors import ParityError
from models_export.parity import TOLERANCE, check_exportable
from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training import optimizers
from training.config import OptimConfig
from training.layers.similarity_bins import SimilarityBins
from training.loop import batch_loss
from training.models import build_model, daian
from training.models.daian import (
    SPEC,
    Daian,
    DaianConfig,
    HybridSimilarityEnhancer,
    IntentAwareGate,
    mix,
    norm_ratio,
)
from training.models.spec import Stage
from training.optimizers import make_optimizer

SMALL = DaianConfig(width=16, top=(16, 8), uim_hidden=(16,), similarity_width=8)


def small(config: DaianConfig = SMALL) -> Daian:
    torch.manual_seed(2)
    model = build_model(config, SIZES)
    assert isinstance(model, Daian)
    return model


# ---- gradient stops (trap T17) --------------------------------------------------------------------------------------


def check_the_gate_does_not_pull() -> None:
    gate = with_large_weights(IntentAwareGate(SMALL))
    h_imp = torch.randn(5, 16, requires_grad=True)
    h_exp = torch.randn(5, 16, requires_grad=True)
    e_sim = torch.randn(5, 8, requires_grad=True)
    w_imp, w_exp = gate(gate.request_part(h_imp), e_sim, h_exp)
    (w_imp.sum() + w_exp.sum()).backward()
    assert h_imp.grad is None
    assert h_exp.grad is None
    assert e_sim.grad is not None
    assert e_sim.grad.abs().sum() > 0


def test_the_gate_does_not_pull_at_the_interests_it_reads() -> None:
    check_the_gate_does_not_pull()


def without_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had written `.detach()`."""
    monkeypatch.setattr(Tensor, "detach", lambda tensor: tensor)


def test_a_gate_that_pulls_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without_stops(monkeypatch)
    with pytest.raises(AssertionError):
        check_the_gate_does_not_pull()


def check_the_scaled_interests_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """∂Ĥ/∂H = w for both interests, all the way from the history to the top."""
    model = with_large_weights(small()).train()
    inputs = random_inputs((3, 4))
    h_imp = torch.randn(2, 16, requires_grad=True)
    h_exp = torch.randn(7, 16, requires_grad=True)
    monkeypatch.setattr(model.implicit, "forward", lambda *_args: h_imp)
    monkeypatch.setattr(daian, "candidates_attend", lambda *_args: h_exp)
    seen: list[Tensor] = []
    model.gate.register_forward_hook(lambda _module, _args, w: seen.extend(w))
    model.top.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    model.score(model.encode_request(inputs), inputs)
    w_imp, w_exp, fed = seen  # what the top is fed: columns [item | DIN | Ĥ_imp | Ĥ_exp]
    assert (w_exp - 1).abs().max() > 0.01  # a gate that says something
    of_imp, of_exp = torch.autograd.grad(fed[:, -32:].sum(), (h_imp, h_exp))
    per_request = torch.stack([w_imp[inputs.candidate_request == r].sum(0) for r in range(2)])
    assert torch.allclose(of_imp, per_request, atol=1e-6)
    assert torch.allclose(of_exp, w_exp, atol=1e-6)


def test_the_interests_learn_through_what_the_gate_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    check_the_scaled_interests_learn(monkeypatch)


def test_a_gate_without_its_stops_changes_what_the_interests_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    without_stops(monkeypatch)
    with pytest.raises(AssertionError):
        check_the_scaled_interests_learn(monkeypatch)


def test_a_stop_on_what_is_scaled_cuts_the_interests_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """w ⊙ sg(H): the interests would never learn from clicks."""
    honest = Daian._gated_interests

    def stopped(self: Daian, state: dict[str, Tensor], *rest: object) -> list[Tensor]:
        return [part.detach() for part in honest(self, state, *rest)]  # type: ignore[arg-type]

    monkeypatch.setattr(Daian, "_gated_interests", stopped)
    with pytest.raises(RuntimeError, match="not have been used"):
        check_the_scaled_interests_learn(monkeypatch)


@pytest.mark.parametrize("stop", ["ratio", "ratio_both", "ids"])
def test_the_norm_ratio_never_pulls_at_the_ids(stop: str) -> None:
    enhancer = with_large_weights(HybridSimilarityEnhancer(replace(SMALL, hse_stop=stop), SIZES))
    trigger, candidate = torch.randn(4, 32, requires_grad=True), torch.randn(4, 32, requires_grad=True)
    e_sim, ratio = enhancer(trigger, candidate, torch.tensor([0.1, 0.5, 0.7, 0.95]))
    if ratio.requires_grad:
        ratio.sum().backward(retain_graph=True)
    assert trigger.grad is None
    assert candidate.grad is None
    if stop != "ids":
        e_sim.sum().backward()
        assert trigger.grad is not None
        assert trigger.grad.abs().sum() > 0


# ---- the norm ratio (traps T13, T14) --------------------------------------------------------------------------------


def test_semantics_rule_where_ids_are_weak_and_step_back_where_they_are_strong() -> None:
    e_sem, e_col = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.allclose(mix(norm_ratio(e_sem, e_col * 1e-6), e_sem, e_col * 1e-6), e_sem, atol=1e-4)
    strong = e_col * 1e6
    assert torch.allclose(mix(norm_ratio(e_sem, strong), e_sem, strong) / 1e6, e_col, atol=1e-4)
    ratios = torch.stack([norm_ratio(e_sem, e_col * scale) for scale in (0.1, 1.0, 10.0)])
    assert (ratios[:-1] > ratios[1:]).all()


def test_an_id_never_seen_leaves_all_to_semantics_because_the_projection_has_no_bias() -> None:
    enhancer = with_large_weights(HybridSimilarityEnhancer(SMALL, SIZES))
    nothing = torch.zeros(3, 32)
    e_sim, ratio = enhancer(nothing, nothing, torch.tensor([0.1, 0.5, 0.9]))
    assert torch.equal(ratio, torch.ones(3))
    assert torch.equal(e_sim, enhancer.semantic(torch.tensor([0.1, 0.5, 0.9])))


def test_without_a_vector_the_ids_speak_alone_and_nothing_is_nan() -> None:
    enhancer = with_large_weights(HybridSimilarityEnhancer(SMALL, SIZES))
    ids = torch.randn(2, 32, requires_grad=True)
    e_sim, ratio = enhancer(ids, ids, torch.full((2,), -2.0))
    assert torch.equal(ratio, torch.zeros(2))
    assert torch.equal(e_sim, enhancer.collaborative(ids, ids))
    nothing = torch.zeros(2, 32, requires_grad=True)
    e_sim, ratio = enhancer(nothing, nothing, torch.full((2,), -2.0))
    (e_sim.sum() + ratio.sum()).backward()
    assert torch.isfinite(e_sim).all()
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()


def test_untrained_ids_start_weak() -> None:
    """With torch's own N(0, 1) in the id table the ratio would start the wrong way round."""
    torch.manual_seed(0)
    model = build_model(DaianConfig(), SIZES)
    inputs = random_inputs((20, 20))
    has_vector = inputs.candidate_similarity > -1.5
    share = model.score(model.encode_request(inputs), inputs).extras["semantic_share"][has_vector]
    assert share.min() > 0.5
    nn.init.normal_(model.tables.behaviours.item_ids.weight)
    share = model.score(model.encode_request(inputs), inputs).extras["semantic_share"][has_vector]
    assert share.max() < 0.5


# ---- bins (trap T11) ------------------------------------------------------------------------------------------------


def test_bins_at_their_edges() -> None:
    bins = SimilarityBins((0.0, 1.0), 6, 4)
    sixth = torch.tensor(1 / 6)
    below = torch.nextafter(sixth, torch.tensor(0.0))
    one = torch.tensor(1.0)
    values = torch.stack(
        [
            torch.tensor(-0.1),
            torch.tensor(0.0),
            below,
            sixth,
            torch.nextafter(one, sixth),
            one,
            one + 1e-6,
            torch.tensor(-2.0),
        ]
    )
    assert bins.bins(values).tolist() == [1, 1, 1, 2, 6, 6, 6, 0]


# ---- E2 by category -------------------------------------------------------------------------------------------------

BY_CATEGORY = replace(SMALL, related_by="category")
COUNTS = (3, 4)  # the second page's trigger shares its category with the first two of six behaviours


@torch.no_grad()
def check_only_the_triggers_category_is_read() -> None:
    model, inputs = with_large_weights(small(BY_CATEGORY)), random_inputs(COUNTS)
    read = inputs.history_fields[1, :, 1] == inputs.trigger_fields[1, 1]
    assert 0 < int(read.sum()) < 6
    state = model.encode_request(inputs)
    assert torch.equal(state["related_mask"][1], read)
    assert not state["related_mask"][0].any()
    fields = inputs.history_fields.clone()
    fields[1, ~read, 0] = fields[1, ~read, 0] % 50 + 2
    other = model.encode_request(inputs._replace(history_fields=fields))
    assert not torch.equal(other["implicit"], state["implicit"])  # I2E reads the whole history
    assert torch.equal(other["related_values"][1][:, read], state["related_values"][1][:, read])


def test_by_category_e2_reads_what_shares_the_triggers_leaf() -> None:
    check_only_the_triggers_category_is_read()


def test_an_e2_that_reads_the_whole_history_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daian, "trigger_subsequence", lambda inputs, _column: inputs.history_age > 0)
    with pytest.raises(AssertionError):
        check_only_the_triggers_category_is_read()


@torch.no_grad()
def related_behaviours_matter(config: DaianConfig) -> bool:
    """Whether another sequence of similar behaviours changes the logits."""
    model, inputs = with_large_weights(small(config)), random_inputs(COUNTS)
    others = inputs._replace(related_fields=inputs.related_fields.flip(0), related_age=inputs.related_age.flip(0))
    one, other = (model.score(model.encode_request(given), given).logits for given in (inputs, others))
    return not torch.equal(one, other)


def test_by_category_the_similar_behaviours_are_not_read() -> None:
    assert related_behaviours_matter(SMALL)
    assert not related_behaviours_matter(BY_CATEGORY)


def test_by_category_needs_a_leaf_category_and_by_similarity_does_not() -> None:
    without = replace(SIZES, leaf_category=None)
    with pytest.raises(ValueError, match="leaf_category"):
        Daian(BY_CATEGORY, without)
    assert Daian(SMALL, without).leaf is None


def test_by_category_both_graphs_are_exported_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_exportable(small(BY_CATEGORY), SIZES).max_difference <= TOLERANCE
    # the saboteur: the comparison sees E2's part of the history
    honest = parity.score_in_torch

    def reading_all(model: nn.Module, inputs: ModelInputs) -> parity.Scores:
        with monkeypatch.context() as patch:
            patch.setattr(daian, "trigger_subsequence", lambda given, _column: given.history_age > 0)
            return honest(model, inputs)

    monkeypatch.setattr(parity, "score_in_torch", reading_all)
    with pytest.raises(ParityError, match="logits differ"):
        check_exportable(small(BY_CATEGORY), SIZES)


# ---- stages (eq. 19-21) ---------------------------------------------------------------------------------------------


def test_the_three_stages_are_the_papers() -> None:
    intent, interests, joint = SPEC.stages(DaianConfig())
    assert (intent.loss, intent.requests, intent.trains) == ("intent", "clicked", ("uim",))
    assert (interests.loss, interests.intent, interests.requests) == ("click", "true", "clicked")
    assert "uim" not in interests.trains
    assert "gate" not in interests.trains
    assert (joint.loss, joint.intent, joint.requests) == ("click", "predicted", "all")
    assert joint.learning_rates == {"uim": 0.1}
    model = small()
    tops = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert tops == set(joint.trains)


def test_without_die_there_is_no_intent_to_learn() -> None:
    """H_imp alone reads ŷ_int: without it no logit does, and an intent stage would be spent on nothing."""
    config = replace(SMALL, use_die=False)
    assert [stage.name for stage in SPEC.stages(config)] == ["joint"]
    model = small(config)
    assert not [name for name, _ in model.named_parameters() if name.startswith("uim")]
    assert "intent" not in model.encode_request(random_inputs((2, 2)))
    assert [stage.name for stage in SPEC.stages(SMALL)] == ["intent", "interests", "joint"]


def test_one_stage_takes_as_long_as_the_three_together() -> None:
    (whole,) = SPEC.stages(replace(SMALL, three_stages=False))
    assert whole.as_long_as == SPEC.stages(SMALL)
    assert (whole.requests, whole.loss, whole.intent) == ("all", "click", "predicted")


def test_stage_three_starts_as_exactly_what_stage_two_left() -> None:
    """The gate starts at 1: with the gate and without it the network says the same."""
    model = with_large_weights(small())
    nn.init.zeros_(model.gate.gate.out.weight)
    nn.init.zeros_(model.gate.gate.out.bias)
    inputs = random_inputs((3, 5))
    gated = model.score(model.encode_request(inputs), inputs)
    assert torch.equal(gated.extras["gate_implicit"], torch.ones(8))
    bare = small(replace(SMALL, use_sein=False))
    bare.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(gated.logits, bare.score(bare.encode_request(inputs), inputs).logits)
    nn.init.normal_(model.gate.gate.out.weight)
    moved = model.score(model.encode_request(inputs), inputs)
    assert not torch.equal(gated.logits, moved.logits)


MOVES = {
    "intent": {"uim"},
    "interests": {"tables", "base", "top", "implicit", "explicit"},
    "joint": {"tables", "base", "top", "implicit", "explicit", "uim", "enhancer", "gate"},
}


def check_each_stage_moves_its_own(stages: tuple[Stage, ...]) -> None:
    model = with_large_weights(small(), spread=0.4).train()
    batch = random_batch((9, 4, 12, 8, 11))
    for stage in stages:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = make_optimizer(model, stage, OptimConfig())
        for _ in range(2):
            optimizer.zero_grad()
            batch_loss(model, stage, batch).backward()
            optimizer.step()
        after = model.state_dict()
        moved = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
        assert moved == MOVES[stage.name]


def test_each_stage_leaves_the_others_parts_bit_for_bit() -> None:
    check_each_stage_moves_its_own(SPEC.stages(SMALL))


def test_a_stage_that_also_trains_what_it_should_freeze_is_caught() -> None:
    intent, interests, joint = SPEC.stages(SMALL)
    with pytest.raises(AssertionError, match="gate"):
        check_each_stage_moves_its_own((intent, replace(interests, trains=(*interests.trains, "gate")), joint))


def test_a_loop_that_freezes_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_within", lambda _name, _prefix: True)
    with pytest.raises(AssertionError, match="enhancer"):
        check_each_stage_moves_its_own(SPEC.stages(SMALL))


def test_stage_two_reads_the_label_and_stage_three_the_prediction() -> None:
    model = with_large_weights(small(), spread=0.4)
    _, interests, joint = SPEC.stages(SMALL)
    batch = random_batch((4, 4, 4, 4, 4))
    other = batch._replace(intent=batch.intent.flip(1))
    assert not torch.equal(batch_loss(model, interests, batch), batch_loss(model, interests, other))
    assert torch.equal(batch_loss(model, joint, batch), batch_loss(model, joint, other))


def test_a_clicked_request_without_a_label_gets_the_prediction_not_a_constant() -> None:
    model = with_large_weights(small(), spread=0.4)
    interests = SPEC.stages(SMALL)[1]
    batch = random_batch((4, 4, 4, 4, 4))
    assert not batch.has_intent[-1]
    filled = batch.intent.clone()
    filled[-1] = 1 / 6
    assert torch.equal(batch_loss(model, interests, batch), batch_loss(model, interests, batch._replace(intent=filled)))


def test_uim_learns_from_clicks_in_stage_three_at_a_tenth_of_the_rate() -> None:
    model = with_large_weights(small())
    joint = SPEC.stages(SMALL)[2]
    rates = {group["lr"] for group in make_optimizer(model, joint, OptimConfig()).param_groups}
    assert sorted(rates) == pytest.approx([0.005, 0.05])
    batch_loss(model, joint, random_batch((4, 4))).backward()
    assert model.uim.mlp.layers[0].weight.grad.abs().sum() > 0


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="heads"):
        small(replace(SMALL, width=18))


def test_the_score_ablation_is_one_number() -> None:
    model = small(replace(SMALL, intent_form="score"))
    state = model.encode_request(random_inputs((2, 2)))
    assert "intent" not in state
    assert math.isfinite(state["implicit"].sum().item())
