"""DIN: Deep Interest Network for click-through rate prediction (Zhou et al., KDD 2018), and DIN+2TA by one switch.

The candidate attends to the user's history; everything goes into one dense network. It is also the base below DAIAN,
and the plainest model of the house: read this file first.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import DinAttention
from training.layers.embedding import DEFAULT_WIDTHS, BehaviourTables, EmbeddingWidths, FieldTables
from training.layers.mlp import TopMlp
from training.layers.ragged import CandidateRows
from training.layers.similarity_bins import SimilarityBins
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class DinConfig:
    """Defaults are the sizes of the DAIAN paper's experiments, which all models share there."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True  # the trigger's fields, and the candidate's similarity to it
    trigger_product: bool = False  # e_r ⊙ e_a, as in R3S's similarity expert
    trigger_attention: bool = False  # a second pooling with the trigger as query: DIN+2TA
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class Din(nn.Module):
    """z = MLP(E_u ⊕ E_ctx ⊕ e_a [⊕ e_r ⊕ e_sem ⊕ e_r ⊙ e_a] ⊕ DIN(e_a; E_seq) [⊕ DIN'(e_r; E_seq)])."""

    def __init__(self, config: DinConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        if (config.trigger_attention or config.trigger_product) and not config.use_trigger:
            raise ValueError("trigger_attention and trigger_product read the trigger: they need use_trigger=True")
        self.config = config
        self.user = FieldTables(sizes.user, sizes.user_kinds, config.widths)
        self.context = FieldTables(sizes.context, sizes.context_kinds, config.widths)
        self.behaviours = BehaviourTables(sizes.item, sizes.item_kinds, sizes.n_age_bins, config.widths)
        item, behaviour = self.behaviours.item_width, self.behaviours.behaviour_width
        self.target_attention = DinAttention(item, behaviour, config.attention, config.attention_hidden)
        request_width = self.user.width + self.context.width
        candidate_width = item + behaviour
        if config.use_trigger:
            self.similarity = SimilarityBins(sizes.level_edges, config.n_similarity_bins, config.similarity_width)
            request_width += item
            candidate_width += config.similarity_width
        if config.trigger_attention:
            self.trigger_attention = DinAttention(item, behaviour, config.attention, config.attention_hidden)
            request_width += behaviour
        if config.trigger_product:
            candidate_width += item
        self.top = TopMlp(request_width, candidate_width, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The history's keys and the request's part of the first dense layer. DIN predicts no intent."""
        keys = self.behaviours.behaviours(inputs.history_fields, inputs.history_age)
        mask = inputs.history_age > 0
        parts = [self.user(inputs.user_fields), self.context(inputs.context_fields)]
        if self.config.use_trigger:
            trigger = self.behaviours.item(inputs.trigger_fields)
            parts.append(trigger)
        if self.config.trigger_attention:
            parts.append(self.trigger_attention.one_per_request(trigger, keys, mask))
        state = {
            "history_keys": keys,
            "history_terms": self.target_attention.key_part(keys),
            "history_mask": mask,
            "top": self.top.request_part(torch.cat(parts, dim=-1)),
        }
        if self.config.trigger_product:
            state["trigger"] = trigger
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.behaviours.item(inputs.candidate_fields)
        history = (state["history_keys"], state["history_terms"], state["history_mask"])
        parts = [item, rows.unpad(self.target_attention(rows.pad(item), *history))]
        if self.config.use_trigger:
            parts.append(self.similarity(inputs.candidate_similarity))
        if self.config.trigger_product:
            parts.append(item * rows.per_candidate(state["trigger"]))
        logits = self.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1))
        return ModelOutputs(logits, {})


def stages(config: DinConfig) -> tuple[Stage, ...]:
    """One stage: click cross-entropy over everything."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("din", "Zhou et al., Deep Interest Network, KDD 2018", DinConfig, Din, stages)
