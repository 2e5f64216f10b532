"""Random model inputs of any shape, and models with weights large enough that a mistake shows in the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.data.batches import Batch, Position
from training.layers.embedding import EmbeddingWidths
from training.rows import Size

NEXT_EPOCH = Position(1)
TINY = Size(EmbeddingWidths(8, 6, 4, 4), width=16, n_heads=2, top=(24, 12), similarity_width=8)
SIZES = EncoderSizes(
    user=(30, 6),
    context=(9,),
    item=(60, 12, 18),
    user_kinds=("id", "category"),
    context_kinds=("category",),
    item_kinds=("id", "category", "number"),
    n_age_bins=19,
    n_levels=6,
    level_edges=(0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
    related_threshold=0.6,
    leaf_category=1,
)


def random_inputs(n_candidates: Sequence[int], seed: int = 0, n_history: int = 6, n_related: int = 4) -> ModelInputs:
    """A batch of requests. The first has no history, the last a full one; one candidate has no vector.

    In the last request two behaviours and a candidate are of the trigger's kind: they share all fields but the id.
    """
    chance = torch.Generator().manual_seed(seed)
    n_requests, n = len(n_candidates), sum(n_candidates)

    def ids(heights: Sequence[int], *shape: int) -> Tensor:
        return torch.stack([torch.randint(1, height, shape, generator=chance) for height in heights], dim=-1)

    def sequence(length: int) -> tuple[Tensor, Tensor, Tensor]:
        lengths = torch.randint(0, length + 1, (n_requests,), generator=chance)
        lengths[0], lengths[-1] = 0, length
        there = torch.arange(length) < lengths.unsqueeze(1)
        similarity = torch.rand(n_requests, length, generator=chance) * there
        age = torch.randint(1, SIZES.n_age_bins, (n_requests, length), generator=chance) * there
        return ids(SIZES.item, n_requests, length) * there.unsqueeze(-1), similarity, age

    similarity = torch.rand(n, generator=chance) * 2 - 1
    similarity[n // 2] = -2.0
    inputs = ModelInputs(
        ids(SIZES.user, n_requests),
        ids(SIZES.context, n_requests),
        ids(SIZES.item, n_requests),
        *sequence(n_history),
        *sequence(n_related),
        ids(SIZES.item, n),
        similarity,
        torch.repeat_interleave(torch.arange(n_requests), torch.tensor(n_candidates)),
    )
    inputs.history_fields[-1, :2, 1:] = inputs.trigger_fields[-1, 1:]
    inputs.candidate_fields[-1, 1:] = inputs.trigger_fields[-1, 1:]
    return inputs


def random_batch(n_candidates: Sequence[int], seed: int = 0, after: Position = NEXT_EPOCH) -> Batch:
    """Random inputs with random clicks and intents; the last request has no intent label."""
    inputs = random_inputs(n_candidates, seed)
    chance = torch.Generator().manual_seed(seed + 1)
    n_requests = len(n_candidates)
    has_intent = torch.ones(n_requests, dtype=torch.bool)
    has_intent[-1] = n_requests == 1
    intent = torch.softmax(torch.randn(n_requests, SIZES.n_levels, generator=chance) * 2, -1)
    return Batch(
        inputs=inputs,
        clicks=torch.randint(0, 2, (sum(n_candidates),), generator=chance).float(),
        intent=intent * has_intent.unsqueeze(1),
        has_intent=has_intent,
        user_group=torch.arange(n_requests).numpy() // 2,
        request_group=torch.arange(n_requests).numpy() + seed * 1000,
        after=after,
    )


def one_request(inputs: ModelInputs, request: int) -> ModelInputs:
    """One request of a batch with its candidates."""
    rows = inputs.candidate_request == request
    request_side = [array[request : request + 1] for array in inputs[:9]]
    n = int(rows.sum())
    return ModelInputs(
        *request_side,
        inputs.candidate_fields[rows],
        inputs.candidate_similarity[rows],
        torch.zeros(n, dtype=torch.int64),
    )


def with_large_weights(model: nn.Module, seed: int = 7, spread: float = 0.15) -> nn.Module:
    """Weights of a trained model's size; the rows for "nothing" stay zero."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, spread, generator=chance)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[0].zero_()
    return model
