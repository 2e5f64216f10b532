"""What a run leaves on disk: checkpoints while it trains, weights and config when it is done.

A checkpoint is written to a temporary name, flushed, then renamed, and ends with the SHA-256 of what precedes: after a
crash at any moment the newest file that loads is whole. Called by `training.train`; `models_export` opens finished runs
with `open_run`.
"""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.errors import DaianError
from training.config import TrainConfig, from_dict, to_dict
from training.data.whole_files import write_whole
from training.models import build_model

KEEP = 3
_DIGEST_BYTES = 32
_NAME = re.compile(r"step-(\d{9})\.pt")


class CheckpointError(DaianError):
    """A run folder or a file in it cannot be used: missing, damaged, or of another run."""


class Run(NamedTuple):
    """A finished run: its model in evaluation mode, its encoder, its config."""

    model: nn.Module
    encoder: Encoder
    config: TrainConfig


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Tensors and plain values into one file that ends with its own hash."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    write_whole(path, payload + hashlib.sha256(payload).digest())


def load_tensors(path: Path) -> dict[str, Any]:
    """The reverse of `save_tensors`. Raises CheckpointError when the hash does not match."""
    whole = path.read_bytes()
    payload, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path}: damaged, its hash does not match; delete it and resume from an older one")
    content: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    return content


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int = KEEP) -> None:
    """Adds the checkpoint of this step and removes all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / f"step-{step:09d}.pt", content)
    for old in _checkpoints(folder)[keep:]:
        old.unlink()


def latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None when there is none. Damaged ones are passed over.

    Raises CheckpointError when all of them are damaged: to train again from the start is not decided here.
    """
    found = _checkpoints(folder)
    for path in found:
        try:
            return load_tensors(path)
        except CheckpointError:
            continue
    if found:
        raise CheckpointError(
            f"{folder}: all {len(found)} checkpoints are damaged; put a whole one there from a copy, or delete "
            f"{folder.parent} and train again from the start"
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


def save_run_start(folder: Path, config: TrainConfig, encoder: Encoder, data_sha256: str) -> None:
    """Config, encoder and which data, before the first step. Raises CheckpointError for a folder of another run."""
    path = folder / "config.json"
    content = {**to_dict(config), "fingerprint": encoder.fingerprint, "data_sha256": data_sha256}
    text = json.dumps(content, indent=1, sort_keys=True)
    if path.exists():
        found = {"data_sha256": data_sha256, **json.loads(path.read_text(encoding="utf-8"))}  # older runs lack it
        if found != json.loads(text):
            what = "other data" if found["data_sha256"] != data_sha256 else "another config or encoder"
            raise CheckpointError(f"{folder} holds a run of {what}; choose another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder / "encoder")
    write_whole(path, text.encode())


def save_weights(folder: Path, model: nn.Module) -> None:
    """The chosen weights of a finished run."""
    save_tensors(folder / "weights.pt", model.state_dict())


def read_config(folder: Path) -> tuple[TrainConfig, str]:
    """The run's config and its encoder's fingerprint. Raises CheckpointError when there is no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; train a run with `daian train`")
    values = json.loads(path.read_text(encoding="utf-8"))
    fingerprint = values.pop("fingerprint")
    values.pop("data_sha256", None)
    return from_dict(values), fingerprint


def open_run(folder: Path, catalogue: Catalogue) -> Run:
    """A finished run over this catalogue. Raises CheckpointError: unfinished, damaged, or of another encoder."""
    config, fingerprint = read_config(folder)
    if not (folder / "weights.pt").is_file():
        raise CheckpointError(f"{folder}: training has not finished (no weights.pt); run the same `daian train` again")
    encoder = Encoder.open(folder / "encoder", catalogue)
    if encoder.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: trained with encoder {fingerprint}, found {encoder.fingerprint}; train again with this version"
        )
    model = build_model(config.model, encoder.sizes)
    model.load_state_dict(load_tensors(folder / "weights.pt"))
    return Run(model.eval(), encoder, config)
