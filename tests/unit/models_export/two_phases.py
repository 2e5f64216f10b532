"""A small model in two phases with switches for everything that an export must notice."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.models.spec import ModelOutputs, State

SIZES = EncoderSizes(
    user=(50, 3), context=(4,), item=(600, 20), user_kinds=("id", "category"), context_kinds=("category",),
    item_kinds=("id", "category"), n_age_bins=19, n_levels=6, level_edges=(0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
    related_threshold=0.8, leaf_category=1,
)  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """What is wrong with the model; the defaults are a model without fault."""

    epsilon: float = 0.0  # added to a denominator
    reads_history_when_scoring: bool = False
    infinite_mask: bool = False  # -inf in place of the constant: NaN for an empty history
    fixed_length: bool = False  # cuts the history to the example's five behaviours
    double_state: bool = False
    state_without_request: bool = False
    extra_name: str = "gate"


class TwoPhases(nn.Module):
    """Attention over the history by the candidate; an intent; a table under two names; one state that nobody reads."""

    def __init__(self, faults: Faults = Faults(), width: int = 8) -> None:
        super().__init__()
        self.faults = faults
        self.items = nn.ModuleList(nn.Embedding(n, width, padding_idx=0) for n in SIZES.item)
        self.same_items = self.items
        self.age = nn.Embedding(SIZES.n_age_bins, width)
        self.intent = nn.Linear(width, SIZES.n_levels)
        self.top = nn.Linear(2 * width + SIZES.n_levels + 1, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.5)

    def item(self, fields: Tensor) -> Tensor:
        return self.items[0](fields[..., 0]) + self.same_items[1](fields[..., 1])

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        trigger = self.item(inputs.trigger_fields)
        fields, age = inputs.history_fields, inputs.history_age
        if self.faults.fixed_length:
            fields, age = fields[:, torch.arange(5)], age[:, torch.arange(5)]
        state = {
            "intent": torch.softmax(self.intent(trigger), -1),
            "keys": self.item(fields) + self.age(age),
            "mask": age > 0,
            "trigger": trigger,
            "unread": inputs.context_fields.float(),
        }
        if self.faults.double_state:
            state["keys"] = state["keys"].double()
        if self.faults.state_without_request:
            state["trigger"] = torch.cat([trigger, trigger])
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        candidate = self.item(inputs.candidate_fields)
        n = candidate.shape[0]
        keys, mask = state["keys"].float(), state["mask"]
        lowest = float("-inf") if self.faults.infinite_mask else -1e4
        logits = torch.where(mask, candidate @ keys[0].transpose(0, 1), torch.full((), lowest))
        pooled = (torch.softmax(logits, -1) * mask) @ keys[0]
        similarity = inputs.candidate_similarity[:, None]
        if self.faults.epsilon:
            similarity = torch.relu(similarity) / (torch.relu(similarity) + self.faults.epsilon)
        if self.faults.reads_history_when_scoring:
            pooled = pooled + inputs.history_age.sum()
        parts = [pooled, state["trigger"].expand(n, -1), state["intent"].expand(n, -1), similarity]
        gates = torch.sigmoid(pooled.mean(-1))
        return ModelOutputs(self.top(torch.cat(parts, -1)).squeeze(-1), {self.faults.extra_name: gates})
