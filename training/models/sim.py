"""SIM: Search-based user Interest Modeling with lifelong sequential behaviour data (Pi et al., CIKM 2020).

A general search unit (GSU) picks the behaviours that concern the candidate, an exact search unit (ESU) attends to them:
z = MLP(E_u ⊕ E_ctx [⊕ e_r] ⊕ e_a [⊕ e_sem] ⊕ DIN(e_a; E_seq) ⊕ MHTA(e_a; B*)).

Hard search keeps the behaviours of the candidate's leaf category (eq. 1); soft search the K with the highest
r_t = (W_b e_t)·(W_a e_a), trained by an auxiliary click head on Σ_t r_t e_t ⊕ e_a (eq. 2-3). The loss is
α L_GSU + β L_ESU (eq. 6) with α = β = 1 for soft search, and α = 0 for hard search, which has nothing to learn.

Our assumptions and deviations: the contract carries one sequence, so the paper's short one (DIN over all of it) and its
long one (the searched part of it) are the same, as long as the shop's rules make it; hard search finds at most the
whole of it, so it needs no K. What a search finds is a mask over [R C L], nothing is gathered. The tables are shared
between search and ranking. The search picks, it does not weigh: no gradient of the ranking loss reaches W_a and W_b.
Time enters by the age bin of a behaviour (z_j = e_j ⊕ e_j^time, as published).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import MASKED_SCORE, DinAttention
from training.layers.categories import SearchedAttention, candidate_subsequence, leaf_column
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.layers.mlp import Mlp, TopMlp
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class SimConfig:
    """Defaults are the sizes that all models share in the DAIAN paper's experiments; `n_found` is K of soft search.

    The paper keeps 200 of up to 54,000 behaviours; of the contract's 50 we keep 10.
    """

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    search: Literal["hard", "soft"] = "hard"
    attention: Literal["mlp", "dot"] = "mlp"  # the short-term interest's DIN unit
    attention_hidden: tuple[int, ...] = (80, 40)
    n_heads: int = 4
    width: int = 128
    top: tuple[int, ...] = (512, 256, 128)
    n_found: int = 10
    search_width: int = 32
    search_hidden: tuple[int, ...] = (128, 64)
    search_weight: float = 1.0  # α
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


def best(scores: Tensor, mask: Tensor, n_found: int) -> Tensor:
    """bool [R C L]: the `n_found` highest of `scores` [R C L] among what is there (`mask` [R 1 L]); all when fewer."""
    # Places behind the sequence's end, so that there are always K to take: the exporter has no min(K, L) for a free L.
    there = functional.pad(torch.where(mask, scores, MASKED_SCORE), (0, n_found), value=MASKED_SCORE)
    chosen = torch.zeros_like(there).scatter(-1, there.topk(n_found, dim=-1).indices, 1.0)
    return (chosen[..., : scores.shape[-1]] > 0) & mask


class SoftSearch(nn.Module):
    """r_t = (W_b e_t)·(W_a e_a), eq. 2, and the click head that teaches it, eq. 3."""

    def __init__(self, config: SimConfig, item: int, behaviour: int) -> None:
        super().__init__()
        self.behaviour = nn.Linear(behaviour, config.search_width, bias=False)
        self.item = nn.Linear(item, config.search_width, bias=False)
        self.head = Mlp(behaviour + item, config.search_hidden, 1, config.dropout)

    def scores(self, items: Tensor, mapped: Tensor) -> Tensor:
        """r [R C L] of C candidates over the mapped behaviours."""
        r: Tensor = self.item(items) @ mapped.transpose(1, 2)
        return r

    def logits(self, items: Tensor, mapped: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """The auxiliary head's logits [R C 1]: all behaviours, weighted by r, and the candidate."""
        weights = self.scores(items, mapped) * mask.unsqueeze(1).to(keys.dtype)
        logits: Tensor = self.head(torch.cat([weights @ keys, items], dim=-1))
        return logits


class Sim(nn.Module):
    """Two-stage interest: searched by the candidate, then attended to by it."""

    def __init__(self, config: SimConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.page = PageTables(
            sizes, config.widths, config.use_trigger, config.n_similarity_bins, config.similarity_width
        )
        item, behaviour = self.page.item_width, self.page.behaviour_width
        self.short = DinAttention(item, behaviour, config.attention, config.attention_hidden)
        self.exact = SearchedAttention(item, behaviour, config.width, config.n_heads)
        self.search = SoftSearch(config, item, behaviour) if config.search == "soft" else None
        self.leaf = leaf_column(sizes, "SIM with hard search") if config.search == "hard" else 0
        candidate_width = self.page.candidate_width + behaviour + config.width
        self.top = TopMlp(self.page.request_width, candidate_width, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """Keys of both attentions, what the search compares, and the request's part of the first dense layer."""
        keys, mask = self.page.history(inputs)
        exact_keys, exact_values = self.exact.keys_values(keys)
        searched = inputs.history_fields[..., self.leaf] if self.search is None else self.search.behaviour(keys)
        return {
            "history_keys": keys,
            "history_terms": self.short.key_part(keys),
            "history_mask": mask,
            "exact_keys": exact_keys,
            "exact_values": exact_values,
            "searched": searched,
            "top": self.top.request_part(self.page.request(inputs)),
        }

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.page.item(inputs)
        items = rows.pad(item)
        mask = state["history_mask"]
        short = self.short(items, state["history_keys"], state["history_terms"], mask)
        found = self._found(state, rows, items, inputs)
        exact = self.exact(items, state["exact_keys"], state["exact_values"], found)
        parts = [self.page.candidate(inputs, item), rows.unpad(short), rows.unpad(exact)]
        return ModelOutputs(self.top(rows.per_candidate(state["top"]), torch.cat(parts, dim=-1)), {})

    def _found(self, state: State, rows: CandidateRows, items: Tensor, inputs: ModelInputs) -> Tensor:
        """B*: bool [R C L]."""
        mask = state["history_mask"]
        if self.search is None:  # eq. 1, hard
            return candidate_subsequence(rows, inputs.candidate_fields[:, self.leaf], state["searched"], mask)
        return best(self.search.scores(items, state["searched"]), mask.unsqueeze(1), self.config.n_found)

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """α L_GSU + L_ESU (eq. 6): clicks by both heads of soft search."""
        assert self.search is not None
        inputs = batch.inputs
        state = self.encode_request(inputs)
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        items = rows.pad(self.page.item(inputs))
        general = rows.unpad(
            self.search.logits(items, state["searched"], state["history_keys"], state["history_mask"])
        ).squeeze(-1)
        ranked = batch.click_loss(self.score(state, inputs).logits)
        searched = batch.click_loss(general)
        return ranked + self.config.search_weight * searched


def stages(config: SimConfig) -> tuple[Stage, ...]:
    """One stage: clicks; the search's head joins in for soft search."""
    loss: Literal["click", "own"] = "own" if config.search == "soft" else "click"
    return (Stage("clicks", trains=("",), loss=loss, intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("sim", "Pi et al., Search-based User Interest Modeling, CIKM 2020", SimConfig, Sim, stages)
