"""POSO: Personalized Cold Start Modules (Dai et al., 2021) in the network on top of DIN.

x̂ = C · g(code) ⊙ ReLU(W x) for every hidden layer (eq. 11): g is a dense network of two layers that ends in a sigmoid
and sees the personalisation code alone, not the features. A cold item passes through other channels than a warm one.
(DAIAN's gates have the same form, but see the features too.)

The paper finds that a few features that say how cold somebody is are the best code, and that all features are worse
than no POSO. It is about new users; DAIAN's experiments use it for new items. So the code is how often the candidate
was shown on the training days and how many behaviours the user has, both as the number of powers of two below. An item
that the encoder does not know counts as never shown. In training a candidate counts as shown once less than it was: its
own row is among those counted, and without that nothing would ever be "never shown" but when served.

C is not given in the paper; at 2 the mean gate is 1 (ours). The last layer gives one logit and has no gate. The paper
knows no trigger: with `use_trigger` its fields and the candidate's similarity to it are plain features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.din_inputs import DinInputs
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.mlp import SplitLinear
from training.layers.ragged import CandidateRows
from training.models.spec import ModelOutputs, ModelSpec, Stage, State, TrainingFacts

SCALE = 2.0  # C
ITEM_BUCKETS = 22  # the last one: shown a million times or more
HISTORY_BUCKETS = 8
FIRST_KNOWN = 2  # smaller ids are "nothing" and "unknown"


@dataclass(frozen=True)
class PosoConfig:
    """Sizes are those that all rivals share."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    top: tuple[int, ...] = (512, 256, 128)
    code_width: int = 8
    gate_hidden: int = 32
    use_trigger: bool = True
    n_similarity_bins: int = 20
    similarity_width: int = 16
    max_epochs: int = 1


class PosoTop(nn.Module):
    """The dense network with a gate by the code on every hidden layer; request and candidate parts are split."""

    def __init__(
        self, request_width: int, candidate_width: int, hidden: Sequence[int], code_width: int, gate_hidden: int
    ) -> None:
        super().__init__()
        first, *rest = hidden
        self.gate_width = gate_hidden
        self.first = SplitLinear(request_width, candidate_width, first)
        self.layers = nn.ModuleList(nn.Linear(width, size) for width, size in zip(hidden, rest, strict=False))
        self.out = nn.Linear(hidden[-1], 1)
        # The first layers of all gates side by side: the user's half of the code belongs to the request.
        self.gate_inner = SplitLinear(code_width, code_width, gate_hidden * len(hidden), n_layers=len(hidden))
        self.gate_outer = nn.ModuleList(nn.Linear(gate_hidden, size) for size in hidden)

    def request_part(
        self, features: Float[Tensor, "R D"], code: Float[Tensor, "R P"]
    ) -> tuple[Float[Tensor, "R E"], Float[Tensor, "R G"]]:
        """What the request gives to the first layer and to the gates."""
        return self.first.request_part(features), self.gate_inner.request_part(code)

    def gates(self, request_part: Float[Tensor, "_ G"], code: Float[Tensor, "N P"]) -> list[Tensor]:
        """C · g(code) of each hidden layer, in (0, C)."""
        inner = torch.split(torch.relu(self.gate_inner(request_part, code)), self.gate_width, dim=-1)
        return [SCALE * torch.sigmoid(outer(x)) for outer, x in zip(self.gate_outer, inner, strict=True)]

    def forward(
        self, request_part: Float[Tensor, "_ E"], x: Float[Tensor, "N D"], gates: list[Tensor]
    ) -> Float[Tensor, " N"]:
        """Logits."""
        hidden = gates[0] * torch.relu(self.first(request_part, x))
        for layer, gate in zip(self.layers, gates[1:], strict=True):
            hidden = gate * torch.relu(layer(hidden))
        logits: Tensor = self.out(hidden).squeeze(-1)
        return logits


class Poso(nn.Module):
    """DIN below, gated network above. Until the training days are counted every item is as new as can be."""

    item_bucket: Tensor
    others_bucket: Tensor

    def __init__(self, config: PosoConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.inputs = DinInputs(
            sizes,
            config.widths,
            config.attention,
            config.attention_hidden,
            config.use_trigger,
            config.n_similarity_bins,
            config.similarity_width,
        )
        self.item_code = table(ITEM_BUCKETS + 1, config.code_width)
        self.history_code = table(HISTORY_BUCKETS + 1, config.code_width)
        self.top = PosoTop(
            self.inputs.request_width, self.inputs.candidate_width, config.top, config.code_width, config.gate_hidden
        )
        never_shown = bucket(torch.zeros(sizes.item[0], dtype=torch.int64), ITEM_BUCKETS)
        self.register_buffer("item_bucket", never_shown)  # saved with the weights: it is what the codes were learnt for
        self.register_buffer("others_bucket", never_shown.clone())  # by the impressions but one; for training alone

    def count(self, impressions: Int64[Tensor, " M"]) -> None:
        """Sets how often each item was shown, by its id."""
        known = torch.arange(len(impressions)) >= FIRST_KNOWN
        self.item_bucket.copy_(bucket(impressions * known, ITEM_BUCKETS))
        self.others_bucket.copy_(bucket((impressions * known - 1).clamp_min(0), ITEM_BUCKETS))

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """The history's keys and the request's parts of first layer and gates."""
        state = self.inputs.history(inputs)
        code = self.history_code(bucket(state["history_mask"].sum(1), HISTORY_BUCKETS))
        state["top"], state["gates"] = self.top.request_part(self.inputs.page.request(inputs), code)
        return state

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        features = self.inputs.candidates(rows, state, inputs, self.inputs.page.item(inputs))
        buckets = self.others_bucket if self.training else self.item_bucket
        code = self.item_code(buckets[inputs.candidate_fields[:, 0]])
        gates = self.top.gates(rows.per_candidate(state["gates"]), code)
        return ModelOutputs(self.top(rows.per_candidate(state["top"]), features, gates), {})


def bucket(counts: Int64[Tensor, " B"], n_buckets: int) -> Int64[Tensor, " B"]:
    """1 for none, 2 for one, 3 for two or three, 4 for four to seven ...; at most `n_buckets`."""
    powers = 2 ** torch.arange(n_buckets - 1, device=counts.device)
    return 1 + (counts.unsqueeze(-1) >= powers).to(torch.int64).sum(-1)


def count_impressions(model: Poso, stage: str, facts: TrainingFacts) -> None:  # noqa: ARG001
    """Before the stage: the code of every item."""
    model.count(torch.from_numpy(facts.item_impressions))


def stages(config: PosoConfig) -> tuple[Stage, ...]:
    """One stage: click cross-entropy over everything."""
    return (Stage("clicks", trains=("",), loss="click", intent="none", max_epochs=config.max_epochs),)


SPEC = ModelSpec("poso", "Dai et al., POSO, arXiv 2108.04690", PosoConfig, Poso, stages, before_stage=count_impressions)
