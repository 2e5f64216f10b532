"""CCN-lite: after the Collaborative Contrastive Network (arXiv 2411.11508), of which the public text tells only a part.

Known, and done here: pairs are items shown on the same page; pairs of two clicked and pairs of two unclicked items are
"collaborative" and attract, pairs of one clicked and one unclicked item repel; the user and the trigger are the
condition; there is a click prediction module and a collaborative module that works in training only. Ours, because the
paper's choices are not known: the base (attention of trigger and candidate to the history, as in DIAN's trigger-aware
network), where the representation is taken (the last hidden layer), the projection, both losses, their weight and the
sampling of pairs. The numbers of this file are not the paper's.

Serving reads the click head only: the projection is not in the exported graphs. The candidate's similarity to the
trigger enters as a feature, as in all models that are compared here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import TargetAttention, candidates_attend
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.label_pairs import page_pairs
from training.layers.mlp import Mlp, SplitLinear
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class CcnLiteConfig:
    """contrast_weight 0 leaves the collaborative module out. one_class_weight: of pairs on a page without a click, or
    with nothing else; they are many and say little.
    """

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    width: int = 128
    n_heads: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    n_similarity_bins: int = 20
    similarity_width: int = 16
    projection_width: int = 64
    contrast_weight: float = 0.1
    margin: float = 0.2
    pairs_per_page: int = 64
    one_class_weight: float = 0.5
    max_epochs: int = 1


class Collaboration(nn.Module):
    """z = normalize(W_2 ReLU(W_1 [h_a ⊕ e_u ⊕ e_r])): where candidates of one page attract and repel each other."""

    def __init__(self, hidden_width: int, request_width: int, config: CcnLiteConfig) -> None:
        super().__init__()
        self.first = SplitLinear(request_width, hidden_width, config.projection_width)
        self.second = nn.Linear(config.projection_width, config.projection_width)

    def forward(self, rows: CandidateRows, condition: Tensor, hidden: Tensor) -> Tensor:
        """Unit vectors [N P]."""
        first = self.first(rows.per_candidate(self.first.request_part(condition)), hidden)
        return F.normalize(self.second(torch.relu(first)), dim=-1)


class CcnLite(nn.Module):
    """z = MLP(E_u ⊕ E_ctx ⊕ e_r ⊕ H_r ⊕ e_a ⊕ e_sem ⊕ H_a), with H_q = MHTA(q; E_seq)."""

    def __init__(self, config: CcnLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.tables = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        item, behaviour = self.tables.item_width, self.tables.behaviour_width
        self.trigger_attention = TargetAttention(item, behaviour, config.width, config.n_heads)
        self.target_attention = TargetAttention(item, behaviour, config.width, config.n_heads)
        first, *rest = config.top
        request_width = self.tables.request_width + config.width
        self.first = SplitLinear(request_width, self.tables.candidate_width + config.width, first)
        self.rest = Mlp(first, rest, None)
        self.out = nn.Linear(config.top[-1], 1)
        if config.contrast_weight:
            self.collaboration = Collaboration(config.top[-1], self.tables.user.width + item, config)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """Keys and values of the history, and the request's part of the first dense layer."""
        sequence, mask = self.tables.history(inputs)
        trigger = self.trigger_attention.one_per_request(self.tables.trigger(inputs), sequence, mask)
        keys, values = self.target_attention.keys_values(sequence)
        top = self.first.request_part(torch.cat([self.tables.request(inputs), trigger], dim=-1))
        return {"history_keys": keys, "history_values": values, "history_mask": mask, "top": top}

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates; the collaborative module is not read."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        return ModelOutputs(self.out(self._hidden(rows, state, inputs)).squeeze(-1), {})

    def _hidden(self, rows: CandidateRows, state: State, inputs: ModelInputs) -> Tensor:
        item = self.tables.item(inputs)
        history = state["history_keys"], state["history_values"], state["history_mask"]
        attended = candidates_attend(self.target_attention, rows, item, *history)
        features = torch.cat([self.tables.candidate(inputs, item), attended], dim=-1)
        hidden: Tensor = self.rest(torch.relu(self.first(rows.per_candidate(state["top"]), features)))
        return hidden

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """BCE + w (L_att + L_rep)."""
        state = self.encode_request(batch.inputs)
        rows = CandidateRows.of(batch.inputs.candidate_request, state["top"].shape[0])
        hidden = self._hidden(rows, state, batch.inputs)
        loss = batch.click_loss(self.out(hidden).squeeze(-1))
        if not self.config.contrast_weight:
            return loss
        condition = torch.cat([self.tables.user(batch.inputs.user_fields), self.tables.trigger(batch.inputs)], dim=-1)
        z = rows.pad(self.collaboration(rows, condition, hidden))
        there = rows.pad(torch.ones_like(batch.clicks).unsqueeze(1)).squeeze(2) > 0
        pairs = page_pairs(there, self.config.pairs_per_page)
        return loss + self.config.contrast_weight * self.contrast(
            z, rows.pad(batch.clicks.unsqueeze(1)).squeeze(2), there, pairs
        )

    def contrast(self, z: Tensor, clicks: Tensor, there: Tensor, pairs: Tensor) -> Tensor:
        """L_att + L_rep over the chosen `pairs` [R C C] of unit vectors `z` [R C P].

        L_att = mean over collaborative pairs of 1 - z_i·z_j, L_rep = mean over the others of max(0, z_i·z_j - margin).
        """
        cosine = z @ z.transpose(1, 2)
        alike = clicks.unsqueeze(1) == clicks.unsqueeze(2)
        n_clicks = (clicks * there).sum(1)
        one_class = (n_clicks == 0) | (n_clicks == there.sum(1))
        weight = torch.where(one_class, self.config.one_class_weight, 1.0)[:, None, None]
        attracted, repelled = pairs & alike, pairs & ~alike
        attraction = (weight * (1 - cosine) * attracted).sum() / attracted.sum().clamp_min(1)
        repulsion = (torch.relu(cosine - self.config.margin) * repelled).sum() / repelled.sum().clamp_min(1)
        return attraction + repulsion


def stages(config: CcnLiteConfig) -> tuple[Stage, ...]:
    """One stage: clicks and contrast together."""
    return (Stage("clicks", trains=("",), loss="own", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec(
    "ccn_lite", "after Collaborative Contrastive Network, arXiv 2411.11508", CcnLiteConfig, CcnLite, stages
)
