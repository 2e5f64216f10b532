"""SIM: what each search finds, by hand; who teaches the search; what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models_export.parity import TOLERANCE, check_exportable
from tests.unit.training.random_inputs import SIZES, random_batch, random_inputs, with_large_weights
from training.layers.ragged import CandidateRows
from training.loop import batch_loss
from training.models import sim
from training.models.sim import Sim, SimConfig, best, stages

HARD = SimConfig(attention="dot", n_heads=2, width=8, top=(16, 8), search_width=4, search_hidden=(8,))
SOFT = replace(HARD, search="soft", n_found=2)


def built(config: SimConfig) -> Sim:
    torch.manual_seed(1)
    model = with_large_weights(Sim(config, SIZES), spread=0.3).eval()
    assert isinstance(model, Sim)
    return model


@torch.no_grad()
def found_by(model: Sim, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What every candidate finds [N L], and the scores of soft search made one by one."""
    inputs = random_inputs((3, 2, 6, 5), seed)
    state = model.encode_request(inputs)
    rows = CandidateRows.of(inputs.candidate_request, 4)
    found = model._found(state, rows, rows.pad(model.page.item(inputs)), inputs)
    return rows.unpad(found.float()) > 0, inputs


@torch.no_grad()
def test_hard_search_finds_the_candidates_leaf_category() -> None:
    n_found = 0
    for seed in range(5):
        found, inputs = found_by(built(HARD), seed)
        for n, r in enumerate(inputs.candidate_request.tolist()):
            leaf = inputs.candidate_fields[n, 1].item()
            for i in range(inputs.history_age.shape[1]):
                same = inputs.history_fields[r, i, 1].item() == leaf and leaf > 1 and inputs.history_age[r, i] > 0
                assert found[n, i].item() == bool(same)
                n_found += bool(same)
    assert n_found > 5


@torch.no_grad()
def test_soft_search_finds_the_k_that_score_highest() -> None:
    model = built(SOFT)
    found, inputs = found_by(model)
    assert model.search is not None
    items = model.page.item(inputs)
    keys, mask = model.page.history(inputs)
    for n, r in enumerate(inputs.candidate_request.tolist()):
        query = model.search.item.weight @ items[n]
        scores = [(float(query @ (model.search.behaviour.weight @ keys[r, i])), i) for i in range(int(mask[r].sum()))]
        wanted = {i for _, i in sorted(scores, reverse=True)[:2]}
        assert set(found[n].nonzero().flatten().tolist()) == wanted


def test_pads_are_never_found_even_when_few_behaviours_are_there() -> None:
    scores = torch.tensor([[[-5.0, -6.0, 9.0, 9.0]]])
    there = torch.tensor([[[True, True, False, False]]])
    assert best(scores, there, 3).tolist() == [[[True, True, False, False]]]
    assert best(scores, there, 1).tolist() == [[[True, False, False, False]]]
    assert best(scores, torch.ones_like(there), 2).tolist() == [[[False, False, True, True]]]  # the twin: no mask
    assert not best(scores, torch.zeros_like(there), 2).any()


def gradients(model: nn.Module, config: SimConfig, batch_seed: int = 0) -> dict[str, Tensor | None]:
    model.train()
    model.zero_grad(set_to_none=True)
    batch_loss(model, stages(config)[0], random_batch((4, 6, 5, 7), batch_seed)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_search_learns_from_its_own_head_alone() -> None:
    taught = gradients(built(SOFT), SOFT)
    assert all(taught[f"search.{part}.weight"].abs().sum() > 0 for part in ("behaviour", "item"))
    untaught = gradients(built(replace(SOFT, search_weight=0.0)), replace(SOFT, search_weight=0.0))
    assert all(not grad.abs().sum() for name, grad in untaught.items() if name.startswith("search"))


@torch.no_grad()
def test_the_loss_is_the_sum_of_both_heads_by_hand() -> None:
    model, batch = built(SOFT), random_batch((3, 2, 6))
    inputs = batch.inputs
    assert model.search is not None
    items, (keys, mask) = model.page.item(inputs), model.page.history(inputs)
    general = []
    for n, r in enumerate(inputs.candidate_request.tolist()):
        query = model.search.item.weight @ items[n]
        pooled = sum((query @ (model.search.behaviour.weight @ e)) * e for e in keys[r][mask[r]])
        pooled = pooled if mask[r].any() else torch.zeros(keys.shape[-1])
        general.append(model.search.head(torch.cat([pooled, items[n]])))
    cross_entropy = torch.nn.BCEWithLogitsLoss()
    logits = model.score(model.encode_request(inputs), inputs).logits
    wanted = cross_entropy(logits, batch.clicks) + cross_entropy(torch.cat(general), batch.clicks)
    assert model.own_loss("clicks", batch).item() == pytest.approx(wanted.item(), abs=1e-5)


@torch.no_grad()
def check_only_found_behaviours_reach_the_exact_unit(monkeypatch: pytest.MonkeyPatch, obeys: bool) -> None:
    model, inputs = built(HARD), random_inputs((3, 2, 6, 5))
    if not obeys:
        whole = sim.candidate_subsequence
        monkeypatch.setattr(sim, "candidate_subsequence", lambda *a: torch.ones_like(whole(*a)))
    stranger = inputs._replace(candidate_fields=inputs.candidate_fields.clone())
    stranger.candidate_fields[:, 1] = 1  # unknown: nothing has its category
    state = model.encode_request(stranger)
    rows = CandidateRows.of(stranger.candidate_request, 4)
    items = rows.pad(model.page.item(stranger))
    found = model._found(state, rows, items, stranger)
    assert not model.exact(items, state["exact_keys"], state["exact_values"], found).abs().sum()


def test_a_candidate_of_unknown_category_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_only_found_behaviours_reach_the_exact_unit(monkeypatch, obeys=True)


def test_a_search_that_finds_everything_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_only_found_behaviours_reach_the_exact_unit(monkeypatch, obeys=False)


def test_hard_search_needs_a_leaf_category() -> None:
    with pytest.raises(ValueError, match="leaf"):
        Sim(HARD, replace(SIZES, leaf_category=None))
    assert Sim(SOFT, replace(SIZES, leaf_category=None)).search is not None


def test_soft_search_is_exported_for_histories_shorter_and_longer_than_k() -> None:
    """The parity suite has each model's default, which is hard search."""
    assert check_exportable(Sim(replace(SOFT, n_found=5), SIZES), SIZES).max_difference <= TOLERANCE
