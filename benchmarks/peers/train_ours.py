"""Our DIN, DeepFM and DIEN in the terms of the comparison. Called by `benchmarks.peers`.

Trained by `training.train.train`, as any run: nothing is set here that a recipe could not say.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.rows import Scores
from benchmarks.peers.terms import Terms
from training.checkpoint import open_run
from training.config import DataConfig, OptimConfig, TrainConfig
from training.data.pools import KeptPools
from training.layers.embedding import EmbeddingWidths
from training.models.deepfm import DeepFmConfig
from training.models.dien import DienConfig
from training.models.din import DinConfig
from training.scores import score_batches
from training.train import evaluation_batches, train

OURS = ("din", "deepfm", "deepfm-no-projection", "dien", "dien-no-auxiliary")
N_WARM_UP = 10


def model_config(name: str, terms: Terms) -> Any:
    """The model in the widths of the comparison; it reads the trigger, as the peers do."""
    widths = EmbeddingWidths(*[terms.width] * 4)
    shared: dict[str, Any] = {
        "widths": widths,
        "top": terms.top,
        "n_similarity_bins": terms.similarity_bins,
        "similarity_width": terms.width,
        "max_epochs": terms.max_epochs,
    }
    if name == "din":
        return DinConfig(attention="mlp", **shared)
    if name.startswith("deepfm"):
        return DeepFmConfig(factor_width=terms.width, projects=name == "deepfm", **shared)
    return DienConfig(n_steps=terms.history, auxiliary_weight=float(name == "dien"), **shared)


def run_config(name: str, terms: Terms, seed: int) -> TrainConfig:
    """The whole run."""
    return TrainConfig(
        name=f"peers/{name}",
        model=model_config(name, terms),
        optim=OptimConfig(kind="adam", learning_rate=terms.learning_rate),
        data=DataConfig(batch_candidates=terms.batch_candidates),
        seed=seed,
        select_by="gauc_request",
        patience=terms.patience,
    )


class Watch:
    """A recorder that keeps the speed of the steps and the validation's numbers."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.validations: list[float] = []

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:  # noqa: ARG002
        """Seconds of one candidate of this step."""
        self.step_s.append(seconds / n_candidates)

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:  # noqa: ARG002
        """GAUC per request."""
        self.validations.append(numbers["gauc_request"])

    def note(self, stage: str, text: str) -> None:
        """What training has to say."""
        print(f"{stage}: {text}")


def train_one(name: str, data: Path, folder: Path, terms: Terms, seed: int, pools: KeptPools) -> None:
    """Trains one run and keeps its test scores; one that is on disk already is not made again."""
    path = folder / "scores" / f"ours-{name}-{seed}.npz"
    if path.exists():
        return
    config, run, watch = run_config(name, terms, seed), folder / "runs" / f"{name}-{seed}", Watch()
    started = time.perf_counter()
    train(config, data, run, watch, pools=pools)
    seconds = time.perf_counter() - started
    model = open_run(run, pools.encoder.catalogue).model
    test = evaluation_batches(data, "test", pools.encoder, config, pools)
    scored = score_batches(model, test.epoch()).in_order()
    facts = {
        "seconds": seconds,
        "per_s": 1 / float(np.median(watch.step_s[N_WARM_UP:])),
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": watch.validations,
    }
    Scores(scored.logits, facts).save(path)
    print(f"ours/{name} seed {seed}: validation {watch.validations} in {seconds:.0f} s", flush=True)
