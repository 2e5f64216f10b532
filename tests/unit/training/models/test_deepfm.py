"""DeepFM: the factorisation machine against the plain double loop over pairs of fields."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from service.contract.encoder import ModelInputs
from tests.unit.training.random_inputs import SIZES, random_inputs, with_large_weights
from training.layers.attention import masked_mean
from training.layers.embedding import EmbeddingWidths
from training.models.deepfm import DeepFm, DeepFmConfig

SMALL = DeepFmConfig(top=(16, 8), factor_width=4)


def built(config: DeepFmConfig) -> DeepFm:
    torch.manual_seed(1)
    model = with_large_weights(DeepFm(config, SIZES), spread=0.4).eval()
    assert isinstance(model, DeepFm)
    return model


def fields_of(model: DeepFm, inputs: ModelInputs, n: int) -> list[Tensor]:
    """v_i of every field of candidate `n`, one by one."""
    r = int(inputs.candidate_request[n])
    page = model.page
    vectors = [table(inputs.user_fields[r, i]) for i, table in enumerate(page.user.tables)]
    vectors += [table(inputs.context_fields[r, i]) for i, table in enumerate(page.context.tables)]
    items = page.behaviours.items.tables
    if page.reads_trigger:
        vectors += [table(inputs.trigger_fields[r, i]) for i, table in enumerate(items)]
    vectors.append(masked_mean(*page.history(inputs))[r])
    request = [p(v) for p, v in zip(model.request_factors.projections, vectors, strict=True)]
    own = [table(inputs.candidate_fields[n, i]) for i, table in enumerate(items)]
    if page.similarity is not None:
        own.append(page.similarity(inputs.candidate_similarity[n : n + 1])[0])
    return request + [p(v) for p, v in zip(model.candidate_factors.projections, own, strict=True)]


@torch.no_grad()
def check_the_machine(config: DeepFmConfig, n_fields: int) -> None:
    model, inputs = built(config), random_inputs((3, 2, 4))
    state = model.encode_request(inputs)
    logits = model.score(state, inputs).logits
    of = inputs.candidate_request
    deep = model.top(state["top"][of], model.page.candidate(inputs, model.page.item(inputs)))
    linear = model.linear.candidate(inputs) + model.linear.request(inputs)[of]
    for n in range(9):
        factors = fields_of(model, inputs, n)
        assert len(factors) == n_fields
        pairs = sum((left * right).sum() for left, right in combinations(factors, 2))
        assert torch.allclose(logits[n], linear[n] + pairs + deep[n], atol=1e-4)
        assert abs(float(pairs)) > 1e-3


def test_the_machine_is_the_sum_over_all_pairs_of_fields() -> None:
    check_the_machine(SMALL, 2 + 1 + 3 + 1 + 3 + 1)


def test_and_without_the_trigger_over_the_fields_that_are_left() -> None:
    check_the_machine(DeepFmConfig(top=(16, 8), factor_width=4, use_trigger=False), 2 + 1 + 1 + 3)


def test_as_published_the_embeddings_are_the_factors_themselves() -> None:
    config = DeepFmConfig(
        top=(16, 8), factor_width=4, projects=False, widths=EmbeddingWidths(4, 4, 4, 4), similarity_width=4
    )
    check_the_machine(config, 2 + 1 + 3 + 1 + 3 + 1)
    projections = [*built(config).request_factors.projections, *built(config).candidate_factors.projections]
    assert sum(isinstance(one, nn.Linear) for one in projections) == 1  # the history's


def test_other_widths_than_the_machines_need_projections() -> None:
    with pytest.raises(ValueError, match="without projections all widths must be `factor_width`"):
        DeepFm(DeepFmConfig(top=(16, 8), factor_width=4, projects=False), SIZES)
