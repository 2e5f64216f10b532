"""MIAN: Multi-Interactive Attention Network for fine-grained feature learning in CTR prediction (Zhang et al., WSDM
2021).

The candidate meets every single field on its own: the behaviours (IBIM), the user's fields (IUIM), the context's
(ICIM), each time by an additive attention whose score is bounded by a tanh; a last attention (GIM) weighs the three
results and the four plain parts.

Score of a pair: tanh([e_i ⊕ x]·W + b) = tanh(e_i·W_i + x·W_x + b) is the sum of a number per candidate and one per
behaviour or field; the sum of weights is 1, so Σ α (e_i ⊕ x) = e_i ⊕ Σ α x. Only sums of numbers are made per pair.

Left open by the paper, and ours: the fields of an entity differ in width here, so each is mapped to `width` by a layer
of its own, and so are the seven parts of GIM; one encoder layer; a behaviour's place in time is its age, which is part
of its vector; e_b is the mean behaviour. The paper knows no trigger: with `use_trigger` its fields are further context
fields, and the candidate's similarity to it is part of the candidate's vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import masked_mean, masked_softmax
from training.layers.dense_start import GlorotPart
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, FieldTables
from training.layers.fusion import AttentiveFusion
from training.layers.mlp import Mlp
from training.layers.page_tables import PageTables
from training.layers.pre_norm import PreNormLayer
from training.layers.ragged import CandidateRows
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class MianConfig:
    """Sizes are those that all rivals share; the paper has two heads."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    width: int = 128
    n_heads: int = 2
    n_layers: int = 1
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class FieldInteraction(nn.Module):
    """IUIM and ICIM (eq. 10-11): V_j = e_i ⊕ x_j, α = softmax_j(tanh(V_j W_j + b_j)), R = Σ_j α_j V_j.

    Every field j has its own W_j. What the fields give to the scores is made once per request. A single field has
    nothing to be weighed against: its α is 1, and there is no W.
    """

    def __init__(self, field_widths: Sequence[int], candidate_width: int, width: int) -> None:
        super().__init__()
        self.field_widths = tuple(field_widths)
        self.inward = nn.ModuleList(nn.Linear(each, width) for each in field_widths)
        self.weighs = len(self.field_widths) > 1
        if self.weighs:
            self.of_field = nn.ModuleList(nn.Linear(width, 1) for _ in field_widths)
            self.of_candidate = nn.Linear(candidate_width, len(self.field_widths), bias=False)
        self.out_width = candidate_width + width

    def glorot_parts(self) -> list[GlorotPart]:
        """Every W_j is a layer over e_i ⊕ x_j with one output; those of e_i lie side by side."""
        if not self.weighs:
            return []
        fan_in = self.out_width
        return [(layer.weight, fan_in, 1) for layer in (*self.of_field, self.of_candidate)]

    def request_part(self, fields: Float[Tensor, "R D"]) -> tuple[Float[Tensor, "R F W"], Float[Tensor, "R F"]]:
        """The fields' vectors in one width, and their part of the scores."""
        pieces = torch.split(fields, list(self.field_widths), dim=-1)
        mapped = [inward(piece) for inward, piece in zip(self.inward, pieces, strict=True)]
        if not self.weighs:
            return torch.stack(mapped, dim=1), fields.new_zeros(fields.shape[0], 1)
        scores = [layer(piece) for layer, piece in zip(self.of_field, mapped, strict=True)]
        return torch.stack(mapped, dim=1), torch.cat(scores, dim=-1)

    def forward(
        self,
        rows: CandidateRows,
        candidate: Float[Tensor, "N D"],
        fields: Float[Tensor, "R F W"],
        field_scores: Float[Tensor, "R F"],
    ) -> Float[Tensor, "N E"]:
        """e_i ⊕ Σ α_j x_j."""
        if not self.weighs:
            only = rows.per_candidate(fields).squeeze(1)
            return torch.cat([candidate, only.expand(candidate.shape[0], -1)], dim=-1)
        scores = torch.tanh(self.of_candidate(candidate) + rows.per_candidate(field_scores))
        pooled = rows.unpad(rows.pad(torch.softmax(scores, dim=-1)) @ fields)
        return torch.cat([candidate, pooled], dim=-1)


