"""WDL: the wide part by hand, and what it can remember that the linear terms cannot."""

from dataclasses import replace

import torch

from tests.unit.training.random_inputs import SIZES, random_inputs, with_large_weights
from training.layers.ragged import CandidateRows
from training.models.wdl import Crosses, Wdl, WdlConfig

SMALL = WdlConfig(top=(16, 8), n_cross_buckets=501)


@torch.no_grad()
def test_the_crosses_are_the_pairs_weights_by_hand() -> None:
    torch.manual_seed(1)
    crosses, inputs = with_large_weights(Crosses(SMALL, SIZES)), random_inputs((3, 2, 4))
    rows = CandidateRows.of(inputs.candidate_request, 3)
    found = crosses(crosses.request(inputs), rows, inputs.candidate_fields)
    for n, r in enumerate(inputs.candidate_request.tolist()):
        item, leaf = inputs.candidate_fields[n, 0], inputs.candidate_fields[n, 1]
        there = inputs.history_age[r] > 0
        pairs = crosses.history(inputs.history_fields[r, there, 0], item)
        wanted = pairs.mean() if len(pairs) else torch.tensor(0.0)
        wanted = wanted + crosses.trigger(inputs.trigger_fields[r, 0], item)
        wanted = wanted + crosses.leaf(inputs.trigger_fields[r, 1], leaf)
        assert torch.allclose(found[n], wanted, atol=1e-6)


@torch.no_grad()
def test_both_parts_add_up() -> None:
    torch.manual_seed(1)
    model, inputs = with_large_weights(Wdl(SMALL, SIZES)).eval(), random_inputs((3, 2, 4))

    def logits() -> torch.Tensor:
        return model.score(model.encode_request(inputs), inputs).logits

    whole = logits()
    rows = CandidateRows.of(inputs.candidate_request, 3)
    wide = model.linear.request(inputs)[inputs.candidate_request] + model.linear.candidate(inputs)
    wide = wide + model.crosses(model.crosses.request(inputs), rows, inputs.candidate_fields)
    for part in (model.linear, model.crosses):
        for parameter in part.parameters():
            parameter.zero_()
    assert torch.allclose(whole, logits() + wide, atol=1e-5)
    assert wide.abs().max() > 0.05


def learns_who_goes_with_whom(config: WdlConfig) -> float:
    """Mean loss of the wide part alone on clicks that are the exclusive-or of trigger and candidate."""
    torch.manual_seed(0)
    model = Wdl(config, SIZES)
    inputs = random_inputs((2, 2))
    items = torch.tensor([5, 6, 5, 6])
    fields = torch.stack([items, torch.full((4,), 3), torch.full((4,), 3)], dim=1)
    trigger = torch.tensor([[7, 3, 3], [8, 3, 3]])
    same = {
        name: getattr(inputs, name)[:1].expand_as(getattr(inputs, name)) for name in ("user_fields", "context_fields")
    }
    inputs = inputs._replace(
        trigger_fields=trigger,
        candidate_fields=fields,
        candidate_similarity=torch.zeros(4),
        history_age=torch.zeros_like(inputs.history_age),
        **same,
    )
    clicks = torch.tensor([1.0, 0.0, 0.0, 1.0])
    wide = [p for name, p in model.named_parameters() if name.startswith(("linear", "crosses"))]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("linear", "crosses")))
    optimizer = torch.optim.Adam(wide, lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        logits = model.score(model.encode_request(inputs), inputs).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, clicks)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_wide_part_remembers_pairs() -> None:
    assert learns_who_goes_with_whom(SMALL) < 0.1


def test_without_crosses_it_cannot() -> None:
    assert learns_who_goes_with_whom(replace(SMALL, use_crosses=False)) > 0.6


def test_a_shop_without_leaf_categories_has_one_cross_less() -> None:
    assert Crosses(SMALL, SIZES).leaf is not None
    assert Crosses(SMALL, replace(SIZES, leaf_category=None)).leaf is None
    assert Crosses(replace(SMALL, use_trigger=False), SIZES).trigger is None
