"""DIEN: Deep Interest Evolution Network for CTR prediction (Zhou et al., AAAI 2019), and DIEN+2TA by one switch.

A GRU reads the behaviours (interest extractor, eq. 2-5), taught to foresee the next one (auxiliary loss, eq. 6); a
second GRU, whose update gate the candidate's attention scales, follows the interest that concerns the candidate
(AUGRU, eq. 9-12). z = MLP(E_u ⊕ E_ctx [⊕ e_r] ⊕ e_a [⊕ e_sem] ⊕ h'_T(e_a) [⊕ h'_T(e_r)]).

Paper and authors' code disagree; we follow the paper. Auxiliary score: inner product and sigmoid (code: an MLP on the
concatenation). Attention: softmax of h_t W e_a (code: DIN's unit). AUGRU: u ← a u, so that a step without attention
leaves the state (code: u ← (1 - a) u in a cell that keeps u of the old state, which moves it most at a = 0).

Our assumptions: states have an item's width, which the inner product needs; what is foreseen is the item without its
age, else a click would be told from its negative by the time. Negatives are behaviours of other requests of the batch,
never of the same user (where the log knows) nor an item of the user's own sequence; a draw that is one is left out of
the mean. The auxiliary loss is a mean over a batch's behaviours, once per request and not once per candidate.
Deviation: both networks read the newest `n_steps` behaviours, all of them under the rules' usual 50; `layers.recurrent`
says why.

DIEN+2TA: one extractor, a second attention and a second AUGRU with the trigger as query, both candidate-free.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import masked_softmax
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.mlp import TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.layers.recurrent import AttentionalGru, SequenceGru, newest
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class DienConfig:
    """Defaults are the sizes that all models share in the DAIAN paper's experiments."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    top: tuple[int, ...] = (512, 256, 128)
    n_steps: int = 50
    auxiliary_weight: float = 1.0  # α of eq. 7; 0 is the paper's ablation
    use_trigger: bool = True
    trigger_evolution: bool = False  # DIEN+2TA
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class InterestEvolution(nn.Module):
    """How the interests towards a query evolve: attention (eq. 9) and AUGRU (eq. 11-12)."""

    def __init__(self, query_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, width, bias=False)
        self.augru = AttentionalGru(width, width)

    def forward(self, queries: Tensor, interests: Tensor, input_part: Tensor, mask: Tensor) -> Tensor:
        """h'_T [R C H] for C queries [R C Q] over the interests [R T H]."""
        scores = self.query(queries) @ interests.transpose(1, 2)  # h_t W e_a
        last: Tensor = self.augru(input_part, masked_softmax(scores, mask.unsqueeze(1)), mask)
        return last


class Dien(nn.Module):
    """Extractor, one or two evolutions, dense network."""

    def __init__(self, config: DienConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        if config.trigger_evolution and not config.use_trigger:
            raise ValueError("trigger_evolution reads the trigger: it needs use_trigger=True")
        self.config = config
        self.page = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        width = self.page.item_width
        self.extractor = SequenceGru(self.page.behaviour_width, width)
        self.evolution = InterestEvolution(width, width)
        self.trigger_evolution = InterestEvolution(width, width) if config.trigger_evolution else None
        request_width = self.page.request_width + (width if config.trigger_evolution else 0)
        self.top = TopMlp(request_width, self.page.candidate_width + width, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The interests, the AUGRU's input products, and the request's part of the first dense layer."""
        fields, age = newest(inputs.history_fields, inputs.history_age, self.config.n_steps)
        mask = age > 0
        interests = self.extractor(self.page.behaviours.behaviours(fields, age), mask)
        parts = [self.page.request(inputs)]
        if self.trigger_evolution is not None:
            evolve = self.trigger_evolution
            trigger = self.page.trigger(inputs).unsqueeze(1)
            parts.append(evolve(trigger, interests, evolve.augru.input_part(interests), mask).squeeze(1))
        return {
            "interests": interests,
            "evolution_inputs": self.evolution.augru.input_part(interests),
            "history_mask": mask,
            "top": self.top.request_part(torch.cat(parts, dim=-1)),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.page.item(inputs)
        evolved = self.evolution(rows.pad(item), state["interests"], state["evolution_inputs"], state["history_mask"])
        features = torch.cat([self.page.candidate(inputs, item), rows.unpad(evolved)], dim=-1)
        return ModelOutputs(self.top(rows.per_candidate(state["top"]), features), {})

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """L_target + α L_aux (eq. 7)."""
        state, users = self.encode_request(batch.inputs), torch.from_numpy(batch.user_group)
        clicks = batch.click_loss(self.score(state, batch.inputs).logits)
        return clicks + self.config.auxiliary_weight * self.auxiliary_loss(state["interests"], batch.inputs, users)

    def auxiliary_loss(
        self, interests: Float[Tensor, "R T H"], inputs: ModelInputs, users: Int64[Tensor, " R"]
    ) -> Float[Tensor, ""]:
        """Eq. 6: every interest state tells the next behaviour from one of somebody else. 0 without a next one.

        `users`: equal codes are one user; not the ids of the inputs, where most may be hidden in training.
        """
        fields, age = newest(inputs.history_fields, inputs.history_age, self.config.n_steps)
        mask = age > 0
        items = self.page.behaviours.item(fields)
        places, usable = foreign_behaviours(fields[..., 0], mask, users)
        foreign = items.flatten(0, 1)[places]
        states = interests[:, :-1]
        followed = mask[:, 1:]
        right = functional.softplus(-(states * items[:, 1:]).sum(-1))  # -log σ(h_t · e_{t+1})
        wrong = functional.softplus((states * foreign).sum(-1))  # -log(1 - σ(h_t · ê_{t+1}))
        return _mean(right, followed) + _mean(wrong, followed & usable)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(x.dtype)
    return (x * weights).sum() / weights.sum().clamp_min(1.0)


def foreign_behaviours(
    items: Int64[Tensor, "R T"], mask: Bool[Tensor, "R T"], users: Int64[Tensor, " R"]
) -> tuple[Int64[Tensor, "R P"], Bool[Tensor, "R P"]]:
    """One behaviour of the batch for every step but the first: its place among all R·T, and whether it is foreign.

    Drawn uniformly over what is there, so by popularity. Foreign: of another request, not of the same user, and
    not an item of the request's own sequence. T - 1 = P draws per request.
    """
    n_requests, n_steps = items.shape
    there = mask.flatten().nonzero().squeeze(1)
    if not len(there):
        nowhere = items.new_zeros(n_requests, n_steps - 1)
        return nowhere, nowhere > 0
    places = there[torch.randint(len(there), (n_requests, n_steps - 1), device=items.device)]
    owner = torch.div(places, n_steps, rounding_mode="floor")
    same_request = owner == torch.arange(n_requests, device=items.device).unsqueeze(1)
    same_user = users[owner] == users.unsqueeze(1)
    drawn = items.flatten()[places]
    own_item = ((drawn.unsqueeze(2) == items.unsqueeze(1)) & mask.unsqueeze(1)).any(-1)
    return places, ~(same_request | same_user | own_item)


def stages(config: DienConfig) -> tuple[Stage, ...]:
    """One stage: clicks and next behaviours together."""
    return (Stage("clicks", trains=("",), loss="own", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("dien", "Zhou et al., Deep Interest Evolution Network, AAAI 2019", DienConfig, Dien, stages)
