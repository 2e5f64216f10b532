"""DIAN: Deep Intention-Aware Network (Xia et al., SIGIR 2023), with its two halves on their own by one field.

Two networks give a click probability each: TAN knows the trigger, TFN does not. A third says how likely it is that the
user came for what the trigger is; by that the two are mixed (eq. 1, 9). TFN on its own reads no trigger at all and is
SIM with a hard search by category. All attention of the trigger and the Intention Net belong to the request.

Where paper and a public code disagree (DEI2N's repository holds a DIAN): it mixes the other way round and takes the
intention's label from the batch's first two samples; here eq. 9 and one label per page. The paper's eq. 10 prints one
minus for two terms; both are cross-entropies.

Our assumptions. The mixed probability is made in the logarithm: logit(p) then needs no 1 - p, which in float32 loses
its digits near 1; it is held within logit(1e-6) and logit(1 - 1e-6). The label is the letter's: 1 for a click on the
trigger or its leaf category, so 0 for a page without a click. Context enters all three networks, the candidate's binned
similarity to the trigger enters TAN (a plain feature, which all compared models get).

Deviations forced by the contract: H_cross (a user's visits to the mini app) does not exist and is left out. One
sequence is both the short and the long one, the long one under the category's mask.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import TargetAttention, candidates_attend, masked_mean
from training.layers.categories import (
    SearchedAttention,
    any_click_like_trigger,
    candidate_subsequence,
    leaf_column,
    trigger_subsequence,
)
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.mlp import Mlp, TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State

# logit(1 - 1e-6): the loss reads a probability clamped to [1e-6, 1 - 1e-6].
LARGEST_LOGIT = 13.815510


@dataclass(frozen=True)
class DianConfig:
    """Defaults are the paper's sizes. `intention_loss` is α of eq. 10: 0 is the paper's ablation of it.

    parts: the whole, or one half on its own. mix: by the Intention Net, or the plain mean (the ablation without it).
    """

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    parts: Literal["both", "tan", "tfn"] = "both"
    mix: Literal["intention", "mean"] = "intention"
    intention_loss: float = 0.1
    width: int = 128
    n_heads: int = 4
    top: tuple[int, ...] = (1024, 512, 256)  # of TAN, TFN and the Intention Net alike
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class CategoryInterest(nn.Module):
    """H_q = H_q^s + H_q^l: what q finds in the whole history, and in its part of q's own category (eq. 5-6)."""

    def __init__(self, query_width: int, key_width: int, width: int, n_heads: int) -> None:
        super().__init__()
        self.short = TargetAttention(query_width, key_width, width, n_heads)
        self.searched = SearchedAttention(query_width, key_width, width, n_heads)

    def one_per_request(self, query: Tensor, keys: Tensor, mask: Tensor, searched: Tensor) -> Tensor:
        """[R W] for one query per request, such as the trigger; `searched` [R L] is the part of its category."""
        of_all = self.short.one_per_request(query, keys, mask)
        found: Tensor = self.searched(query.unsqueeze(1), *self.searched.keys_values(keys), searched.unsqueeze(1))
        return of_all + found.squeeze(1)

    def request_state(self, keys: Tensor, name: str) -> State:
        """What candidates will attend to, made once per request."""
        short_keys, short_values = self.short.keys_values(keys)
        searched_keys, searched_values = self.searched.keys_values(keys)
        return {
            f"{name}_short_keys": short_keys,
            f"{name}_short_values": short_values,
            f"{name}_searched_keys": searched_keys,
            f"{name}_searched_values": searched_values,
        }

    def of_candidates(self, state: State, name: str, rows: CandidateRows, item: Tensor, searched: Tensor) -> Tensor:
        """[N W]; `searched` [R C L] is each candidate's own part of the history."""
        keys, values = state[f"{name}_short_keys"], state[f"{name}_short_values"]
        of_all = candidates_attend(self.short, rows, item, keys, values, state["history_mask"])
        keys, values = state[f"{name}_searched_keys"], state[f"{name}_searched_values"]
        return of_all + rows.unpad(self.searched(rows.pad(item), keys, values, searched))


class IntentionNet(nn.Module):
    """z_int of ŷ_int = σ(MLP(H_user ⊕ mean(E_sseq) ⊕ H_tri)), eq. 2. Sees no candidate."""

    def __init__(self, config: DianConfig, tables: PageTables) -> None:
        super().__init__()
        side = tables.user.width + tables.context.width
        self.mlp = Mlp(side + tables.behaviour_width + config.width, config.top, 1, config.dropout)

    def forward(self, side: Tensor, keys: Tensor, mask: Tensor, h_tri: Tensor) -> Tensor:
        """[R 1]: the logit of "came for what the trigger is"."""
        logit: Tensor = self.mlp(torch.cat([side, masked_mean(keys, mask), h_tri], dim=-1))
        return logit


