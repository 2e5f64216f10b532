"""R3S: Real-time Relevant Recommendation Suggestion (Xie et al., WSDM 2021), its item recommender, and R3S+2TA.

Three experts look at the candidate beside the trigger (the paper's seed): how their fields interact, how alike they
are, what the candidate brings that the trigger has not. Critics weigh the experts by user, context and trigger; an
attention that sees the candidate too weighs the critics (M3oE).

The authors' code and the paper's task differ from ours. The code predicts the dwell time with a squared error and a
ReLU at the end; here it is one click logit. The part that decides whether to show a suggestion box has no place on
this page. A field holds one value here, so "ids of the candidate without those of the trigger" is the field's vector
where the two ids differ and zeros where they are the same. Ours, too: fields differ in width, so each is mapped to
`field_width` by a layer of its own before the self-attention; the history is the mean behaviour, beside the user, as in
all models that have no sequence of their own; the similarity of content goes to the expert for
similarity, as it is given to all compared models; the network above the experts is `top` (the code has one layer of
half an expert's width).

R3S+2TA (named in DIHN's experiments, without details): DIN's pooling of the history by the candidate, and by the
trigger, are further inputs of all three experts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import DinAttention, masked_mean
from training.layers.categories import same_value
from training.layers.dense_start import GlorotPart
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.field_attention import FieldSelfAttention
from training.layers.mlp import Mlp, SplitLinear
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class R3sConfig:
    """Heads, critics, expert width and dropout of the authors' code; embeddings as all rivals have them."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"  # of 2TA
    attention_hidden: tuple[int, ...] = (80, 40)
    two_attentions: bool = False  # +2TA
    field_width: int = 24
    n_heads: int = 3
    expert_width: int = 90
    n_critics: int = 4
    top: tuple[int, ...] = (45,)
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.3
    max_epochs: int = 1


