"""NIF-lite: after Next Interest Flow (arXiv 2510.11317), of which the public text tells only a part.

Known, and done here: a first stage trains a generator of the next interest flow F, a sequence of dense vectors, by
InfoNCE with two regularisers, diversity and evolution velocity; a second stage trains a click model that reads F of the
frozen generator, begins with its item vectors, aligns F to the candidate, and has a temporal sequential pairwise term
(TSP). Ours, because the paper's choices are not known: a causal transformer of two blocks, four vectors of unit length,
the form of both regularisers and of the alignment, and all weights.

Deviations forced by the contract. The generator learns from histories alone (place t tells the next four behaviours),
over the same days as the click model: the batches carry no dates to split the two. No later day is seen, so tests are
not touched; but a history may hold the click of an earlier training request, so that F is a little better on training
requests than it will be later. TSP pairs are those that a batch holds by chance: a clicked and an unclicked candidate
of the same known user in two requests, each with its own history.

With `use_trigger` the trigger's fields and the similarity to it are plain features of the click model; the generator
never sees the trigger. F is made once per request. The numbers of this file are not the paper's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.age_gaps import age_gaps
from training.layers.attention import DinAttention, TargetAttention, candidates_attend
from training.layers.causal import CausalBlock, newest
from training.layers.embedding import DEFAULT_WIDTHS, BehaviourTables, EmbeddingWidths
from training.layers.label_pairs import pairs_over_time
from training.layers.mlp import TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State, TrainingFacts

ANGLE_DECAY = 0.99  # of the running mean angle between neighbours in the flow
LARGEST_COSINE = 1 - 1e-4  # beyond it the slope of arccos has no bound


@dataclass(frozen=True)
class NifLiteConfig:
    """`width` is that of the generator and of the flow. `n_flows` vectors tell of so many behaviours ahead."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    width: int = 128
    n_heads: int = 4
    n_blocks: int = 2
    n_flows: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    temperature: float = 0.07
    diversity_weight: float = 0.1
    velocity_weight: float = 0.1
    pair_weight: float = 0.1
    pairs_per_batch: int = 1024
    flow_epochs: int = 1
    click_epochs: int = 1


