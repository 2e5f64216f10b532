"""DAIAN: Deep Adaptive Intent-Aware Network (arXiv 2602.13971), rebuilt: the paper's prose is public, its equations are
not.

Three modules over a DIN base, trained in three stages. UIM says what kind of item (how similar to the trigger) the user
wants; DIE turns it into an implicit interest (I2E, guided by that intent) and an explicit one (E2, the behaviours like
the trigger); SEIN weighs the two per candidate, by a similarity that is both semantic and collaborative. Equation
numbers are the paper's, the forms are our reading of its text; docs/add-a-model.md says how such a file is made.

All of UIM and I2E and the keys of E2 and DIN belong to the request: a candidate costs two attentions, a gate and the
dense top.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import (
    DinAttention,
    SelfAttention,
    TargetAttention,
    candidates_attend,
    masked_mean,
)
from training.layers.categories import leaf_column, trigger_subsequence
from training.layers.dense_start import keep_start
from training.layers.embedding import DEFAULT_WIDTHS, BehaviourTables, EmbeddingWidths, FieldTables
from training.layers.gate import GateNU
from training.layers.mlp import Mlp, SplitLinear, TopMlp
from training.layers.ragged import CandidateRows
from training.layers.similarity_bins import SimilarityBins
from training.models.spec import ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class DaianConfig:
    """Defaults are the paper's sizes; every ablation of its Table 2 and of ours is a field."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"  # the base's DIN unit
    attention_hidden: tuple[int, ...] = (80, 40)
    n_heads: int = 4
    width: int = 128  # of H_imp, H_exp and the gate's layers
    top: tuple[int, ...] = (512, 256, 128)
    uim_hidden: tuple[int, ...] = (512, 256, 128)
    similarity_width: int = 64  # d_s
    n_similarity_bins: int = 20  # finer than the levels: a feature, not a label
    dropout: float = 0.0

    intent_form: Literal["levels", "score"] = "levels"  # "score" is the ablation without UIM: one sigmoid number
    use_die: bool = True  # False: no interests, so no intent either
    use_sein: bool = True
    three_stages: bool = True
    uim_pool: Literal["trigger", "mean"] = "trigger"
    uim_shares_tables: bool = False
    related_by: Literal["similarity", "category"] = "similarity"  # what E2 reads: like the trigger, or of its leaf
    gate_shared: bool = False  # one gate for both interests: it cannot trade one against the other
    hse_stop: Literal["ratio", "ids", "ratio_both"] = "ratio"
    hse_product: bool = False  # e_r ⊙ e_a beside e_r ⊕ e_a in eq. 12
    concat_similarity: bool = False  # e_sim also straight into the top network

    uim_learning_rate: float = 0.1  # ratio to the others in stage 3
    uim_epochs: int = 1
    die_epochs: int = 1
    joint_epochs: int = 1


class RequestTables(nn.Module):
    """The embedding tables of one network: user, context (not read by UIM), items and behaviours."""

    def __init__(self, sizes: EncoderSizes, widths: EmbeddingWidths, context: bool) -> None:
        super().__init__()
        self.user = FieldTables(sizes.user, sizes.user_kinds, widths)
        self.context = FieldTables(sizes.context, sizes.context_kinds, widths) if context else None
        self.behaviours = BehaviourTables(sizes.item, sizes.item_kinds, sizes.n_age_bins, widths)


class UserIntentModule(nn.Module):
    """UIM: ŷ_int = softmax(MLP(E_u ⊕ pool(E_seq) ⊕ e_r)), eq. 4-5. Sees no candidate, nor anything made from one."""

    def __init__(self, config: DaianConfig, sizes: EncoderSizes, tables: RequestTables) -> None:
        super().__init__()
        self.own_tables = None if config.uim_shares_tables else RequestTables(sizes, config.widths, context=False)
        item, behaviour = tables.behaviours.item_width, tables.behaviours.behaviour_width
        self.pool = (
            TargetAttention(item, behaviour, config.width, config.n_heads) if config.uim_pool == "trigger" else None
        )
        pooled = behaviour if self.pool is None else config.width
        self.scored = config.intent_form == "score"
        n_out = 1 if self.scored else sizes.n_levels
        self.mlp = Mlp(tables.user.width + pooled + item, config.uim_hidden, n_out, config.dropout)

    def forward(self, inputs: ModelInputs, shared: RequestTables) -> Tensor:
        """[R S], rows sum to 1; [R 1] in (0, 1) as the ablation's score."""
        tables = self.own_tables or shared
        sequence = tables.behaviours.behaviours(inputs.history_fields, inputs.history_age)
        mask = inputs.history_age > 0
        trigger = tables.behaviours.item(inputs.trigger_fields)
        pool = self.pool
        pooled = masked_mean(sequence, mask) if pool is None else pool.one_per_request(trigger, sequence, mask)
        z = self.mlp(torch.cat([tables.user(inputs.user_fields), pooled, trigger], dim=-1))
        return torch.sigmoid(z) if self.scored else torch.softmax(z, dim=-1)


