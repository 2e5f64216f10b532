"""Trains the peers on our rows and keeps their test scores. Runs in the peers' environment, started by
`benchmarks.peers`; imports nothing of ours but `rows`, `terms` and the metrics.

One loop for all of them, in the terms of ours: Adam, an epoch over all rows, validation by GAUC per request after each,
the best weights kept. A run that is on disk already is not made again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.rows import Heights, Rows, Scores, shuffled
from benchmarks.peers.terms import Terms
from training.metrics import gauc

DEEPCTR_MODELS = ("din", "deepfm", "dien")
PEERS = (
    *(f"{library}/{name}" for library in ("deepctr-torch", "deepctr-torch-glorot") for name in DEEPCTR_MODELS),
    "fuxictr/din",
    "fuxictr/dien",
)
N_SCORED = 2_048


def make_peer(peer: str, heights: Heights, terms: Terms, seed: int, items: np.ndarray) -> Any:
    """The model of one library; the other library is not imported."""
    library, _, name = peer.partition("/")
    if library == "fuxictr":
        from benchmarks.peers.fuxictr_models import FuxiCtrPeer

        return FuxiCtrPeer(name, heights, terms, seed, items)
    from benchmarks.peers.deepctr_models import DeepCtrPeer

    return DeepCtrPeer(name, heights, terms, seed, items, glorot=library.endswith("-glorot"))


@torch.no_grad()
def scores(peer: Any, rows: Rows) -> np.ndarray:
    """Probabilities of all candidates, in their order; float32 [N]."""
    peer.module.eval()
    places = np.arange(len(rows.click))
    parts = np.array_split(places, max(1, len(places) // N_SCORED))
    return np.concatenate([peer.score(rows, part).numpy() for part in parts])


def train(peer: Any, train_rows: Rows, validation: Rows, terms: Terms, seed: int) -> dict[str, Any]:
    """Leaves the best weights in the model; what was seen on the way."""
    optimizer = torch.optim.Adam(peer.module.parameters(), lr=terms.learning_rate)
    found: dict[str, Any] = {"validation": [], "step_s": []}
    best, n_worse, weights = -np.inf, 0, {}
    for epoch in range(terms.max_epochs):
        peer.module.train()
        for taken in shuffled(len(train_rows.click), terms.batch_candidates, seed, epoch):
            started = time.perf_counter()
            optimizer.zero_grad()
            peer.loss(train_rows, taken).backward()
            optimizer.step()
            found["step_s"].append((time.perf_counter() - started) / len(taken))
        value = gauc(scores(peer, validation), validation.click, validation.code[validation.request])
        found["validation"].append(value)
        if value > best:
            best, n_worse = value, 0
            weights = {name: tensor.detach().clone() for name, tensor in peer.module.state_dict().items()}
        else:
            n_worse += 1
        if n_worse >= terms.patience:
            break
    peer.module.load_state_dict(weights)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.train_theirs")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(PEERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder
    terms, heights = Terms.open(folder / "terms.json"), Heights.open(folder / "heights.json")
    train_rows, validation, test = (Rows.open(folder / f"{split}.npz") for split in ("train", "validation", "test"))
    items = np.unique(train_rows.candidate, axis=0)
    for seed in terms.seeds:
        for name in options.only:
            path = folder / "scores" / f"{name.replace('/', '-')}-{seed}.npz"
            if path.exists():
                continue
            started = time.perf_counter()
            peer = make_peer(name, heights, terms, seed, items)
            found = train(peer, train_rows, validation, terms, seed)
            seconds = time.perf_counter() - started
            step_s = float(np.median(found["step_s"]))
            parameters = sum(p.numel() for p in peer.module.parameters())
            facts = {"seconds": seconds, "per_s": 1 / step_s, "parameters": parameters, **found, "step_s": None}
            Scores(scores(peer, test), facts).save(path)
            print(f"{name} seed {seed}: validation {found['validation']} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