class R3s(nn.Module):
    """z = MLP(Σ_i β_i vote_i): vote_i = Σ_k gate_ik expert_k, β = softmax_i(vote_i A x), x = user ⊕ a ⊕ r ⊕ context."""

    def __init__(self, config: R3sConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.page = page = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        self.item_widths = [config.widths.of(kind) for kind in sizes.item_kinds]
        n_fields, expert = len(self.item_widths), config.expert_width
        behaviour = page.behaviour_width if config.two_attentions else 0
        plain = page.user.width + page.context.width + page.behaviour_width
        if config.two_attentions:
            self.target_attention = DinAttention(page.item_width, behaviour, config.attention, config.attention_hidden)
            self.trigger_attention = DinAttention(page.item_width, behaviour, config.attention, config.attention_hidden)
        self.inward = nn.ModuleList(nn.Linear(width, config.field_width) for width in self.item_widths)
        self.field_attention = FieldSelfAttention(config.field_width, config.n_heads)
        met, known = 2 * n_fields * config.field_width + behaviour, plain + behaviour
        self.interaction = SplitLinear(known, met, known + met)
        self.interaction_out = nn.Linear(known + met, expert)
        alike = page.item_width + n_fields + config.similarity_width + behaviour
        self.similarity = SplitLinear(known, alike, expert)
        self.gain = SplitLinear(known, page.item_width + behaviour, expert)
        self.gates = nn.Linear(plain + page.item_width, 3 * config.n_critics)
        self.heard_by_request = nn.Linear(plain + page.item_width, expert, bias=False)  # A, its columns of the request
        self.heard_by_candidate = nn.Linear(page.item_width, expert, bias=False)  # A, its columns of the candidate
        self.top = Mlp(expert, config.top, 1, config.dropout)

    def glorot_parts(self) -> list[GlorotPart]:
        """A is one layer over request and candidate; every critic weighs three experts by a layer of its own."""
        by_request, by_candidate = self.heard_by_request, self.heard_by_candidate
        fan_in = by_request.in_features + by_candidate.in_features
        heard = [(layer.weight, fan_in, layer.out_features) for layer in (by_request, by_candidate)]
        return [*heard, (self.gates.weight, self.gates.in_features, 3)]

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The trigger's fields, the request's part of the experts, and the critics' gates: no candidate is in them."""
        trigger = self.page.trigger(inputs)
        keys, mask = self.page.history(inputs)
        user, context = self.page.user(inputs.user_fields), self.page.context(inputs.context_fields)
        known = torch.cat([user, context, masked_mean(keys, mask)], dim=-1)
        request = torch.cat([known, trigger], dim=-1)
        state: State = {}
        if self.config.two_attentions:
            pooled = self.trigger_attention.one_per_request(trigger, keys, mask)
            known = torch.cat([known, pooled], dim=-1)
            state["history_keys"], state["history_terms"] = keys, self.target_attention.key_part(keys)
            state["history_mask"] = mask
        return state | {
            "trigger": trigger,
            "trigger_ids": inputs.trigger_fields,
            "trigger_fields": self.field_attention.projected(self._fields(trigger)),
            "interaction": self.interaction.request_part(known),
            "similarity": self.similarity.request_part(known),
            "gain": self.gain.request_part(known),
            "gates": torch.softmax(self.gates(request).reshape(-1, self.config.n_critics, 3), dim=-1),
            "top": self.heard_by_request(request),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.page.item(inputs)
        votes = rows.per_candidate(state["gates"]) @ self._experts(rows, state, inputs, item)  # [N critics E]
        hearing = rows.per_candidate(state["top"]) + self.heard_by_candidate(item)  # A x
        heard = torch.softmax((votes * hearing.unsqueeze(1)).sum(-1), dim=-1)
        return ModelOutputs(self.top((votes * heard.unsqueeze(-1)).sum(1)).squeeze(-1), {})

    def _experts(
        self, rows: CandidateRows, state: State, inputs: ModelInputs, item: Float[Tensor, "N I"]
    ) -> Float[Tensor, "N 3 E"]:
        """What each expert says of the candidates."""
        trigger = rows.per_candidate(state["trigger"])
        met = self.field_attention(rows, self.field_attention.projected(self._fields(item)), state["trigger_fields"])
        products = item * trigger
        dots = [part.sum(-1, keepdim=True) for part in torch.split(products, self.item_widths, dim=-1)]
        alike = torch.cat([products, *dots, self._content(inputs)], dim=-1)
        new = item * self._is_new(inputs.candidate_fields, rows.per_candidate(state["trigger_ids"]))
        if self.config.two_attentions:
            history = (state["history_keys"], state["history_terms"], state["history_mask"])
            pooled = rows.unpad(self.target_attention(rows.pad(item), *history))
            met, alike, new = (torch.cat([own, pooled], dim=-1) for own in (met, alike, new))
        interaction = torch.relu(self.interaction(rows.per_candidate(state["interaction"]), met))
        experts = (
            self.interaction_out(interaction),
            self.similarity(rows.per_candidate(state["similarity"]), alike),
            self.gain(rows.per_candidate(state["gain"]), new),
        )
        return torch.relu(torch.stack(experts, dim=1))

    def _content(self, inputs: ModelInputs) -> Float[Tensor, "N S"]:
        assert self.page.similarity is not None  # the page's tables were made for a model that reads the trigger
        vectors: Tensor = self.page.similarity(inputs.candidate_similarity)
        return vectors

    def _fields(self, item: Float[Tensor, "B I"]) -> Float[Tensor, "B F W"]:
        """An item's fields in one width."""
        pieces = torch.split(item, self.item_widths, dim=-1)
        return torch.stack([layer(piece) for layer, piece in zip(self.inward, pieces, strict=True)], dim=1)

    def _is_new(self, candidate: Tensor, trigger: Tensor) -> Float[Tensor, "N I"]:
        """1 over the width of a field whose value is not the trigger's. Two unknown values are not the same one."""
        differs = (~same_value(candidate, trigger)).to(torch.float32)
        columns = [differs[:, i : i + 1].expand(-1, width) for i, width in enumerate(self.item_widths)]
        return torch.cat(columns, dim=-1)


def stages(config: R3sConfig) -> tuple[Stage, ...]:
    """One stage: click cross-entropy over everything."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("r3s", "Xie et al., Real-time Relevant Recommendation Suggestion, WSDM 2021", R3sConfig, R3s, stages)
