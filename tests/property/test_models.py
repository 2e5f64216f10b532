"""Properties of every row of the table of rivals on drawn inputs: company, order and padding never matter.

In double precision: sums of another shape round differently in the last bits of float32, which weights as large as here
make as big as a small leak. In doubles rounding is nine digits away from anything that a leak could do.
"""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, TINY, one_request, random_inputs, with_large_weights
from training.models import build_model
from training.rows import ROWS

every_model = pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.group != "ablation"])
pages = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**20)
lengths = st.integers(1, 8)
EXACT = 1e-10


@cache
def model(name: str) -> nn.Module:
    torch.manual_seed(1)
    return with_large_weights(build_model(ROWS[name].config(TINY), SIZES), spread=0.35).double().eval()


@torch.no_grad()
def logits(name: str, inputs: ModelInputs) -> Tensor:
    scored: Tensor = model(name).score(model(name).encode_request(inputs), inputs).logits
    return scored


@every_model
@settings(max_examples=15, deadline=None)
@given(n_candidates=pages, seed=seeds, n_history=lengths, n_related=lengths)
def test_alone_as_in_company(name: str, n_candidates: list[int], seed: int, n_history: int, n_related: int) -> None:
    inputs = random_inputs(n_candidates, seed, n_history, n_related)
    together = logits(name, inputs)
    assert torch.isfinite(together).all()
    for request in range(len(n_candidates)):
        alone = logits(name, one_request(inputs, request))
        assert torch.allclose(alone, together[inputs.candidate_request == request], rtol=0, atol=EXACT)


@every_model
@settings(max_examples=15, deadline=None)
@given(n_candidates=st.integers(2, 12), seed=seeds, order=st.randoms(use_true_random=False))
def test_candidates_in_any_order(name: str, n_candidates: int, seed: int, order: object) -> None:
    inputs = random_inputs([n_candidates], seed)
    places = list(range(n_candidates))
    order.shuffle(places)  # type: ignore[attr-defined]
    mixed = inputs._replace(
        candidate_fields=inputs.candidate_fields[places], candidate_similarity=inputs.candidate_similarity[places]
    )
    assert torch.allclose(logits(name, inputs)[places], logits(name, mixed), rtol=0, atol=EXACT)


@every_model
@settings(max_examples=15, deadline=None)
@given(n_candidates=pages, seed=seeds, n_pads=st.integers(1, 5), what=st.integers(0, 11))
def test_padding_of_any_length_and_content(
    name: str, n_candidates: list[int], seed: int, n_pads: int, what: int
) -> None:
    inputs = random_inputs(n_candidates, seed)

    def extend(x: Tensor, value: int) -> Tensor:
        return torch.cat([x, torch.full((len(x), n_pads, *x.shape[2:]), value, dtype=x.dtype)], dim=1)

    longer = inputs._replace(
        history_fields=extend(inputs.history_fields, what),
        history_similarity=extend(inputs.history_similarity, what),
        history_age=extend(inputs.history_age, 0),
        related_fields=extend(inputs.related_fields, what),
        related_similarity=extend(inputs.related_similarity, what),
        related_age=extend(inputs.related_age, 0),
    )
    assert torch.allclose(logits(name, inputs), logits(name, longer), rtol=0, atol=EXACT)
