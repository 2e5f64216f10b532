"""DEI2N: Deep Evolutional Instant Interest Network for trigger-induced recommendation (Xiao et al., WSDM 2024).

UI2M says how strong the instant interest is that the trigger shows; by that, what the trigger finds in the history and
what the candidate finds are mixed. All attention knows the time: a query is joined with each behaviour's age. Trigger
and candidate also meet directly, and so do the candidate and the behaviours of the trigger's category.

The paper's equations are known in outline; what it leaves open follows the authors' repository. Where the two disagree:
UI2M is a softmax of two outputs over the user, page number, trigger and the sum of the behaviours of its category (the
code has one sigmoid, and no page number). The code's further inputs, the product of trigger and sum and the number of
those behaviours, are kept. Its batch statistics at test time (batch-norms and Dice) would let a score depend on the
other candidates in a call: the dense layers here are those of all compared models.

Our assumptions. All three attentions read the timed behaviours ẽ_t, sums are of items without their age. The page
number, when a shop has one, is a field of the context, so UI2M reads the context whole. The candidate's binned
similarity to the trigger enters the top network: a plain feature, which all compared models get.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.categories import leaf_column, trigger_subsequence
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.mlp import Mlp, TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.layers.timed_attention import TimedAttention
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class Dei2nConfig:
    """Defaults are the sizes that all models share, and the authors' code's where only it gives a number."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    intensity_hidden: tuple[int, ...] = (64,)
    n_counted: int = 20  # behaviours of the trigger's category; more count as this many
    count_width: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class InstantInterest(nn.Module):
    """UI2M: (g, 1 - g) = softmax(MLP(E_u ⊕ E_ctx ⊕ e_r ⊕ S ⊕ e_r ⊙ S ⊕ E(n))), S the sum of n behaviours of the
    trigger's category. No label teaches it."""

    def __init__(self, config: Dei2nConfig, tables: PageTables) -> None:
        super().__init__()
        self.n_counted = config.n_counted
        self.counts = table(config.n_counted + 2, config.count_width)  # row 0 never trains: no behaviour is row 1
        width = tables.request_width + 2 * tables.item_width + config.count_width
        self.mlp = Mlp(width, config.intensity_hidden, 2, config.dropout)

    def forward(self, request: Tensor, trigger: Tensor, items: Tensor, same: Tensor) -> Tensor:
        """g [R 1]; `request` is E_u ⊕ E_ctx ⊕ e_r, `same` [R L] marks the behaviours of the trigger's category."""
        total = summed(items, same)
        count = same.to(torch.int64).sum(1).clamp(max=self.n_counted) + 1
        pair = self.mlp(torch.cat([request, total, trigger * total, self.counts(count)], dim=-1))
        return torch.softmax(pair, dim=-1)[:, :1]


def summed(items: Tensor, mask: Tensor) -> Tensor:
    """Σ of the items [R L I] that the mask [R L] holds: [R I]."""
    return (items * mask.unsqueeze(-1).to(items.dtype)).sum(1)


class Dei2n(nn.Module):
    """z = MLP(E_u ⊕ E_ctx ⊕ ΣE_seq ⊕ e_r ⊕ e_a ⊕ (e_r - e_a) ⊕ e_r ⊙ e_a ⊕ e_a ⊙ ΣE_seq ⊕ A_h ⊕ A_mix ⊕ e_sem)."""

    def __init__(self, config: Dei2nConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.leaf = leaf_column(sizes, "DEI2N")
        self.tables = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        item, gap = self.tables.item_width, config.widths.age
        self.timed = nn.Linear(self.tables.behaviour_width, item)  # ẽ_t of e_t ⊕ its age
        self.intensity = InstantInterest(config, self.tables)
        self.by_trigger = TimedAttention(item, gap, item, config.attention, config.attention_hidden)
        self.by_candidate = TimedAttention(item, gap, item, config.attention, config.attention_hidden)
        self.in_category = TimedAttention(item, gap, item, config.attention, config.attention_hidden)
        request_width = self.tables.request_width + item
        self.top = TopMlp(request_width, self.tables.candidate_width + 5 * item, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """g, the trigger's share of the mixture, the timed behaviours, and the request's part of the first layer."""
        behaviours, mask = self.tables.history(inputs)
        items, ages = behaviours[..., : self.tables.item_width], behaviours[..., self.tables.item_width :]
        same = trigger_subsequence(inputs, self.leaf)
        keys = self.timed(behaviours)
        trigger, request = self.tables.trigger(inputs), self.tables.request(inputs)
        intensity = self.intensity(request, trigger, items, same)
        pool = self.by_trigger
        found = pool(trigger.unsqueeze(1), keys, pool.gap(ages), mask).squeeze(1)  # A_r
        total = summed(items, mask)
        return {
            "history_keys": keys,
            "history_gaps": self.by_candidate.gap(ages),
            "history_mask": mask,
            "category_gaps": self.in_category.gap(ages),
            "category_mask": same,
            "history_sum": total,
            "trigger": trigger,
            "from_trigger": intensity * found,
            "intensity": intensity,
            "top": self.top.request_part(torch.cat([request, total], dim=-1)),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits, and the g of the candidate's request."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.tables.item(inputs)
        asked, keys = rows.pad(item), state["history_keys"]
        found = rows.unpad(self.by_candidate(asked, keys, state["history_gaps"], state["history_mask"]))  # A_a
        alike = rows.unpad(self.in_category(asked, keys, state["category_gaps"], state["category_mask"]))  # A_h
        intensity = rows.per_candidate(state["intensity"])
        mixed = rows.per_candidate(state["from_trigger"]) + (1.0 - intensity) * found  # A_mix = g A_r + (1 - g) A_a
        trigger = rows.per_candidate(state["trigger"])
        total = rows.per_candidate(state["history_sum"])
        parts = [self.tables.candidate(inputs, item), trigger - item, trigger * item, item * total, alike, mixed]
        logits = self.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1))
        return ModelOutputs(logits, {"intensity": intensity.squeeze(-1).expand_as(logits)})


def stages(config: Dei2nConfig) -> tuple[Stage, ...]:
    """One stage: click cross-entropy over everything."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec(
    "dei2n", "Xiao et al., Deep Evolutional Instant Interest Network, WSDM 2024", Dei2nConfig, Dei2n, stages
)