class ImplicitIntent(nn.Module):
    """I2E: what the history says to this trigger under this intent, eq. 6-8. Candidate-free."""

    def __init__(self, config: DaianConfig, behaviours: BehaviourTables, n_intent: int) -> None:
        super().__init__()
        self.query = Mlp(behaviours.item_width + n_intent, (config.width,), config.width)
        self.attention = TargetAttention(config.width, behaviours.behaviour_width, config.width, config.n_heads)

    def forward(self, trigger: Tensor, intent: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        """H_imp [R W]."""
        q_int = self.query(torch.cat([trigger, intent], dim=-1))  # eq. 6
        return self.attention.one_per_request(q_int, sequence, mask)  # eq. 7-8


class ExplicitIntent(nn.Module):
    """E2: the behaviours that resemble the trigger, read by the candidate, eq. 9-10.

    Those are the related ones of the inputs, found by multimodal similarity as in the paper. By our switch `related_by`
    they are instead the part of the history that has the trigger's leaf category, as DIHN, DEI2N and DIAN read it.
    """

    def __init__(self, config: DaianConfig, behaviours: BehaviourTables) -> None:
        super().__init__()
        self.self_attention = SelfAttention(behaviours.behaviour_width, config.width, config.n_heads)
        self.attention = TargetAttention(behaviours.item_width, config.width, config.width, config.n_heads)

    def keys_values(self, related: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of Ẽ_sub, once per request."""
        sub = self.self_attention(related, mask)  # eq. 9
        return self.attention.keys_values(sub)


class HybridSimilarityEnhancer(nn.Module):
    """HSE: e_sim, semantic where ids are weak and collaborative where they are strong, eq. 11-14.

    Its projection has no bias: with one, an id that was never seen would look strong, and the ratio mean nothing.
    """

    def __init__(self, config: DaianConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.stop = config.hse_stop
        self.product = config.hse_product
        width = config.similarity_width
        self.semantic = SimilarityBins(sizes.level_edges, config.n_similarity_bins, width)
        self.trigger_id = nn.Linear(config.widths.id, width, bias=False)
        self.candidate_id = nn.Linear(config.widths.id, width, bias=False)
        self.product_id = nn.Linear(config.widths.id, width, bias=False) if config.hse_product else None
        self.out = nn.Linear(width, width, bias=False)
        # Glorot's wider draw would make ids that were never trained look half as strong as their meaning.
        keep_start(*(module for module in self.modules() if isinstance(module, nn.Linear)))

    def forward(self, trigger_id: Tensor, candidate_id: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """e_sim [N d_s] and λ [N]. `trigger_id` is one row per candidate or a single row."""
        e_col = self.collaborative(trigger_id, candidate_id)
        e_sem = self.semantic(similarity)
        ratio = norm_ratio(e_sem.detach() if self.stop == "ratio_both" else e_sem, e_col)
        return mix(ratio, e_sem, e_col), ratio

    def collaborative(self, trigger_id: Tensor, candidate_id: Tensor) -> Tensor:
        """e_col = MLP_proj(e_r^id ⊕ e_a^id), eq. 12; its first layer is the sum of a term of each id."""
        if self.stop == "ids":
            trigger_id, candidate_id = trigger_id.detach(), candidate_id.detach()
        hidden = self.candidate_id(candidate_id) + self.trigger_id(trigger_id)
        if self.product_id is not None:
            hidden = hidden + self.product_id(candidate_id * trigger_id)
        e_col: Tensor = self.out(torch.relu(hidden))
        return e_col


def norm_ratio(e_sem: Tensor, e_col: Tensor) -> Tensor:
    """λ = |e_sem| / (|sg(e_col)| + |e_sem|), eq. 13: [N]. 0 without a vector to compare: e_sem is zero there."""
    semantic = torch.linalg.vector_norm(e_sem, dim=-1)
    collaborative = torch.linalg.vector_norm(e_col.detach(), dim=-1)
    # Not "+ 1e-8": the exporter's optimiser takes so small a constant for zero and leaves 0/0.
    ratio: Tensor = semantic / (collaborative + semantic).clamp_min(1e-6)
    return ratio


def mix(ratio: Tensor, e_sem: Tensor, e_col: Tensor) -> Tensor:
    """e_sim = λ e_sem + (1 - λ) e_col, eq. 14."""
    weight = ratio.unsqueeze(-1)
    return weight * e_sem + (1.0 - weight) * e_col


class IntentAwareGate(nn.Module):
    """IA2N: w = GateNU(MLP(e_sim ⊕ sg(H_imp) ⊕ sg(H_exp))), eq. 15-16. Starts as w = 1."""

    def __init__(self, config: DaianConfig) -> None:
        super().__init__()
        self.shared = config.gate_shared
        self.first = SplitLinear(config.width, config.similarity_width + config.width, config.width)
        self.gate = GateNU(config.width, config.width, config.width if config.gate_shared else 2 * config.width)

    def request_part(self, h_imp: Tensor) -> Tensor:
        """The first layer's product with sg(H_imp), once per request."""
        return self.first.request_part(h_imp.detach())

    def forward(self, request_part: Tensor, e_sim: Tensor, h_exp: Tensor) -> tuple[Tensor, Tensor]:
        """w_imp and w_exp, [N W] each."""
        x = torch.relu(self.first(request_part, torch.cat([e_sim, h_exp.detach()], dim=-1)))
        w = self.gate(x)
        if self.shared:
            return w, w
        w_imp, w_exp = w.chunk(2, dim=-1)
        return w_imp, w_exp


class Daian(nn.Module):
    """z = MLP(E_u ⊕ E_ctx ⊕ e_r ⊕ e_a ⊕ DIN(e_a; E_seq) ⊕ Ĥ_imp ⊕ Ĥ_exp)."""

    def __init__(self, config: DaianConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.tables = RequestTables(sizes, config.widths, context=True)
        behaviours = self.tables.behaviours
        item, behaviour = behaviours.item_width, behaviours.behaviour_width
        # Only H_imp reads the intent: without DIE a UIM would learn for no one.
        self.uim = UserIntentModule(config, sizes, self.tables) if config.use_die else None
        self.base = DinAttention(item, behaviour, config.attention, config.attention_hidden)
        candidate_width = item + behaviour
        if config.use_die:
            n_intent = 1 if config.intent_form == "score" else sizes.n_levels
            self.leaf = leaf_column(sizes, "DAIAN") if config.related_by == "category" else None
            self.implicit = ImplicitIntent(config, behaviours, n_intent)
            self.explicit = ExplicitIntent(config, behaviours)
            candidate_width += 2 * config.width
        if config.use_sein:
            self.enhancer = HybridSimilarityEnhancer(config, sizes)
        if self._gated:
            self.gate = IntentAwareGate(config)
        if self._concatenates_similarity:
            candidate_width += config.similarity_width
        request_width = self.tables.user.width + self._context().width + item
        self.top = TopMlp(request_width, candidate_width, config.top, config.dropout)

    @property
    def _gated(self) -> bool:
        return self.config.use_die and self.config.use_sein

    @property
    def _concatenates_similarity(self) -> bool:
        # Without DIE there is nothing to scale, so SEIN's similarity has no other way in.
        return self.config.use_sein and (self.config.concat_similarity or not self.config.use_die)

    def _context(self) -> FieldTables:
        assert self.tables.context is not None
        return self.tables.context

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:
        """Intent, H_imp, the keys and values of both attentions, and the request's part of the first dense layers."""
        behaviours = self.tables.behaviours
        trigger = behaviours.item(inputs.trigger_fields)
        sequence = behaviours.behaviours(inputs.history_fields, inputs.history_age)
        mask = inputs.history_age > 0
        parts = [self.tables.user(inputs.user_fields), self._context()(inputs.context_fields), trigger]
        state = {
            "history_keys": sequence,
            "history_terms": self.base.key_part(sequence),
            "history_mask": mask,
            "top": self.top.request_part(torch.cat(parts, dim=-1)),
        }
        if self.uim is not None:
            intent = self.uim(inputs, self.tables)
            if self.config.intent_form == "levels":
                state["intent"] = intent
            used = intent if given_intent is None else given_intent
            state |= self._interests(inputs, trigger, used, sequence, mask)
        if self.config.use_sein:
            state["trigger_id"] = trigger[:, : behaviours.id_width]
        return state

    def _interests(self, inputs: ModelInputs, trigger: Tensor, intent: Tensor, sequence: Tensor, mask: Tensor) -> State:
        if self.leaf is None:
            related = self.tables.behaviours.behaviours(inputs.related_fields, inputs.related_age)
            related_mask = inputs.related_age > 0
        else:
            related, related_mask = sequence, trigger_subsequence(inputs, self.leaf)
        keys, values = self.explicit.keys_values(related, related_mask)
        h_imp = self.implicit(trigger, intent, sequence, mask)
        state = {"implicit": h_imp, "related_keys": keys, "related_values": values, "related_mask": related_mask}
        if self._gated:
            state["gate"] = self.gate.request_part(h_imp)
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits; per candidate the mean gate of both interests and the share of semantics in e_sim."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.tables.behaviours.item(inputs.candidate_fields)
        history = (state["history_keys"], state["history_terms"], state["history_mask"])
        parts = [item, rows.unpad(self.base(rows.pad(item), *history))]
        extras: State = {}
        e_sim = None
        if self.config.use_sein:
            trigger_id = rows.per_candidate(state["trigger_id"])
            candidate_id = item[:, : self.tables.behaviours.id_width]
            e_sim, extras["semantic_share"] = self.enhancer(trigger_id, candidate_id, inputs.candidate_similarity)
        if self.config.use_die:
            parts += self._gated_interests(state, rows, item, e_sim, extras)
        if self._concatenates_similarity and e_sim is not None:
            parts.append(e_sim)
        logits = self.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1))
        return ModelOutputs(logits, extras)

    def _gated_interests(
        self, state: State, rows: CandidateRows, item: Tensor, e_sim: Tensor | None, extras: State
    ) -> list[Tensor]:
        related = (state["related_keys"], state["related_values"], state["related_mask"])
        h_exp = candidates_attend(self.explicit.attention, rows, item, *related)  # eq. 10
        h_imp = rows.per_candidate(state["implicit"])
        if e_sim is None:
            return [h_imp.expand(h_exp.shape[0], -1), h_exp]
        w_imp, w_exp = self.gate(rows.per_candidate(state["gate"]), e_sim, h_exp)
        extras["gate_implicit"] = w_imp.mean(-1)
        extras["gate_explicit"] = w_exp.mean(-1)
        return [w_imp * h_imp, w_exp * h_exp]  # eq. 17-18


def stages(config: DaianConfig) -> tuple[Stage, ...]:
    """Eq. 19-21 as data. Stage 2 sees the true intent, so only requests with a click: for the others any filled-in
    label would tell that nobody clicked. Its gates stand at 1, which makes stage 3 a continuation."""
    network = _click_network(config)
    slow_uim: Mapping[str, float] = MappingProxyType({"uim": config.uim_learning_rate})
    everything = (*network, *_sein(config), *(("uim",) if config.use_die else ()))
    joint = Stage("joint", everything, learning_rates=slow_uim, max_epochs=config.joint_epochs)
    if not config.three_stages:
        # Not the sum of the epochs: those of stages 1 and 2 hold clicked requests only, and would be far shorter.
        return (Stage("joint", everything, as_long_as=stages(replace(config, three_stages=True))),)
    if not config.use_die:
        return (joint,)
    found: list[Stage] = []
    if config.intent_form == "levels":
        tables = ("tables.user", "tables.behaviours") if config.uim_shares_tables else ()
        found.append(Stage("intent", ("uim", *tables), "intent", "none", "clicked", max_epochs=config.uim_epochs))
    return (*found, _die_stage(config, network), joint)


def _die_stage(config: DaianConfig, network: tuple[str, ...]) -> Stage:
    if config.intent_form == "score":  # no label exists for a bare score: it learns from the clicks
        return Stage("interests", (*network, "uim"), requests="clicked", max_epochs=config.die_epochs)
    extra = ("enhancer",) if config.use_sein and config.concat_similarity else ()
    return Stage("interests", (*network, *extra), intent="true", requests="clicked", max_epochs=config.die_epochs)


def _click_network(config: DaianConfig) -> tuple[str, ...]:
    return ("tables", "base", "top", *(("implicit", "explicit") if config.use_die else ()))


def _sein(config: DaianConfig) -> tuple[str, ...]:
    if not config.use_sein:
        return ()
    return ("enhancer", "gate") if config.use_die else ("enhancer",)


SPEC = ModelSpec("daian", "DAIAN, arXiv 2602.13971", DaianConfig, Daian, stages)
