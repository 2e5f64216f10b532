"""DeepFM: a factorisation-machine based neural network for CTR prediction (Guo et al., IJCAI 2017).

z = Σ_i w_i + Σ_{i<j} ⟨v_i, v_j⟩ + MLP(e_1 ⊕ … ⊕ e_F), eq. 1-3: linear terms, all products of two fields, and a
network over the same vectors. The sum over pairs is ½ Σ_k[(Σ_i v_ik)² − Σ_i v_ik²]: the request's fields give a sum and
a sum of squares once, a candidate adds its own.

The factorisation machine needs one width for all fields. The paper gives every embedding that width; here all models of
a table share their embedding widths, so v_i = P_i e_i is a projection by field of the shared embedding (a deviation;
that both parts share their vectors, which is the paper's point, stays). Where the widths allow the paper's v_i = e_i,
`projects=False` is it; the projections are the better model (docs/peers.md). Our assumptions: the history is one field,
the mean of its behaviours, and projected always, for it is as wide as several fields; for a model that knows the
trigger its fields and the vector of the similarity to it are fields too. The bias w_0 is that of the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import masked_mean
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.linear_terms import LinearTerms
from training.layers.mlp import TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class DeepFmConfig:
    """Defaults are the sizes that all models share in the DAIAN paper's experiments."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    factor_width: int = 16
    projects: bool = True  # False: v_i = e_i, as published; all embeddings must be `factor_width` wide then
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class FieldFactors(nn.Module):
    """v_i = P_i e_i for fields that lie side by side, and what the machine needs of them: Σ v_i and Σ v_i²."""

    def __init__(self, widths: Sequence[int], factor_width: int, as_they_are: Sequence[bool]) -> None:
        """`as_they_are`: fields whose v_i is e_i itself. Raises ValueError for one of another width."""
        super().__init__()
        self.widths = list(widths)
        others = {width for width, as_it_is in zip(widths, as_they_are, strict=True) if as_it_is} - {factor_width}
        if others:
            raise ValueError(
                f"embeddings of {sorted(others)} in a machine of {factor_width}: without projections all widths must be"
                " `factor_width`; set them so, or projects=True"
            )
        self.projections = nn.ModuleList(
            nn.Identity() if as_it_is else nn.Linear(width, factor_width, bias=False)
            for width, as_it_is in zip(widths, as_they_are, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B ΣD] to two of [B K]."""
        fields = torch.split(x, self.widths, dim=-1)
        factors = [project(field) for project, field in zip(self.projections, fields, strict=True)]
        total, squares = factors[0], factors[0].square()
        for factor in factors[1:]:
            total, squares = total + factor, squares + factor.square()
        return total, squares


class DeepFm(nn.Module):
    """The sum of the three parts' logits."""

    def __init__(self, config: DeepFmConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.page = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        self.linear = LinearTerms(sizes, config.use_trigger, config.n_similarity_bins)
        item = [config.widths.of(kind) for kind in sizes.item_kinds]
        request = [config.widths.of(kind) for kind in (*sizes.user_kinds, *sizes.context_kinds)]
        request += [*(item if config.use_trigger else []), self.page.behaviour_width]
        candidate = [*item, *([config.similarity_width] if config.use_trigger else [])]
        plain = not config.projects
        self.request_factors = FieldFactors(request, config.factor_width, [plain] * (len(request) - 1) + [False])
        self.candidate_factors = FieldFactors(candidate, config.factor_width, [plain] * len(candidate))
        self.top = TopMlp(sum(request), sum(candidate), config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The request's linear terms, its Σ v_i and Σ v_i², and its part of the first dense layer."""
        pooled = masked_mean(*self.page.history(inputs))
        fields = torch.cat([self.page.request(inputs), pooled], dim=-1)
        total, squares = self.request_factors(fields)
        return {
            "linear": self.linear.request(inputs),
            "factors": total,
            "squares": squares,
            "top": self.top.request_part(fields),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        fields = self.page.candidate(inputs, self.page.item(inputs))
        total, squares = self.candidate_factors(fields)
        total = total + rows.per_candidate(state["factors"])
        squares = squares + rows.per_candidate(state["squares"])
        pairs = 0.5 * (total.square() - squares).sum(-1)  # eq. 2, second term
        linear = self.linear.candidate(inputs) + rows.per_candidate(state["linear"])  # eq. 2, first term
        logits = linear + pairs + self.top(rows.per_candidate(state["top"]), fields)  # eq. 1, 3
        return ModelOutputs(logits, {})


def stages(config: DeepFmConfig) -> tuple[Stage, ...]:
    """One stage: all three parts together, on clicks."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("deepfm", "Guo et al., DeepFM, IJCAI 2017", DeepFmConfig, DeepFm, stages)
