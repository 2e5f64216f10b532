"""CCN-lite: its losses by hand, the weight of pages without choice, and what serving never sees."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from tests.unit.training.random_inputs import SIZES, random_batch, with_large_weights
from training.models.ccn_lite import CcnLite, CcnLiteConfig

CONFIG = CcnLiteConfig(width=16, n_heads=2, top=(24, 12), projection_width=8)


def model(config: CcnLiteConfig = CONFIG) -> CcnLite:
    torch.manual_seed(1)
    built = CcnLite(config, SIZES)
    with_large_weights(built)
    return built


def unit(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle)]


def test_losses_by_hand() -> None:
    z = torch.tensor([[unit(0.0), unit(0.3), unit(1.0)]])
    clicks, there = torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    pairs = torch.ones(1, 3, 3, dtype=torch.bool).triu(1)
    attraction = 1 - math.cos(0.3)
    repulsion = (math.cos(1.0) - 0.2 + math.cos(0.7) - 0.2) / 2
    assert model().contrast(z, clicks, there, pairs).item() == pytest.approx(attraction + repulsion, abs=1e-6)


def test_a_page_of_one_class_counts_half() -> None:
    z = torch.tensor([[unit(0.0), unit(0.5)]])
    there, pairs = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool).triu(1)
    full = 1 - math.cos(0.5)
    for clicks in (torch.zeros(1, 2), torch.ones(1, 2)):
        assert model().contrast(z, clicks, there, pairs).item() == pytest.approx(full / 2, abs=1e-6)
        whole = model(replace(CONFIG, one_class_weight=1.0)).contrast(z, clicks, there, pairs).item()
        assert whole == pytest.approx(full, abs=1e-6)


def slow_contrast(one: CcnLite, counts: tuple[int, ...]) -> float:
    """Both losses by loops over pages and pairs; all pairs, so nothing is drawn."""
    batch = random_batch(counts)
    attracted, repelled = [], []
    with torch.no_grad():
        for request, n in enumerate(counts):
            rows = (batch.inputs.candidate_request == request).nonzero().squeeze(1)
            clicks = batch.clicks[rows]
            z = projected(one, batch)[rows]
            weight = 0.5 if clicks.sum() in (0, n) else 1.0
            for i, j in combinations(range(n), 2):
                cosine = float(z[i] @ z[j])
                if clicks[i] == clicks[j]:
                    attracted.append(weight * (1 - cosine))
                else:
                    repelled.append(max(0.0, cosine - 0.2))
    return sum(attracted) / len(attracted) + sum(repelled) / len(repelled)


def projected(one: CcnLite, batch: object) -> torch.Tensor:
    from training.layers.ragged import CandidateRows

    inputs = batch.inputs  # type: ignore[attr-defined]
    state = one.encode_request(inputs)
    rows = CandidateRows.of(inputs.candidate_request, len(state["top"]))
    condition = torch.cat([one.tables.user(inputs.user_fields), one.tables.trigger(inputs)], dim=-1)
    z: torch.Tensor = one.collaboration(rows, condition, one._hidden(rows, state, inputs))
    return z


def test_the_loss_is_clicks_plus_the_contrast_of_all_pairs() -> None:
    counts = (4, 1, 6, 3)
    one = model()
    batch = random_batch(counts)
    with torch.no_grad():
        logits = one.score(one.encode_request(batch.inputs), batch.inputs).logits
        clicks = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.clicks).item()
        loss = one.own_loss("clicks", batch).item()
    assert loss == pytest.approx(clicks + 0.1 * slow_contrast(one, counts), abs=1e-5)
    assert abs(loss - clicks) > 1e-3


def test_scores_do_not_read_the_projection() -> None:
    one, batch = model(), random_batch((4, 3))
    logits = one.score(one.encode_request(batch.inputs), batch.inputs).logits
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in one.collaboration.parameters())
    without = CcnLite(replace(CONFIG, contrast_weight=0.0), SIZES)
    without.load_state_dict({k: v for k, v in one.state_dict().items() if not k.startswith("collaboration")})
    assert torch.equal(without.score(without.encode_request(batch.inputs), batch.inputs).logits, logits)
    assert without.own_loss("clicks", batch).item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.clicks).item(), abs=1e-6
    )
