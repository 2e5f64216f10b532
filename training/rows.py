"""The rows of the table of rivals: every model, with its variants and ablations, at any size. `recipes` makes the runs.

A row is a function from a `Size` to a model's config, so that all rows of one table share widths, top network and
training budget and differ in what they are. What a paper says about such sizes gives way to the table's, in `paper/`
too: the docstring of a row names the defaults of its model that are changed. A new model is a line in `ROWS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from training.layers.embedding import DEFAULT_WIDTHS, EmbeddingWidths
from training.models.amen_lite import AmenLiteConfig
from training.models.ccn_lite import CcnLiteConfig
from training.models.daian import DaianConfig
from training.models.deepfm import DeepFmConfig
from training.models.dei2n import Dei2nConfig
from training.models.dian import DianConfig
from training.models.dien import DienConfig
from training.models.dihn import DihnConfig
from training.models.din import DinConfig
from training.models.mian import MianConfig
from training.models.mwuf import MwufConfig
from training.models.nif_lite import NifLiteConfig
from training.models.poso import PosoConfig
from training.models.r3s import R3sConfig
from training.models.sim import SimConfig
from training.models.tarq_lite import TarqLiteConfig
from training.models.wdl import WdlConfig


@dataclass(frozen=True)
class Size:
    """What all rows of a table share.

    attention_hidden: layers of DIN's unit, where a model has one. similarity_width: of the binned similarity, which
    all models get. hybrid_width: DAIAN's d_s. n_cross_buckets: WDL's, for each of its crosses. epochs: the budget, in
    passes over the training requests. A model of several stages spends it over its stages; all stop early by
    validation.
    """

    widths: EmbeddingWidths = DEFAULT_WIDTHS
    attention: Literal["mlp", "dot"] = "mlp"
    attention_hidden: tuple[int, ...] = (80, 40)
    width: int = 128
    n_heads: int = 4
    top: tuple[int, ...] = (512, 256, 128)
    similarity_width: int = 16
    hybrid_width: int = 64
    n_cross_buckets: int = 2**18
    epochs: int = 4
    uim_learning_rate: float = 0.1


@dataclass(frozen=True)
class Row:
    """One line of the table.

    title: as the report prints it. group: the part of the table it stands in. ablation_of: the row of the whole model.
    """

    title: str
    group: Literal["trigger-free", "trigger as a feature", "trigger-induced", "lite", "daian", "ablation"]
    config: Callable[[Size], Any]
    ablation_of: str | None = None


def din(size: Size) -> DinConfig:
    """DIN with the trigger as a plain feature."""
    return DinConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def wdl(size: Size) -> WdlConfig:
    """WDL with the trigger as a plain feature."""
    return WdlConfig(
        widths=size.widths,
        top=size.top,
        n_cross_buckets=size.n_cross_buckets,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def deepfm(size: Size) -> DeepFmConfig:
    """DeepFM with the trigger as a plain feature."""
    return DeepFmConfig(
        widths=size.widths, top=size.top, similarity_width=size.similarity_width, max_epochs=size.epochs
    )


def dei2n(size: Size) -> Dei2nConfig:
    """DEI2N's network at the table's sizes: UI2M's hidden layer is as wide as the top's last (64 by default)."""
    return Dei2nConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        top=size.top,
        intensity_hidden=size.top[-1:],
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def dihn(size: Size) -> DihnConfig:
    """DIHN's network at the table's sizes.

    Width and heads of its attentions are the table's (56 and 2 by default), UIN's hidden layer is as wide as the first
    of the top network (256 by default). Its label is a deviation: `training.models.dihn`.
    """
    return DihnConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        uin_hidden=size.top[:1],
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def _dihn(**changed: Any) -> Callable[[Size], DihnConfig]:
    return lambda size: replace(dihn(size), **changed)


def dian(size: Size) -> DianConfig:
    """DIAN's network at the table's sizes: the top network of all rows in TAN, TFN and the Intention Net alike.

    The paper has 1024-512-256; its width and heads are those of `paper/`.
    """
    return DianConfig(
        widths=size.widths,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def _dian(**changed: Any) -> Callable[[Size], DianConfig]:
    return lambda size: replace(dian(size), **changed)


def mian(size: Size) -> MianConfig:
    """MIAN with the trigger's fields as further context fields; the table's heads, where the paper has two."""
    return MianConfig(
        widths=size.widths,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def sim(size: Size) -> SimConfig:
    """SIM with the trigger as a plain feature; rows choose the search.

    The vectors that are searched and the network over them have the table's width and top (32 and 128-64 by default).
    """
    return SimConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        n_heads=size.n_heads,
        width=size.width,
        top=size.top,
        search_width=size.width,
        search_hidden=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def r3s(size: Size) -> R3sConfig:
    """R3S at the table's sizes, and without dropout, in `paper/` too: no other row has any.

    Its authors' code has dropout .3, fields of 24, 3 heads, experts of 90 and one layer of 45 above them. Here fields
    have a quarter of the table's width, or an id's where that is more; heads, experts and the layers above are the
    table's.
    """
    return R3sConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        field_width=max(size.width // 4, size.widths.id),
        n_heads=size.n_heads,
        expert_width=size.width,
        top=size.top,
        similarity_width=size.similarity_width,
        dropout=0.0,
        max_epochs=size.epochs,
    )


def poso(size: Size) -> PosoConfig:
    """POSO over DIN with the trigger as a plain feature."""
    return PosoConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def mwuf(size: Size) -> MwufConfig:
    """MWUF over DIN with the trigger as a plain feature: a quarter of the budget makes the warm vectors."""
    quarter = max(1, size.epochs // 4)
    return MwufConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        top=size.top,
        similarity_width=size.similarity_width,
        base_epochs=max(1, size.epochs - quarter),
        meta_epochs=quarter,
    )


def dien(size: Size) -> DienConfig:
    """DIEN with the trigger as a plain feature."""
    return DienConfig(widths=size.widths, top=size.top, similarity_width=size.similarity_width, max_epochs=size.epochs)


def daian(size: Size) -> DaianConfig:
    """DAIAN as published: a quarter of the budget for the intent, a quarter for the interests, half for all.

    The first two read clicked requests alone, as the paper has it: of four epochs, one and one over the clicked, and
    two over all. So DAIAN makes 2 + 2 c passes, c the share of requests with a click, where a rival makes 4: never
    more, and what is missing is not made up for.
    """
    quarter = max(1, size.epochs // 4)
    return DaianConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        n_heads=size.n_heads,
        width=size.width,
        top=size.top,
        uim_hidden=size.top,
        similarity_width=size.hybrid_width,
        uim_learning_rate=size.uim_learning_rate,
        uim_epochs=quarter,
        die_epochs=quarter,
        joint_epochs=max(1, size.epochs - 2 * quarter),
    )


def _daian(**changed: Any) -> Callable[[Size], DaianConfig]:
    return lambda size: replace(daian(size), **changed)


def ccn_lite(size: Size) -> CcnLiteConfig:
    """CCN-lite."""
    return CcnLiteConfig(
        widths=size.widths,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def amen_lite(size: Size) -> AmenLiteConfig:
    """AMEN-lite with the trigger as a plain feature."""
    return AmenLiteConfig(
        widths=size.widths,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        max_epochs=size.epochs,
    )


def nif_lite(size: Size) -> NifLiteConfig:
    """NIF-lite with the trigger as a plain feature: a quarter of the budget for the flow, the rest for the clicks."""
    quarter = max(1, size.epochs // 4)
    return NifLiteConfig(
        widths=size.widths,
        attention=size.attention,
        attention_hidden=size.attention_hidden,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        flow_epochs=quarter,
        click_epochs=max(1, size.epochs - quarter),
    )


def tarq_lite(size: Size) -> TarqLiteConfig:
    """TARQ-lite: half of the budget for the teacher, half for the student, which is what is served.

    The student takes over the teacher's tables, and its network where both have the same widths; its attention is new.
    """
    half = max(1, size.epochs // 2)
    return TarqLiteConfig(
        widths=size.widths,
        width=size.width,
        n_heads=size.n_heads,
        top=size.top,
        similarity_width=size.similarity_width,
        teacher_epochs=max(1, size.epochs - half),
        student_epochs=half,
    )


ROWS: Mapping[str, Row] = {
    # models that do not know the trigger, and are not told of it
    "din": Row("DIN", "trigger-free", lambda size: replace(din(size), use_trigger=False)),
    "dien": Row("DIEN", "trigger-free", lambda size: replace(dien(size), use_trigger=False)),
    "sim_hard": Row("SIM (hard)", "trigger-free", lambda size: replace(sim(size), use_trigger=False)),
    "sim_soft": Row("SIM (soft)", "trigger-free", lambda size: replace(sim(size), use_trigger=False, search="soft")),
    "wdl": Row("WDL", "trigger-free", lambda size: replace(wdl(size), use_trigger=False)),
    "deepfm": Row("DeepFM", "trigger-free", lambda size: replace(deepfm(size), use_trigger=False)),
    "tfn": Row("TFN (DIAN's half without the trigger)", "trigger-free", _dian(parts="tfn")),
    "mian": Row("MIAN", "trigger-free", lambda size: replace(mian(size), use_trigger=False)),
    "poso": Row("POSO", "trigger-free", lambda size: replace(poso(size), use_trigger=False)),
    "mwuf": Row("MWUF", "trigger-free", lambda size: replace(mwuf(size), use_trigger=False)),
    # the same, told of the trigger by its fields and the candidate's similarity to it
    "din_trigger": Row("DIN + trigger", "trigger as a feature", din),
    "din_product": Row(
        "DIN + trigger, e_r ⊙ e_a", "trigger as a feature", lambda size: replace(din(size), trigger_product=True)
    ),
    "dien_trigger": Row("DIEN + trigger", "trigger as a feature", dien),
    "sim_hard_trigger": Row("SIM (hard) + trigger", "trigger as a feature", sim),
    "sim_soft_trigger": Row(
        "SIM (soft) + trigger", "trigger as a feature", lambda size: replace(sim(size), search="soft")
    ),
    "wdl_trigger": Row("WDL + trigger", "trigger as a feature", wdl),
    "deepfm_trigger": Row("DeepFM + trigger", "trigger as a feature", deepfm),
    "mian_trigger": Row("MIAN + trigger", "trigger as a feature", mian),
    "poso_trigger": Row("POSO + trigger", "trigger as a feature", poso),
    "mwuf_trigger": Row("MWUF + trigger", "trigger as a feature", mwuf),
    # models made for triggers
    "din_2ta": Row("DIN+2TA", "trigger-induced", lambda size: replace(din(size), trigger_attention=True)),
    "dien_2ta": Row("DIEN+2TA", "trigger-induced", lambda size: replace(dien(size), trigger_evolution=True)),
    "dihn": Row("DIHN", "trigger-induced", dihn),
    "dei2n": Row("DEI2N", "trigger-induced", dei2n),
    "tan": Row("TAN (DIAN's half with the trigger)", "trigger-induced", _dian(parts="tan")),
    "dian": Row("DIAN", "trigger-induced", dian),
    "r3s": Row("R3S", "trigger-induced", r3s),
    "r3s_2ta": Row("R3S+2TA", "trigger-induced", lambda size: replace(r3s(size), two_attentions=True)),
    # after papers that are known in part only
    "ccn_lite": Row("CCN-lite", "lite", ccn_lite),
    "amen_lite": Row("AMEN-lite", "trigger-free", lambda size: replace(amen_lite(size), use_trigger=False)),
    "amen_lite_trigger": Row("AMEN-lite + trigger", "trigger as a feature", amen_lite),
    "nif_lite": Row("NIF-lite", "trigger-free", lambda size: replace(nif_lite(size), use_trigger=False)),
    "nif_lite_trigger": Row("NIF-lite + trigger", "trigger as a feature", nif_lite),
    "tarq_lite": Row("TARQ-lite", "lite", tarq_lite),
    # ours
    "daian": Row("DAIAN", "daian", daian),
    "daian_concat": Row(
        "DAIAN, e_sim also to the top and with e_r ⊙ e_a", "daian", _daian(concat_similarity=True, hse_product=True)
    ),
    # DIHN's and DIAN's ablations
    "dihn_no_hsm": Row("DIHN w/o HSM", "ablation", _dihn(use_hsm=False), "dihn"),
    "dihn_scalar": Row("DIHN, a scalar gate", "ablation", _dihn(gate="scalar"), "dihn"),
    "dian_no_intent_loss": Row("DIAN w/o intention loss", "ablation", _dian(intention_loss=0.0), "dian"),
    "dian_mean": Row("DIAN w/o Intention Net", "ablation", _dian(mix="mean"), "dian"),
    # Table 2 of the paper, and our own switches
    "daian_no_uim": Row("DAIAN w/o UIM", "ablation", _daian(intent_form="score"), "daian"),
    "daian_no_die": Row("DAIAN w/o DIE", "ablation", _daian(use_die=False), "daian"),
    "daian_no_sein": Row("DAIAN w/o SEIN", "ablation", _daian(use_sein=False), "daian"),
    "daian_one_stage": Row("DAIAN w/o three stages", "ablation", _daian(three_stages=False), "daian"),
}