class FlowGenerator(nn.Module):
    """f_{t,k} = normalize(W ReLU(V s_t + q_k)): behind place t of the history, what the k-th next behaviour is like.

    It reads items and the gaps between them (in the rows of the age table), not their ages: the newest behaviour, which
    serving starts from, has an age that no place with a known next behaviour ever has.
    """

    mean_angle: Tensor

    def __init__(self, config: NifLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.tables = BehaviourTables(sizes.item, sizes.item_kinds, sizes.n_age_bins, config.widths)
        self.inward = nn.Linear(self.tables.behaviour_width, config.width)
        self.blocks = nn.ModuleList(CausalBlock(config.width, config.n_heads) for _ in range(config.n_blocks))
        self.state = nn.Linear(config.width, config.width)
        self.queries = nn.Parameter(torch.randn(config.n_flows, config.width) * config.width**-0.5)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.target = nn.Linear(self.tables.item_width, config.width, bias=False)
        self.register_buffer("mean_angle", torch.zeros(()))

    def states(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """s [R L W], and which behaviours are there."""
        mask = inputs.history_age > 0
        x = self.inward(self.tables.behaviours(inputs.history_fields, age_gaps(inputs.history_age)))
        for block in self.blocks:
            x = block(x, mask)
        return x, mask

    def flow(self, state: Tensor) -> Tensor:
        """Unit vectors [... K W] of states [... W]."""
        hidden = torch.relu(self.state(state).unsqueeze(-2) + self.queries)
        return F.normalize(self.out(hidden), dim=-1)

    def forward(self, inputs: ModelInputs) -> Tensor:
        """The flow behind the newest behaviour [R K W]; zero without history."""
        states, mask = self.states(inputs)
        there = mask.any(1).to(states.dtype)
        return self.flow(newest(states, mask)) * there[:, None, None]

    def loss(self, inputs: ModelInputs) -> Tensor:
        """InfoNCE + diversity + velocity behind one drawn place of every history that has a next behaviour."""
        states, mask = self.states(inputs)
        place = drawn_places(mask)
        rows = (place >= 0).nonzero().squeeze(1)
        if not len(rows):
            return states.sum() * 0
        flow = self.flow(states[rows, place[rows]])
        ahead = place[rows].unsqueeze(1) + 1 + torch.arange(self.config.n_flows)
        there = ahead < mask[rows].sum(1, keepdim=True)
        fields = inputs.history_fields[rows.unsqueeze(1), ahead.clamp_max(mask.shape[1] - 1)][there]
        told = self._info_nce(flow[there], fields)
        config = self.config
        return told + config.diversity_weight * diversity(flow) + config.velocity_weight * self._velocity(flow)

    def _info_nce(self, flow: Tensor, fields: Tensor) -> Tensor:
        """Cross-entropy of each vector's behaviour among all of the batch, corrected for how often each is drawn."""
        wanted = F.normalize(self.target(self.tables.item(fields)), dim=-1)
        same = fields[:, 0].unsqueeze(1) == fields[:, 0].unsqueeze(0)
        frequency = same.to(flow.dtype).mean(1)
        scores = flow @ wanted.T / self.config.temperature - frequency.log()
        own = torch.eye(len(fields), dtype=torch.bool)
        return F.cross_entropy(scores.masked_fill(same & ~own, -1e4), torch.arange(len(fields)))

    def _velocity(self, flow: Tensor) -> Tensor:
        """Mean of (angle between f_k and f_{k+1} - its running mean)²."""
        cosine = (flow[:, :-1] * flow[:, 1:]).sum(-1)
        angle = torch.arccos(cosine.clamp(-LARGEST_COSINE, LARGEST_COSINE))
        if self.training:
            mean = angle.detach().mean()
            self.mean_angle.copy_(torch.where(self.mean_angle > 0, self.mean_angle.lerp(mean, 1 - ANGLE_DECAY), mean))
        return (angle - self.mean_angle).square().mean()


def drawn_places(mask: Tensor) -> Tensor:
    """For every history a place that has a next one, all with the same chance [R]; -1 where it has none."""
    n_places = mask.sum(1) - 1
    drawn = (torch.rand(len(mask)) * n_places).long().clamp_max(mask.shape[1] - 1)
    return torch.where(n_places > 0, drawn, -1)


def diversity(flow: Tensor) -> Tensor:
    """Mean squared cosine between what is left of each two vectors of a flow without their mean direction."""
    mean = F.normalize(flow.mean(1, keepdim=True), dim=-1)
    left = F.normalize(flow - (flow * mean).sum(-1, keepdim=True) * mean, dim=-1)
    n = flow.shape[1]
    others = ~torch.eye(n, dtype=torch.bool)
    return (left @ left.transpose(1, 2)).square()[:, others].mean()


class FlowAlignment(nn.Module):
    """f'_k = a_k ⊙ f_k + b_k once per request; σ(W e_a) ⊙ MHTA(e_a; F') per candidate."""

    def __init__(self, config: NifLiteConfig, item_width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.n_flows, config.width))
        self.shift = nn.Parameter(torch.zeros(config.n_flows, config.width))
        self.attention = TargetAttention(item_width, config.width, config.width, config.n_heads)
        self.gate = nn.Linear(item_width, config.width)

    def keys_values(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of F'."""
        return self.attention.keys_values(flow * self.scale + self.shift)

    def forward(self, rows: CandidateRows, item: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[N W]."""
        everywhere = torch.ones_like(keys[:, 0, 0], dtype=torch.bool)
        attended = candidates_attend(self.attention, rows, item, keys, values, everywhere)
        return torch.sigmoid(self.gate(item)) * attended


class Ranker(nn.Module):
    """DIN with the aligned flow beside it."""

    def __init__(self, config: NifLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.tables = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        item, behaviour = self.tables.item_width, self.tables.behaviour_width
        self.attention = DinAttention(item, behaviour, config.attention, config.attention_hidden)
        self.alignment = FlowAlignment(config, item)
        self.top = TopMlp(self.tables.request_width, self.tables.candidate_width + behaviour + config.width, config.top)


class NifLite(nn.Module):
    """z = MLP(E_u ⊕ E_ctx [⊕ e_r] ⊕ e_a [⊕ e_sem] ⊕ DIN(e_a; E_seq) ⊕ SAM(e_a; F))."""

    def __init__(self, config: NifLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.flow = FlowGenerator(config, sizes)
        self.ranker = Ranker(config, sizes)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The history's keys, those of the flow, and the request's part of the first dense layer."""
        ranker = self.ranker
        sequence, mask = ranker.tables.history(inputs)
        keys, values = ranker.alignment.keys_values(self.flow(inputs).detach())
        return {
            "history_keys": sequence,
            "history_terms": ranker.attention.key_part(sequence),
            "history_mask": mask,
            "flow_keys": keys,
            "flow_values": values,
            "top": ranker.top.request_part(ranker.tables.request(inputs)),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        ranker = self.ranker
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = ranker.tables.item(inputs)
        history = state["history_keys"], state["history_terms"], state["history_mask"]
        parts = [
            ranker.tables.candidate(inputs, item),
            rows.unpad(ranker.attention(rows.pad(item), *history)),
            ranker.alignment(rows, item, state["flow_keys"], state["flow_values"]),
        ]
        return ModelOutputs(ranker.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1)), {})

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:
        """Flow: the generator's loss. Clicks: BCE + w TSP, TSP = Σ -log σ(z⁺ - z⁻) / `pairs_per_batch`."""
        inputs = batch.inputs
        if stage == "flow":
            return self.flow.loss(inputs)
        logits = self.score(self.encode_request(inputs), inputs).logits
        loss = batch.click_loss(logits)
        user, at_most = torch.from_numpy(batch.user_group), self.config.pairs_per_batch
        pairs = pairs_over_time(user, inputs.candidate_request, batch.clicks, at_most)
        # A sum over a full batch's number: one pair that a batch holds by chance weighs as one.
        apart = F.softplus(logits[pairs[:, 1]] - logits[pairs[:, 0]]).sum() / at_most
        return loss + self.config.pair_weight * apart


def before_stage(model: NifLite, stage: str, facts: TrainingFacts) -> None:  # noqa: ARG001
    """The click model begins with the generator's item vectors."""
    if stage == "clicks":
        model.ranker.tables.behaviours.items.load_state_dict(model.flow.tables.items.state_dict())


def stages(config: NifLiteConfig) -> tuple[Stage, ...]:
    """The generator by its own loss, then clicks over it, frozen."""
    return (
        Stage("flow", ("flow",), "own", selects="own_loss", intent="none", max_epochs=config.flow_epochs),
        Stage("clicks", ("ranker",), "own", intent="none", max_epochs=config.click_epochs),
    )


SPEC = ModelSpec(
    "nif_lite", "after Next Interest Flow, arXiv 2510.11317", NifLiteConfig, NifLite, stages, before_stage=before_stage
)