class BehaviourInteraction(nn.Module):
    """IBIM (eq. 7-9): V_t = e_i ⊕ h_t, α = softmax_t(tanh(V_t W + b)), R = Σ_t α_t V_t. Without behaviours R is 0."""

    def __init__(self, candidate_width: int, width: int) -> None:
        super().__init__()
        self.of_behaviour = nn.Linear(width, 1)
        self.of_candidate = nn.Linear(candidate_width, 1, bias=False)
        self.out_width = candidate_width + width

    def glorot_parts(self) -> list[GlorotPart]:
        """W is one layer over e_i ⊕ h_t."""
        return [(layer.weight, self.out_width, 1) for layer in (self.of_behaviour, self.of_candidate)]

    def request_part(self, encoded: Float[Tensor, "R L W"]) -> Float[Tensor, "R L"]:
        """The behaviours' part of the scores."""
        scores: Tensor = self.of_behaviour(encoded).squeeze(-1)
        return scores

    def forward(self, rows: CandidateRows, candidate: Float[Tensor, "N D"], state: State) -> Float[Tensor, "N E"]:
        """Σ α_t e_i ⊕ Σ α_t h_t."""
        mask = state["history_mask"]
        of_pairs = torch.tanh(rows.pad(self.of_candidate(candidate)) + state["behaviour_scores"].unsqueeze(1))
        pooled = rows.unpad(masked_softmax(of_pairs, mask.unsqueeze(1)) @ state["behaviours"])
        there = rows.per_candidate(mask.any(dim=1, keepdim=True).to(candidate.dtype))
        return torch.cat([candidate * there, pooled], dim=-1)


class Mian(nn.Module):
    """z = MLP(GIM[e_i; e_c; e_b; e_u; R_ibim; R_iuim; R_icim]). An entity without fields has no parts."""

    def __init__(self, config: MianConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.page = page = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        self.inward = nn.Linear(page.behaviour_width, config.width)
        self.encoder = nn.ModuleList(PreNormLayer(config.width, config.n_heads) for _ in range(config.n_layers))
        self.with_behaviours = BehaviourInteraction(page.candidate_width, config.width)
        user = _widths(page.user)
        context = _widths(page.context) + (_widths(page.behaviours.items) if config.use_trigger else [])
        self.interactions = nn.ModuleDict(
            {
                name: FieldInteraction(fields, page.candidate_width, config.width)
                for name, fields in (("user", user), ("context", context))
                if fields
            }
        )
        of_request = {"behaviours": page.behaviour_width, "user": sum(user), "context": sum(context)}
        self.request_parts = nn.ModuleDict(
            {name: nn.Linear(width, config.width) for name, width in of_request.items() if width}
        )
        of_candidate = [page.candidate_width, self.with_behaviours.out_width]
        of_candidate += [page.candidate_width + config.width] * len(self.interactions)
        self.candidate_parts = nn.ModuleList(nn.Linear(width, config.width) for width in of_candidate)
        self.fusion = AttentiveFusion(len(of_candidate) + len(self.request_parts), config.width)
        self.top = Mlp(config.width, config.top, 1, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The encoded behaviours, the mapped fields, and the three parts of GIM that no candidate changes."""
        behaviours, mask = self.page.history(inputs)
        encoded = self.inward(behaviours)
        for layer in self.encoder:
            encoded = layer(encoded, mask)
        context = self.page.context(inputs.context_fields)
        if self.config.use_trigger:
            context = torch.cat([context, self.page.trigger(inputs)], dim=-1)
        plain = {
            "behaviours": masked_mean(behaviours, mask),
            "user": self.page.user(inputs.user_fields),
            "context": context,
        }
        state = {
            "history_mask": mask,
            "behaviours": encoded,
            "behaviour_scores": self.with_behaviours.request_part(encoded),
            "top": torch.cat([layer(plain[name]) for name, layer in self.request_parts.items()], dim=-1),
        }
        for name, module in self.interactions.items():
            assert isinstance(module, FieldInteraction)
            state[f"{name}_fields"], state[f"{name}_scores"] = module.request_part(plain[name])
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        candidate = self.page.candidate(inputs, self.page.item(inputs))
        met = [candidate, self.with_behaviours(rows, candidate, state)]
        for name, module in self.interactions.items():
            met.append(module(rows, candidate, state[f"{name}_fields"], state[f"{name}_scores"]))
        parts = torch.stack([layer(part) for layer, part in zip(self.candidate_parts, met, strict=True)], dim=1)
        of_request = state["top"].reshape(rows.n_requests, -1, self.config.width)
        of_request = rows.per_candidate(of_request).expand(candidate.shape[0], -1, -1)
        fused = self.fusion(torch.cat([parts, of_request], dim=1))
        return ModelOutputs(self.top(fused).squeeze(-1), {})


def _widths(fields: FieldTables) -> list[int]:
    return [table.embedding_dim for table in fields.tables if isinstance(table, nn.Embedding)]


def stages(config: MianConfig) -> tuple[Stage, ...]:
    """One stage: click cross-entropy over everything."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("mian", "Zhang et al., Multi-Interactive Attention Network, WSDM 2021", MianConfig, Mian, stages)
