"""TARQ-lite: target attention by residual quantisation, for pre-ranking (arXiv 2509.16931), of which the public text
tells only a part.

Known, and done here: what target attention gives, at about the cost of a product of vectors; a teacher with target
attention, H = MHA(X, X, X), h = MHA(x_item, H, H), and a student; an item autoencoder with residual quantisation;
codebooks made personal. Ours, because the paper's choices are not known: three levels of 256 codes of width 32, codes
that follow by moving means after k-means, the losses and their weights, two stages (teacher; student), and the reading
of "personal": once per request every code attends to the user's history, t_j = MHTA(c_j; trigger ⊕ E_seq), and a
candidate's h is the sum of the t_j of its codes. Attention is not additive in the query, so the student is trained to
make that sum do. For a page below a trigger the trigger is the first token of the sequence, and the candidate's
similarity to it a feature, as in all models that are compared here. The numbers of this file are not the paper's.

The encoder of the autoencoder is a sum of one vector per item field, not a network: with fixed-point codes
(`layers.quantiser`) the exported graph then takes the very codes that PyTorch takes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import SelfAttention, TargetAttention, candidates_attend
from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths, table
from training.layers.mlp import Mlp, TopMlp
from training.layers.page_tables import PageTables
from training.layers.quantiser import ResidualQuantiser
from training.layers.ragged import CandidateRows
from training.models.spec import LabelledInputs, ModelOutputs, ModelSpec, Stage, State, TrainingFacts

# Item vectors begin with this spread in every column: a good part of what the fixed point of the codes can tell apart.
CODED_SPREAD = 0.25


@dataclass(frozen=True)
class TarqLiteConfig:
    """`width`, `n_heads` and `top` are the teacher's; the rest is the student's. commitment: weight of ||z - ẑ||²."""

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    width: int = 128
    n_heads: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    n_similarity_bins: int = 20
    similarity_width: int = 16
    code_width: int = 32
    code_heads: int = 2
    n_levels: int = 3
    n_codes: int = 256
    code_decay: float = 0.99
    student_top: tuple[int, ...] = (64, 32)
    distillation: float = 1.0
    commitment: float = 0.25
    teacher_epochs: int = 1
    student_epochs: int = 1


class Teacher(nn.Module):
    """Target attention in full: H = SelfAttention(X), h = MHTA(e_a; H), z = MLP(request ⊕ candidate ⊕ h)."""

    def __init__(self, config: TarqLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.tables = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        self.self_attention = SelfAttention(self.tables.behaviour_width, config.width, config.n_heads)
        self.attention = TargetAttention(self.tables.item_width, config.width, config.width, config.n_heads)
        width = self.tables.candidate_width + config.width
        self.top = TopMlp(self.tables.request_width, width, config.top)

    def forward(self, inputs: ModelInputs, rows: CandidateRows) -> tuple[Tensor, Tensor]:
        """Logits [N], and h [N W]."""
        sequence, mask = trigger_and_history(self.tables, inputs)
        keys, values = self.attention.keys_values(self.self_attention(sequence, mask))
        item = self.tables.item(inputs)
        attended = candidates_attend(self.attention, rows, item, keys, values, mask)
        request = rows.per_candidate(self.top.request_part(self.tables.request(inputs)))
        return self.top(request, torch.cat([self.tables.candidate(inputs, item), attended], dim=-1)), attended


class ItemAutoencoder(nn.Module):
    """z_a = Σ_f T_f[field f], its codes, and the way back to the item's vector."""

    def __init__(self, config: TarqLiteConfig, sizes: EncoderSizes, item_width: int) -> None:
        super().__init__()
        self.fields = nn.ModuleList(table(n_ids, config.code_width) for n_ids in sizes.item)
        self.quantiser = ResidualQuantiser(config.code_width, config.n_levels, config.n_codes, config.code_decay)
        self.decoder = Mlp(config.code_width, (2 * config.code_width,), item_width)

    def forward(self, fields: Tensor) -> Tensor:
        """z [N D]."""
        z: Tensor = self.fields[0](fields[:, 0])
        for place in range(1, len(self.fields)):
            z = z + self.fields[place](fields[:, place])
        return z

    @torch.no_grad()
    def start_from(self, tables: PageTables) -> None:
        """Begins where the teacher's item vectors are, turned at random into the codes' width: distances stay."""
        width = self.quantiser.codes.shape[2]
        turned = [weight @ torch.randn(weight.shape[1], width) for weight in tables.behaviours.items.parameters()]
        known = [rows[2:] for rows in turned if len(rows) > 2]  # without "nothing" and "unknown"
        spread = sum((rows.var(0, correction=0).mean() for rows in known), torch.zeros(())).sqrt()
        for weight, rows in zip(self.fields.parameters(), turned, strict=True):
            weight.copy_(rows * (CODED_SPREAD / spread.clamp_min(1e-6)))
            weight[0].zero_()


