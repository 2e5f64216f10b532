"""WDL: Wide & Deep Learning for Recommender Systems (Cheng et al., DLRS 2016).

z = w·[x, φ(x)] + MLP(E_u ⊕ E_ctx [⊕ e_r] ⊕ mean(E_seq) ⊕ e_a [⊕ e_sem]): a linear model that remembers pairs beside a
network that generalises, trained together on one logit.

The paper crosses installed with shown apps; here φ holds every pair (item of the history, candidate), averaged over the
history, and for a model that knows the trigger (trigger, candidate) as items and as leaf categories. Our assumptions:
crosses are hashed (the paper's vocabulary of crosses is not published), the similarity to the trigger enters the deep
part and the linear terms as the legal feature that all compared models get. Deviations: one optimiser for both parts
(the paper: FTRL with L1 for the wide one), dense sizes as all models of the table have them (the paper: 1024-512-256).
Without a leaf category in the schema that one cross is left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import masked_mean
from training.layers.crosses import HashedCross
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.linear_terms import LinearTerms
from training.layers.mlp import TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class WdlConfig:
    """Defaults are the sizes that all models share in the DAIAN paper's experiments."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True
    use_crosses: bool = True  # without them the wide part is a plain logistic regression
    n_cross_buckets: int = 2**18  # of each cross
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class Crosses(nn.Module):
    """φ(x): the pairs with a candidate. Linear in the number of behaviours and free of vectors."""

    def __init__(self, config: WdlConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.history = HashedCross(config.n_cross_buckets)
        self.trigger = HashedCross(config.n_cross_buckets) if config.use_trigger else None
        by_leaf = config.use_trigger and sizes.leaf_category is not None
        self.leaf = HashedCross(config.n_cross_buckets) if by_leaf else None
        self.leaf_column = sizes.leaf_category or 0

    def request(self, inputs: ModelInputs) -> State:
        """The ids that candidates are crossed with; 0 in the history's padding."""
        there = inputs.history_age > 0
        state = {"cross_history": inputs.history_fields[..., 0] * there.to(torch.int64), "cross_there": there}
        if self.trigger is not None:
            state["cross_trigger"] = inputs.trigger_fields[:, 0]
        if self.leaf is not None:
            state["cross_leaf"] = inputs.trigger_fields[:, self.leaf_column]
        return state

    def forward(self, state: State, rows: CandidateRows, candidate_fields: Tensor) -> Tensor:
        """Sum of the crosses' weights [N]; of the history's pairs the mean."""
        item = candidate_fields[:, 0]
        pairs = self.history(rows.per_candidate(state["cross_history"]), item.unsqueeze(1))
        n_behaviours = rows.per_candidate(state["cross_there"]).to(pairs.dtype).sum(1).clamp_min(1.0)
        total: Tensor = pairs.sum(1) / n_behaviours
        if self.trigger is not None:
            total = total + self.trigger(rows.per_candidate(state["cross_trigger"]), item)
        if self.leaf is not None:
            leaf = candidate_fields[:, self.leaf_column]
            total = total + self.leaf(rows.per_candidate(state["cross_leaf"]), leaf)
        return total


class Wdl(nn.Module):
    """The sum of both parts' logits."""

    def __init__(self, config: WdlConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.page = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        self.linear = LinearTerms(sizes, config.use_trigger, config.n_similarity_bins)
        self.crosses = Crosses(config, sizes) if config.use_crosses else None
        request_width = self.page.request_width + self.page.behaviour_width
        self.top = TopMlp(request_width, self.page.candidate_width, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The request's linear terms, its ids to cross, and its part of the first dense layer."""
        pooled = masked_mean(*self.page.history(inputs))
        deep = torch.cat([self.page.request(inputs), pooled], dim=-1)
        state = {"linear": self.linear.request(inputs), "top": self.top.request_part(deep)}
        return state if self.crosses is None else state | self.crosses.request(inputs)

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.page.item(inputs)
        deep = self.top(rows.per_candidate(state["top"]), self.page.candidate(inputs, item))
        logits = deep + self.linear.candidate(inputs) + rows.per_candidate(state["linear"])
        if self.crosses is not None:
            logits = logits + self.crosses(state, rows, inputs.candidate_fields)
        return ModelOutputs(logits, {})


def stages(config: WdlConfig) -> tuple[Stage, ...]:
    """One stage: both parts together, on clicks."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("wdl", "Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016", WdlConfig, Wdl, stages)
