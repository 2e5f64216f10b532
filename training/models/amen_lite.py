"""AMEN-lite: after the All-domain Moveline Evolution Network (arXiv 2411.11502, its first version), of which the public
text tells only a part.

Known, and done here: the user's way through the scenes of an app is a "moveline"; item and scene meet in homogeneous
spaces; temporal sequential pairs (TSP) compare items whose labels were collected at different times. Ours, because the
paper's choices are not known: the encoders, the form of the alignment, the loss of the pairs and its weight.

What is missing. Our contract has no scenes: a behaviour is an item and an age when it reaches a model, its type and its
surface do not. A scene token here is the behaviour's age bin and the gap to the behaviour before it (in age bins), so
that the moveline tells when and how fast the user moved, and not where: the paper's main input is not there, and this
row says nothing of the paper. TSP pairs are those that a batch holds by chance: a clicked and an unclicked
candidate of the same known user in two requests, each with its own history.

With `use_trigger` the trigger's fields and the similarity to it are plain features. The moveline is made once per
request.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.age_gaps import age_gaps
from training.layers.attention import SelfAttention, TargetAttention, candidates_attend
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.label_pairs import pairs_over_time
from training.layers.mlp import TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class AmenLiteConfig:
    """scene_width: of the age's and of the gap's vector in a scene token."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    width: int = 128
    n_heads: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    scene_width: int = 8
    pair_weight: float = 0.1
    pairs_per_batch: int = 1024
    max_epochs: int = 1


class Moveline(nn.Module):
    """Scene tokens, age ⊕ gap, through one layer of self-attention: S [R L W]."""

    def __init__(self, config: AmenLiteConfig, n_age_bins: int) -> None:
        super().__init__()
        self.ages = table(n_age_bins, config.scene_width)
        self.gaps = table(n_age_bins, config.scene_width)
        self.self_attention = SelfAttention(2 * config.scene_width, config.width, config.n_heads)

    def forward(self, age: Tensor) -> Tensor:
        """Zero where there is no behaviour."""
        tokens = torch.cat([self.ages(age), self.gaps(age_gaps(age))], dim=-1)
        scenes: Tensor = self.self_attention(tokens, age > 0)
        return scenes


class AmenLite(nn.Module):
    """z = MLP(E_u ⊕ E_ctx [⊕ e_r] ⊕ e_a [⊕ e_sem] ⊕ MHTA(A e_a; S) ⊕ MHTA(e_a; E_seq + B S))."""

    def __init__(self, config: AmenLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.tables = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        item, behaviour, width = self.tables.item_width, self.tables.behaviour_width, config.width
        self.moveline = Moveline(config, sizes.n_age_bins)
        self.item_to_scene = nn.Linear(item, width)
        self.scene_to_item = nn.Linear(width, behaviour, bias=False)
        self.scene_attention = TargetAttention(width, width, width, config.n_heads)
        self.item_attention = TargetAttention(item, behaviour, width, config.n_heads)
        self.top = TopMlp(self.tables.request_width, self.tables.candidate_width + 2 * width, config.top)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """Keys and values of the moveline in both spaces, and the request's part of the first dense layer."""
        sequence, mask = self.tables.history(inputs)
        scenes = self.moveline(inputs.history_age)
        scene_keys, scene_values = self.scene_attention.keys_values(scenes)
        item_keys, item_values = self.item_attention.keys_values(sequence + self.scene_to_item(scenes))
        return {
            "scene_keys": scene_keys,
            "scene_values": scene_values,
            "item_keys": item_keys,
            "item_values": item_values,
            "history_mask": mask,
            "top": self.top.request_part(self.tables.request(inputs)),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item, mask = self.tables.item(inputs), state["history_mask"]
        in_scenes, in_items = self.scene_attention, self.item_attention
        parts = [
            self.tables.candidate(inputs, item),
            candidates_attend(
                in_scenes, rows, self.item_to_scene(item), state["scene_keys"], state["scene_values"], mask
            ),
            candidates_attend(in_items, rows, item, state["item_keys"], state["item_values"], mask),
        ]
        return ModelOutputs(self.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1)), {})

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """BCE + w TSP, TSP = Σ -log σ(z⁺ - z⁻) / `pairs_per_batch`."""
        inputs = batch.inputs
        logits = self.score(self.encode_request(inputs), inputs).logits
        loss = batch.click_loss(logits)
        user, at_most = torch.from_numpy(batch.user_group), self.config.pairs_per_batch
        pairs = pairs_over_time(user, inputs.candidate_request, batch.clicks, at_most)
        # A sum over a full batch's number: one pair that a batch holds by chance weighs as one.
        apart = F.softplus(logits[pairs[:, 1]] - logits[pairs[:, 0]]).sum() / at_most
        return loss + self.config.pair_weight * apart


def stages(config: AmenLiteConfig) -> tuple[Stage, ...]:
    """One stage: clicks and pairs together."""
    return (Stage("clicks", trains=("",), loss="own", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec(
    "amen_lite", "after All-domain Moveline Evolution Network, arXiv 2411.11502", AmenLiteConfig, AmenLite, stages
)
