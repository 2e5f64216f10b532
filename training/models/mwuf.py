"""MWUF: Learning to Warm Up Cold Item Embeddings with Meta Scaling and Shifting Networks (Zhu et al., SIGIR 2021), over
DIN.

A cold item's id has seen too few clicks to have a vector of its own. Its vector is made instead:

    v_warm = v_cold ⊙ scale(side fields of the item) + shift(mean vector of the users who clicked it)

Two stages. "base" trains DIN. Then a second table of ids begins, every row the mean of the trained ones, and "meta"
trains, with the base frozen and every shown item treated as if it were cold, that table by the loss with v_cold, and
the two networks by the loss with v_warm (v_cold stopped): no gradient crosses over. At the end the vectors of the cold
items are written into DIN's own table: what is served is a plain DIN.

Left open by the paper, and ours: "cold" is an item shown fewer than `cold_below` times on the training days, as in the
evaluation report; an item that nobody clicked has the mean user. The written vector counts wherever the item appears,
also as trigger and in histories; while the networks learn, these have the base's vectors. Items that the encoder does
not know share one row, which no side field can tell apart: they keep it. The paper knows no trigger: with `use_trigger`
its fields and the candidate's similarity to it are plain features.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.dense_start import keep_start
from training.layers.din_inputs import DinInputs
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.mlp import TopMlp
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State, TrainingFacts

FIRST_KNOWN = 2  # smaller ids are "nothing" and "unknown"
INITIAL_SPREAD = 0.01  # the two networks begin with weights of U(-0.01, 0.01)
BASE, META = "base", "meta"
_CHUNK = 65_536  # clicks or items at once


@dataclass(frozen=True)
class MwufConfig:
    """The two networks have the paper's one hidden layer of 16; everything else is as all rivals share it."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    top: tuple[int, ...] = (512, 256, 128)
    meta_hidden: int = 16
    cold_below: int = 20
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    dropout: float = 0.0
    base_epochs: int = 1
    meta_epochs: int = 1