class Dian(nn.Module):
    """ŷ = ŷ_int · ŷ_tan + (1 - ŷ_int) · ŷ_tfn (eq. 9), one half alone when `parts` says so."""

    def __init__(self, config: DianConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.leaf = leaf_column(sizes, "DIAN")
        self.aware, self.free = config.parts != "tfn", config.parts != "tan"
        self.tables = PageTables(
            sizes, config.widths, self.aware, config.n_similarity_bins, config.similarity_width
        )  # the only thing that TAN and TFN share
        tables = self.tables
        item, behaviour = tables.item_width, tables.behaviour_width
        side = tables.user.width + tables.context.width
        heads = (item, behaviour, config.width, config.n_heads)
        if self.aware:
            self.trigger_interest = CategoryInterest(*heads)
            self.target_interest = CategoryInterest(*heads)
            request_width = tables.request_width + config.width
            self.tan = TopMlp(request_width, tables.candidate_width + config.width, config.top, config.dropout)
        if self.free:
            self.free_interest = CategoryInterest(*heads)
            self.tfn = TopMlp(side, item + config.width, config.top, config.dropout)
        if self.mixes_by_intention:
            self.intention = IntentionNet(config, tables)

    @property
    def mixes_by_intention(self) -> bool:
        """Whether there is an Intention Net."""
        return self.config.parts == "both" and self.config.mix == "intention"

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """H_tri, the intention, all keys and values, and the request's part of both dense networks."""
        keys, mask = self.tables.history(inputs)
        side = torch.cat([self.tables.user(inputs.user_fields), self.tables.context(inputs.context_fields)], dim=-1)
        state = {"history_mask": mask, "history_leaf": inputs.history_fields[..., self.leaf]}
        if self.free:
            state |= self.free_interest.request_state(keys, "free")
            state["tfn"] = self.tfn.request_part(side)
        if self.aware:
            trigger = self.tables.trigger(inputs)
            searched = trigger_subsequence(inputs, self.leaf)
            h_tri = self.trigger_interest.one_per_request(trigger, keys, mask, searched)
            state |= self.target_interest.request_state(keys, "target")
            state["tan"] = self.tan.request_part(torch.cat([side, trigger, h_tri], dim=-1))
            if self.mixes_by_intention:
                state["entering"] = self.intention(side, keys, mask, h_tri)
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits; with an Intention Net also its probability."""
        rows = CandidateRows.of(inputs.candidate_request, state["history_mask"].shape[0])
        item = self.tables.item(inputs)
        leaf = inputs.candidate_fields[:, self.leaf]
        searched = candidate_subsequence(rows, leaf, state["history_leaf"], state["history_mask"])
        halves = []
        if self.aware:
            h_tar = self.target_interest.of_candidates(state, "target", rows, item, searched)
            candidate = torch.cat([self.tables.candidate(inputs, item), h_tar], dim=-1)
            halves.append(self.tan(rows.per_candidate(state["tan"]), candidate))  # eq. 7
        if self.free:
            h_free = self.free_interest.of_candidates(state, "free", rows, item, searched)
            halves.append(self.tfn(rows.per_candidate(state["tfn"]), torch.cat([item, h_free], dim=-1)))  # eq. 8
        if len(halves) == 1:
            return ModelOutputs(halves[0], {})
        tan, tfn = halves
        if not self.mixes_by_intention:
            return ModelOutputs(mixed_logit(torch.zeros_like(tan), tan, tfn), {})
        entering = rows.per_candidate(state["entering"]).squeeze(-1).expand_as(tan)
        return ModelOutputs(mixed_logit(entering, tan, tfn), {"entering": torch.sigmoid(entering)})

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """BCE(y, ŷ) + α·BCE(y_int, ŷ_int) over the impressions (eq. 10); a page's label is shared by all of its."""
        state = self.encode_request(batch.inputs)
        clicks = batch.click_loss(self.score(state, batch.inputs).logits)
        label = any_click_like_trigger(batch.inputs, batch.clicks, self.leaf)
        owner = batch.inputs.candidate_request
        entering = state["entering"].squeeze(-1)
        intention = functional.binary_cross_entropy_with_logits(entering[owner], label[owner])
        return clicks + self.config.intention_loss * intention


def mixed_logit(entering: Tensor, tan: Tensor, tfn: Tensor) -> Tensor:
    """logit(ŷ_int ŷ_tan + (1 - ŷ_int) ŷ_tfn) from three logits (eq. 9): log p - log(1 - p), each a sum of two."""
    came, browses = functional.logsigmoid(entering), functional.logsigmoid(-entering)
    clicked = _log_sum(came + functional.logsigmoid(tan), browses + functional.logsigmoid(tfn))
    passed = _log_sum(came + functional.logsigmoid(-tan), browses + functional.logsigmoid(-tfn))
    return (clicked - passed).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _log_sum(left: Tensor, right: Tensor) -> Tensor:
    """log(e^left + e^right)."""
    difference = (left - right).abs()
    return torch.maximum(left, right) + functional.softplus(-difference)


def stages(config: DianConfig) -> tuple[Stage, ...]:
    """One stage, joint; only the whole model with a weighted intention has a loss of its own."""
    own = config.parts == "both" and config.mix == "intention" and config.intention_loss > 0
    loss: Literal["own", "click"] = "own" if own else "click"
    return (Stage("clicks", trains=("",), loss=loss, intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("dian", "Xia et al., Deep Intention-Aware Network, SIGIR 2023", DianConfig, Dian, stages)
