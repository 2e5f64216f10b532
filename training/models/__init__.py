"""The registry of ranking models: one plain dict, one line per model."""

from typing import Any

from torch import nn

from service.contract.encoder import EncoderSizes
from training.layers.dense_start import start_dense
from training.models import (
    amen_lite,
    ccn_lite,
    daian,
    deepfm,
    dei2n,
    dian,
    dien,
    dihn,
    din,
    mian,
    mwuf,
    nif_lite,
    poso,
    r3s,
    sim,
    tarq_lite,
    wdl,
)
from training.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "din": din.SPEC,
    "dien": dien.SPEC,
    "sim": sim.SPEC,
    "wdl": wdl.SPEC,
    "deepfm": deepfm.SPEC,
    "ccn_lite": ccn_lite.SPEC,
    "amen_lite": amen_lite.SPEC,
    "nif_lite": nif_lite.SPEC,
    "dei2n": dei2n.SPEC,
    "dihn": dihn.SPEC,
    "dian": dian.SPEC,
    "mian": mian.SPEC,
    "tarq_lite": tarq_lite.SPEC,
    "r3s": r3s.SPEC,
    "poso": poso.SPEC,
    "mwuf": mwuf.SPEC,
    "daian": daian.SPEC,
}


def spec_of(config: Any) -> ModelSpec:
    """The registry line whose config class this config is. Raises ValueError for a stranger."""
    for spec in MODELS.values():
        if type(config) is spec.config:
            return spec
    known = ", ".join(spec.config.__name__ for spec in MODELS.values())
    raise ValueError(f"no model is built from a {type(config).__name__}; known configs: {known}. Add a line to MODELS.")


def build_model(config: Any, sizes: EncoderSizes) -> nn.Module:
    """A freshly initialised model, dense layers by Glorot. Draws from torch's global generator: seed it first."""
    model: nn.Module = spec_of(config).build(config, sizes)
    start_dense(model)
    return model