class Mwuf(nn.Module):
    """DIN, and what makes the vectors of its cold items.

    While the meta stage runs (`warming`), `eval()` puts the warm vectors into DIN's table and `train()` takes them out
    again: whoever scores sees the model as it will be served, and the base stays frozen.
    """

    is_cold: Tensor
    item_fields: Tensor
    mean_clicker: Tensor
    warming: Tensor

    def __init__(self, config: MwufConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.din = DinInputs(
            sizes,
            config.widths,
            config.attention,
            config.attention_hidden,
            config.use_trigger,
            config.n_similarity_bins,
            config.similarity_width,
        )
        self.top = TopMlp(self.din.request_width, self.din.candidate_width, config.top, config.dropout)
        page, width, n_items = self.din.page, config.widths.id, sizes.item[0]
        if page.item_width == width:
            raise ValueError("MWUF scales by an item's side fields, and the items have none: add one to the schema")
        self.cold_ids = table(n_items, width)
        self.scale = _meta_network(page.item_width - width, config.meta_hidden, width)
        self.shift = _meta_network(width, config.meta_hidden, width)
        self.cold_below = config.cold_below
        users = self._user_ids().weight.detach()
        self.register_buffer("is_cold", torch.zeros(n_items, dtype=torch.bool))
        self.register_buffer("item_fields", torch.zeros(n_items, len(sizes.item), dtype=torch.int64))
        self.register_buffer("mean_clicker", users[1:].mean(0).repeat(n_items, 1))
        self.register_buffer("warming", torch.zeros(1, dtype=torch.bool))
        self._trained_rows: Tensor | None = None  # of the cold items, while their warm vectors are in the table

    # ---- DIN, as it is served ---------------------------------------------------------------------------------------

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The history's keys and the request's part of the first dense layer."""
        return {**self.din.history(inputs), "top": self.top.request_part(self.din.page.request(inputs))}

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        return ModelOutputs(self._logits(rows, state, inputs, self.din.page.item(inputs)), {})

    def _logits(
        self, rows: CandidateRows, state: State, inputs: ModelInputs, item: Float[Tensor, "N I"]
    ) -> Float[Tensor, " N"]:
        logits: Tensor = self.top(rows.per_candidate(state["top"]), self.din.candidates(rows, state, inputs, item))
        return logits

    # ---- what makes warm vectors ------------------------------------------------------------------------------------

    def own_loss(self, stage: str, batch: LabelledInputs) -> Float[Tensor, ""]:
        """Of the meta stage: the click loss with v_cold, which moves the new table, and that with v_warm."""
        if stage != META:
            raise ValueError(f"MWUF has a loss of its own in the stage {META!r}, not in {stage!r}")
        inputs = batch.inputs
        state = self.encode_request(inputs)
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        ids, side = inputs.candidate_fields[:, 0], self._side(self.din.page.item(inputs))
        cold = self.cold_ids(ids)
        warm = self.warmed(cold.detach(), side, self.mean_clicker[ids])
        losses = [
            batch.click_loss(self._logits(rows, state, inputs, torch.cat([vectors, side], dim=-1)))
            for vectors in (cold, warm)
        ]
        return losses[0] + losses[1]

    def warmed(
        self, cold: Float[Tensor, "N D"], side: Float[Tensor, "N S"], clicker: Float[Tensor, "N D"]
    ) -> Float[Tensor, "N D"]:
        """v_cold ⊙ scale(side) + shift(mean clicker)."""
        warm: Tensor = cold * self.scale(side) + self.shift(clicker)
        return warm

    def begin_warming(self, facts: TrainingFacts) -> None:
        """Which items are cold, who clicked them, and a new table in which all are alike."""
        ids = self.din.page.behaviours.item_ids.weight.detach()
        known = torch.arange(len(ids)) >= FIRST_KNOWN
        self.is_cold.copy_((torch.from_numpy(facts.item_impressions) < self.cold_below) & known)
        self.item_fields.copy_(torch.from_numpy(facts.item_fields))
        clicks = torch.from_numpy(facts.click_user), torch.from_numpy(facts.click_item)
        self.mean_clicker.copy_(mean_clickers(self._user_ids().weight.detach(), *clicks, len(ids)))
        with torch.no_grad():
            self.cold_ids.weight[1:] = ids[FIRST_KNOWN:].mean(0)
        self.warming.fill_(True)

    @torch.no_grad()
    def write_warm_vectors(self) -> None:
        """Into DIN's table, in the place of what the cold items' ids had learnt."""
        behaviours = self.din.page.behaviours
        for ids in torch.nonzero(self.is_cold).flatten().split(_CHUNK):  # type: ignore[no-untyped-call]
            side = self._side(behaviours.item(self.item_fields[ids]))
            behaviours.item_ids.weight[ids] = self.warmed(self.cold_ids(ids), side, self.mean_clicker[ids])

    def end_warming(self) -> None:
        """From here on the model is a plain DIN."""
        self.train()
        self.write_warm_vectors()
        self.warming.fill_(False)

    @torch.no_grad()
    def train(self, mode: bool = True) -> "Mwuf":
        """Also puts the warm vectors into the table, or takes them out."""
        super().train(mode)
        rows = self.din.page.behaviours.item_ids.weight
        if mode and self._trained_rows is not None:
            rows[self.is_cold] = self._trained_rows
            self._trained_rows = None
        elif not mode and bool(self.warming) and self._trained_rows is None:
            self._trained_rows = rows[self.is_cold].clone()
            self.write_warm_vectors()
        return self

    def _side(self, item: Float[Tensor, "N I"]) -> Float[Tensor, "N S"]:
        """An item's fields but its id."""
        return item[:, self.cold_ids.embedding_dim :]

    def _user_ids(self) -> nn.Embedding:
        first = self.din.page.user.tables[0]
        assert isinstance(first, nn.Embedding)
        return first


def _meta_network(width: int, hidden: int, out: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
    for parameter in layers.parameters():
        nn.init.uniform_(parameter, -INITIAL_SPREAD, INITIAL_SPREAD)
    keep_start(*layers)  # the paper's own, near zero: scale and shift, and so a warm vector, begin near 0
    return layers


def mean_clickers(
    users: Float[Tensor, "U D"], click_user: Int64[Tensor, " E"], click_item: Int64[Tensor, " E"], n_items: int
) -> Float[Tensor, "M D"]:
    """The mean vector of the users behind each item's clicks; the mean of all users for an item without a click."""
    sums = users.new_zeros(n_items, users.shape[1])
    for start in range(0, len(click_user), _CHUNK):
        sums.index_add_(0, click_item[start : start + _CHUNK], users[click_user[start : start + _CHUNK]])
    counts = torch.bincount(click_item, minlength=n_items).unsqueeze(1)
    return torch.where(counts > 0, sums / counts.clamp_min(1), users[1:].mean(0))


def before_stage(model: Mwuf, stage: str, facts: TrainingFacts) -> None:
    """The meta stage begins on a trained base."""
    if stage == META:
        model.begin_warming(facts)


def after_training(model: Mwuf, facts: TrainingFacts) -> None:  # noqa: ARG001
    """What is saved is a plain DIN with warm vectors."""
    model.end_warming()


def stages(config: MwufConfig) -> tuple[Stage, ...]:
    """The base by clicks, then the new table and the two networks by the model's own loss; both chosen by ranking."""
    return (
        Stage(BASE, trains=("din", "top"), loss="click", intent="none", max_epochs=config.base_epochs),
        Stage(META, trains=("cold_ids", "scale", "shift"), loss="own", intent="none", max_epochs=config.meta_epochs),
    )


SPEC = ModelSpec(
    "mwuf",
    "Zhu et al., Learning to Warm Up Cold Item Embeddings, SIGIR 2021",
    MwufConfig,
    Mwuf,
    stages,
    before_stage=before_stage,
    after_training=after_training,
)
