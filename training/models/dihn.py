"""DIHN: Deep Interest Highlight Network (Shen et al., WWW 2022).

UIN estimates how much the user came for what the trigger is, FEM blends trigger and candidate by its gate into one
query, HIEM reads the history twice: sub-sequences that share a value with the trigger (HSM, fused by FIM), and the
whole of it by the blended query (SSM). Of all this only the blend and the last pooling belong to a candidate.

Where paper and authors' code disagree (their repository): HSM is eq. 4-6's additive attention over positions, not a
self-attention averaged over padding too; each sub-sequence has its own mask, not that of the whole; FIM exists;
up to three attributes, not two; the gate is bounded (linear in the code). Eq. 10 prints the softmax's bracket after V:
the scale is of QK^T alone. The text ends in a ReLU and the code in a bare logit: one logit here.

Our assumptions. VT_x is a sigmoid layer, as a blend needs. E_u is brought to the behaviours' width for FIM by a linear
map. Positions count from the newest behaviour. Attributes are the leaf category and then the schema's other item fields
but the id, in its order. Eq. 13 by the letter: α = 1 on UIN's loss, β = 0.8 on the clicks'. Context enters the top
network (as in the code), and so does the candidate's binned similarity to the trigger, which all compared models get.

The label of UIN, `label`. "page" is shared by all impressions of a page: 1 for a click on the trigger or an item of its
leaf category, so 0 without a click. It is a deviation, for it is DIAN's label: the industrial one of this paper counts
clicks on the trigger alone, and here the trigger need not stand among the candidates. "candidate" is the paper's for
its Alimama experiments, "candidate and trigger are of one category", which differs between candidates that UIN cannot
see: its best answer is a prior of the category.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import DinAttention
from training.layers.categories import any_click_like_trigger, leaf_column, same_value, trigger_subsequence
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.encoder_block import HistoryEncoder
from training.layers.fusion import AttentiveFusion
from training.layers.mlp import Mlp, TopMlp
from training.layers.page_tables import PageTables
from training.layers.position_pooling import PositionPooling, places
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State


@dataclass(frozen=True)
class DihnConfig:
    """Defaults are the paper's, and its code's where the paper gives no number.

    label: "page" deviates from the paper, see above. uin_loss, click_loss: α and β of eq. 13; uin_loss 0 is the
    ablation of UIN's loss. use_hsm: False is the ablation. gate: "scalar" blends by p(x) in the place of VT_x, the
    paper's other ablation.
    """

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    label: Literal["page", "candidate"] = "page"
    uin_loss: float = 1.0
    click_loss: float = 0.8
    gate: Literal["vector", "scalar"] = "vector"
    use_hsm: bool = True
    n_attributes: int = 3
    n_places: int = 50  # further back all places are one
    place_width: int = 8
    uin_hidden: tuple[int, ...] = (256,)
    width: int = 56  # of SSM's encoder and HSM's attention; the feed-forward layer is twice as wide
    n_heads: int = 2
    n_layers: int = 2
    top: tuple[int, ...] = (512, 256, 128)
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    max_epochs: int = 1


class UserIntentNetwork(nn.Module):
    """UIN: x = [V_U; E_u; E_t] through dense layers to VT_x, and on to the logit of p(x), eq. 1. Sees no candidate."""

    def __init__(self, config: DihnConfig, tables: PageTables) -> None:
        super().__init__()
        item, behaviour = tables.item_width, tables.behaviour_width
        self.pool = DinAttention(item, behaviour, config.attention, config.attention_hidden)
        self.hidden = Mlp(behaviour + tables.user.width + item, config.uin_hidden, None, config.dropout)
        self.gate = nn.Linear(self.hidden.out_width, item)
        # With neither a loss on p(x) nor a use for it there is nothing to learn it from.
        says = config.uin_loss > 0 or config.gate == "scalar"
        self.out = nn.Linear(item, 1) if says else None

    def forward(self, user: Tensor, trigger: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """VT_x [R I] in (0, 1) and the logit of p(x) [R 1]."""
        pooled = self.pool.one_per_request(trigger, keys, mask)  # eq. 1
        gate = torch.sigmoid(self.gate(self.hidden(torch.cat([pooled, user, trigger], dim=-1))))
        return gate, None if self.out is None else self.out(gate)


class HardSequences(nn.Module):
    """HSM and FIM: EH_b of the sub-sequences that share the trigger's category, price bin, ..., eq. 4-8."""

    def __init__(self, config: DihnConfig, tables: PageTables, columns: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = columns
        self.n_places = config.n_places
        width = tables.behaviour_width
        self.places = table(config.n_places + 1, config.place_width)
        self.pools = nn.ModuleList(PositionPooling(config.place_width, width, config.width) for _ in columns)
        self.user = nn.Linear(tables.user.width, width) if tables.user.width else None
        self.fusion = AttentiveFusion(len(columns) + (self.user is not None), width)

    def forward(self, inputs: ModelInputs, user: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """EH_b [R B]."""
        positions = self.places(places(mask, self.n_places))
        parts = [] if self.user is None else [self.user(user)]
        for column, pool in zip(self.columns, self.pools, strict=True):
            parts.append(pool(positions, keys, trigger_subsequence(inputs, column)))
        fused: Tensor = self.fusion(torch.stack(parts, dim=1))
        return fused


class Dihn(nn.Module):
    """z = MLP(ES_b ⊕ EH_b ⊕ E_u ⊕ E_ctx ⊕ E_t ⊕ E_i ⊕ e_sem)."""

    def __init__(self, config: DihnConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.leaf = leaf_column(sizes, "DIHN")
        self.tables = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        tables = self.tables
        self.uin = UserIntentNetwork(config, tables)
        request_width = tables.request_width
        if config.use_hsm:
            others = (column for column in range(1, len(sizes.item)) if column != self.leaf)
            self.hsm = HardSequences(config, tables, (self.leaf, *others)[: config.n_attributes])
            request_width += tables.behaviour_width
        self.encoder = HistoryEncoder(
            tables.behaviour_width, config.width, 2 * config.width, config.n_heads, config.n_layers
        )
        self.pool = DinAttention(tables.item_width, config.width, config.attention, config.attention_hidden)
        self.top = TopMlp(request_width, tables.candidate_width + config.width, config.top, config.dropout)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The gate and its half of the blend, the encoded history, and the request's part of the first dense layer."""
        keys, mask = self.tables.history(inputs)
        user, trigger = self.tables.user(inputs.user_fields), self.tables.trigger(inputs)
        gate, logit = self.uin(user, trigger, keys, mask)
        if self.config.gate == "scalar":
            assert logit is not None
            gate = torch.sigmoid(logit).expand_as(trigger)
        encoded = self.encoder(keys, mask)
        parts = [self.tables.request(inputs)]
        if self.config.use_hsm:
            parts.append(self.hsm(inputs, user, keys, mask))
        state = {
            "from_trigger": gate * trigger,
            "of_candidate": 1.0 - gate,
            "history_keys": encoded,
            "history_terms": self.pool.key_part(encoded),
            "history_mask": mask,
            "top": self.top.request_part(torch.cat(parts, dim=-1)),
        }
        return state if logit is None else {**state, "entering": logit}

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits, and p(x) of the candidate's request."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        item = self.tables.item(inputs)
        blend = rows.per_candidate(state["from_trigger"]) + rows.per_candidate(state["of_candidate"]) * item  # eq. 3
        history = (state["history_keys"], state["history_terms"], state["history_mask"])
        soft = rows.unpad(self.pool(rows.pad(blend), *history))  # eq. 11-12
        candidate = torch.cat([self.tables.candidate(inputs, item), soft], dim=-1)
        logits = self.top(rows.per_candidate(state["top"]), candidate)
        if "entering" not in state:
            return ModelOutputs(logits, {})
        entering = rows.per_candidate(state["entering"]).squeeze(-1).expand_as(logits)
        return ModelOutputs(logits, {"entering": torch.sigmoid(entering)})

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:  # noqa: ARG002
        """α·BCE(y_trig, p(x)) + β·BCE(y, ŷ), both over the impressions (eq. 2, 13)."""
        state = self.encode_request(batch.inputs)
        logits = self.score(state, batch.inputs).logits
        loss = self.config.click_loss * batch.click_loss(logits)
        if self.config.uin_loss == 0:
            return loss
        entering = state["entering"].squeeze(-1)[batch.inputs.candidate_request]
        of_intent = functional.binary_cross_entropy_with_logits(entering, self._trigger_labels(batch))
        return loss + self.config.uin_loss * of_intent

    def _trigger_labels(self, batch: LabelledInputs) -> Tensor:
        """y_trig, one per impression."""
        inputs = batch.inputs
        owner = inputs.candidate_request
        if self.config.label == "page":
            return any_click_like_trigger(inputs, batch.clicks, self.leaf)[owner]
        same = same_value(inputs.candidate_fields[:, self.leaf], inputs.trigger_fields[owner, self.leaf])
        return same.to(batch.clicks.dtype)


def stages(config: DihnConfig) -> tuple[Stage, ...]:
    """One stage: both losses together."""
    return (Stage("clicks", trains=("",), loss="own", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("dihn", "Shen et al., Deep Interest Highlight Network, WWW 2022", DihnConfig, Dihn, stages)