class Student(nn.Module):
    """What serves: the codes' table of a request, and for a candidate a few rows of it and a small network."""

    def __init__(self, config: TarqLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.tables = PageTables(sizes, config.widths, True, config.n_similarity_bins, config.similarity_width)
        self.items = ItemAutoencoder(config, sizes, self.tables.item_width)
        self.attention = TargetAttention(
            config.code_width, self.tables.behaviour_width, config.code_width, config.code_heads
        )
        width = self.tables.candidate_width + config.code_width
        self.top = TopMlp(self.tables.request_width, width, config.student_top)
        self.to_teacher = nn.Linear(config.code_width, config.width, bias=False)

    def attended(self, state: State, rows: CandidateRows, chosen: Tensor) -> Tensor:
        """h ≈ Σ_l t^l_{k_l(a)} [N D]: rows of the request's table where there is one request, else made for these."""
        if rows.n_requests == 1:
            return state["code_table"][0][chosen].sum(1)
        n, n_levels = chosen.shape
        codes = rows.pad(self.items.quantiser.all_codes()[chosen].reshape(n, -1))
        width = codes.shape[2] // n_levels
        queries = codes.reshape(len(codes), -1, width)
        made = self.attention(queries, state["history_keys"], state["history_values"], state["history_mask"])
        return rows.unpad(made.reshape(len(codes), -1, n_levels, width).sum(2))


class TarqLite(nn.Module):
    """The two-phase model is the student; the teacher is there for training only."""

    def __init__(self, config: TarqLiteConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(config, sizes)
        self.student = Student(config, sizes)

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:  # noqa: ARG002
        """One request (always so when serving): t_j of all codes. Several: the keys and values to make them with.

        A batch's candidates use a few of the codes of their request: to make all of them would be the larger part of a
        training step. Both ways give the same h.
        """
        student = self.student
        sequence, mask = trigger_and_history(student.tables, inputs)
        keys, values = student.attention.keys_values(sequence)
        top = student.top.request_part(student.tables.request(inputs))
        if len(top) > 1:
            return {"history_keys": keys, "history_values": values, "history_mask": mask, "top": top}
        codes = student.items.quantiser.all_codes().unsqueeze(0)
        return {"code_table": student.attention(codes, keys, values, mask), "top": top}

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """Logits of the candidates."""
        rows = CandidateRows.of(inputs.candidate_request, state["top"].shape[0])
        chosen = self.student.items.quantiser.choose(self.student.items(inputs.candidate_fields))
        return ModelOutputs(self._logits(state, rows, inputs, self.student.attended(state, rows, chosen)), {})

    def _logits(self, state: State, rows: CandidateRows, inputs: ModelInputs, attended: Tensor) -> Tensor:
        tables, top = self.student.tables, self.student.top
        candidate = tables.candidate(inputs, tables.item(inputs))
        logits: Tensor = top(rows.per_candidate(state["top"]), torch.cat([candidate, attended], dim=-1))
        return logits

    def own_loss(self, stage: str, batch: LabelledInputs) -> Tensor:
        """Teacher: BCE. Student: BCE + ||W h - sg(h_teacher)||² + reconstruction + commitment; the codes follow."""
        inputs = batch.inputs
        rows = CandidateRows.of(inputs.candidate_request, len(inputs.user_fields))
        if stage == "teacher":
            return batch.click_loss(self.teacher(inputs, rows)[0])
        student, config = self.student, self.config
        with torch.no_grad():
            wanted = self.teacher(inputs, rows)[1]
            item = self.teacher.tables.item(inputs)
        z = student.items(inputs.candidate_fields)
        quantiser = student.items.quantiser
        if self.training:
            quantiser.follow(z)
        chosen = quantiser.choose(z)
        near = quantiser.straight_through(z, chosen)
        state = self.encode_request(inputs)
        attended = student.attended(state, rows, chosen)
        clicks = batch.click_loss(self._logits(state, rows, inputs, attended))
        distilled = squared(student.to_teacher(attended) - wanted)
        coded = squared(student.items.decoder(near) - item) + config.commitment * squared(z - near.detach())
        return clicks + config.distillation * distilled + coded


def trigger_and_history(tables: PageTables, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """The trigger as the first token, of no age, then the behaviours; and which are there."""
    sequence, mask = tables.history(inputs)
    no_age = torch.zeros_like(inputs.trigger_fields[:, :1])
    trigger = tables.behaviours.behaviours(inputs.trigger_fields.unsqueeze(1), no_age)
    return torch.cat([trigger, sequence], dim=1), torch.cat([no_age == 0, mask], dim=1)


def squared(x: Tensor) -> Tensor:
    """||x||², mean over the rows."""
    return x.square().sum(-1).mean()


@torch.no_grad()
def explained(model: TarqLite, batch: LabelledInputs) -> float:
    """R² of the student's attention against the teacher's: 1 - ||W h - h_teacher||² / ||h_teacher - mean||²."""
    inputs = batch.inputs
    rows = CandidateRows.of(inputs.candidate_request, len(inputs.user_fields))
    wanted = model.teacher(inputs, rows)[1]
    student = model.student
    chosen = student.items.quantiser.choose(student.items(inputs.candidate_fields))
    made = student.to_teacher(student.attended(model.encode_request(inputs), rows, chosen))
    return 1 - float(squared(made - wanted) / squared(wanted - wanted.mean(0)))


def before_stage(model: TarqLite, stage: str, facts: TrainingFacts) -> None:  # noqa: ARG001
    """The student begins with the teacher's tables, its codes where the teacher's items lie.

    Where both have the same widths it also takes over the network above, and its h is at first read as the teacher's.
    """
    if stage == "student":
        model.student.tables.load_state_dict(model.teacher.tables.state_dict())
        model.student.items.start_from(model.teacher.tables)
        if shapes(model.student.top) == shapes(model.teacher.top):
            model.student.top.load_state_dict(model.teacher.top.state_dict())
            nn.init.eye_(model.student.to_teacher.weight)


def shapes(module: nn.Module) -> list[torch.Size]:
    """Of its parameters, in order."""
    return [parameter.shape for parameter in module.parameters()]


def stages(config: TarqLiteConfig) -> tuple[Stage, ...]:
    """The teacher first, judged by its own loss: the model's scores are the student's."""
    return (
        Stage("teacher", ("teacher",), "own", selects="own_loss", intent="none", max_epochs=config.teacher_epochs),
        Stage("student", ("student",), "own", intent="none", max_epochs=config.student_epochs),
    )


SPEC = ModelSpec(
    "tarq_lite", "after TARQ, arXiv 2509.16931", TarqLiteConfig, TarqLite, stages, before_stage=before_stage
)
