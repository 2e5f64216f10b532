"""`make peers`: are our DIN, DeepFM and DIEN as good as those of DeepCTR-Torch and FuxiCTR?

The same rows, widths, layers, optimiser, batches and epochs for both sides, several seeds each. Prints the table and
writes it into docs/peers.md. What cannot be made equal stands on that page. A second call with the same folder goes on
where the first one stopped.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.compare import markdown, signed, spread, welch, write_measured
from benchmarks.peers.convert import heights, rows_of
from benchmarks.peers.environment import DEEPCTR, FUXICTR, peers_python
from benchmarks.peers.rows import Rows, Scores
from benchmarks.peers.terms import Terms
from benchmarks.peers.train_ours import OURS, train_one
from training.data.batches import Batches, BatchPlan
from training.data.dataset import SPLITS, dataset_sha256, open_dataset, split_files, to_json
from training.data.fit_encoder import fit_encoder
from training.data.pools import KeptPools
from training.data.synthetic import World, simulate
from training.metrics import ranking_numbers

PAIRS = (
    ("din", "deepctr-torch/din"),
    ("din", "deepctr-torch-glorot/din"),
    ("din", "fuxictr/din"),
    ("deepfm", "deepctr-torch/deepfm"),
    ("deepfm", "deepctr-torch-glorot/deepfm"),
    ("deepfm-no-projection", "deepctr-torch-glorot/deepfm"),
    ("dien", "deepctr-torch/dien"),
    ("dien", "deepctr-torch-glorot/dien"),
    ("dien-no-auxiliary", "fuxictr/dien"),
)
NAMES = {
    "din": "DIN",
    "deepfm": "DeepFM",
    "deepfm-no-projection": "DeepFM without projections",
    "dien": "DIEN",
    "dien-no-auxiliary": "DIEN without auxiliary loss",
}
LIBRARIES = {
    "deepctr-torch": "DeepCTR-Torch",
    "deepctr-torch-glorot": "DeepCTR-Torch, started by Glorot",
    "fuxictr": "FuxiCTR",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """Numbers of one trained model on the test split."""

    auc: float
    gauc: float
    facts: dict[str, Any]


def small_world(folder: Path, n_requests: int, n_history: int) -> None:
    """A simulated world whose histories are short: a peer pads every row to the longest, and time grows with that."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        simulate(folder, World(n_requests=n_requests, n_users=1500, n_items=1500))
    dataset = open_dataset(folder)
    short = replace(dataset, rules=replace(dataset.rules, max_length=n_history))
    (folder / "dataset.json").write_text(json.dumps(to_json(short), indent=1), encoding="utf-8")


def refuse_another_comparison(data: Path, folder: Path, terms: Terms) -> None:
    """Scores in the folder belong to its first data and terms; more seeds may join. Raises ValueError for others."""
    path = folder / "comparison.json"
    asked = {"data": dataset_sha256(data), "terms": json.loads(json.dumps(asdict(replace(terms, seeds=()))))}
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{folder} holds a comparison on other data or terms; give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked), encoding="utf-8")


def prepare(data: Path, folder: Path, terms: Terms) -> KeptPools:
    """Writes rows, heights and terms for the peers; returns the encoded requests for our own models."""
    refuse_another_comparison(data, folder, terms)
    pools = KeptPools(fit_encoder(data))
    sizes = pools.encoder.sizes
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    terms.save(folder / "terms.json")
    heights(sizes, terms.similarity_bins).save(folder / "heights.json")
    for split in SPLITS:
        batches = Batches(split_files(data, split), pools.encoder, BatchPlan(8192, shuffle=False), pools)
        rows_of(batches.epoch(), sizes, terms.similarity_bins, terms.history).save(folder / f"{split}.npz")
    return pools


def saved_runs(folder: Path, name: str, terms: Terms) -> Iterator[Scores]:
    """Test scores and facts of one model, seed by seed; a seed that is not trained yet is left out."""
    for seed in terms.seeds:
        path = folder / "scores" / f"{name.replace('/', '-')}-{seed}.npz"
        if path.is_file():
            yield Scores.open(path)


def runs_of(folder: Path, name: str, terms: Terms, test: Rows) -> list[Run]:
    """The runs of one model over the seeds, scored on the same rows by the same metrics."""
    found, codes = [], test.code[test.request]
    for scores, facts in saved_runs(folder, name, terms):
        numbers = ranking_numbers(scores, test.click, codes, codes)
        found.append(Run(numbers["auc"], numbers["gauc_request"], facts))
    return found


def tables(folder: Path, terms: Terms, pairs: tuple[tuple[str, str], ...]) -> str:
    """Ranking and speed, pair by pair, as Markdown."""
    test = Rows.open(folder / "test.npz")
    ranking, speed = [], []
    for own, peer in pairs:
        ours, theirs = runs_of(folder, f"ours/{own}", terms, test), runs_of(folder, peer, terms, test)
        library = LIBRARIES[peer.partition("/")[0]]
        for metric in ("auc", "gauc"):
            left, right = [getattr(run, metric) for run in ours], [getattr(run, metric) for run in theirs]
            found = welch(left, right)
            label = "AUC" if metric == "auc" else "GAUC per request"
            n_seeds = f"{len(left)} / {len(right)}"
            numbers = [spread(left), spread(right), signed(found), found.verdict]
            ranking.append([NAMES[own], library, label, n_seeds, *numbers])
        left, right = (np.median([run.facts["per_s"] for run in runs]) for runs in (ours, theirs))
        parameters = [f"{runs[0].facts['parameters']:,}" for runs in (ours, theirs)]
        speed.append([NAMES[own], library, f"{left:,.0f}", f"{right:,.0f}", f"{left / right:.1f}", *parameters])
    head = ["model", "peer", "metric", "seeds", "ours", "peer's", "ours - peer's [95 %]", "verdict"]
    speed_head = ["model", "peer", "ours, candidates/s", "peer's, candidates/s", "ratio", "ours, parameters", "peer's"]
    return f"{markdown(head, ranking)}\n\n{markdown(speed_head, speed)}"


def circumstances(data: Path, folder: Path, terms: Terms, pairs: tuple[tuple[str, str], ...]) -> str:
    """Command, data, versions, machine and time."""
    sides = [f"ours/{own}" for own, _ in pairs], [peer for _, peer in pairs]
    minutes = [sum(seconds(folder, name, terms) for name in set(names)) / 60 for names in sides]
    report = open_dataset(data).report
    sizes = ", ".join(f"{split} {report[split]['requests']:,} requests" for split in SPLITS)
    packages = [f"{name} {version(name)}" for name in ("torch", "numpy")] + [DEEPCTR, FUXICTR]
    lines = [
        f"Command: `{command()}`",
        f"Data: {open_dataset(data).name} ({sizes})",
        f"Terms: {terms}",
        f"Versions: {', '.join(packages)}, Python {platform.python_version()}",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, one thread; training took "
        f"{minutes[0]:.0f} minutes for ours and {minutes[1]:.0f} for the peers",
    ]
    return "\n".join(f"- {line}" for line in lines)


def seconds(folder: Path, name: str, terms: Terms) -> float:
    """How long the training of one model took over the seeds, validation included."""
    return float(sum(facts["seconds"] for _, facts in saved_runs(folder, name, terms)))


def command() -> str:
    """As it was typed."""
    return " ".join(["python -m benchmarks.peers", *sys.argv[1:]])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--data", type=Path, help="a prepared folder; without it a small world is simulated")
    parser.add_argument("--out", type=Path, default=Path("artifacts/peers"), help="rows, runs and scores")
    parser.add_argument("--environment", type=Path, default=Path("artifacts/peers-venv"), help="the peers' packages")
    parser.add_argument("--torch", default="torch==2.13.0", help="the build of torch for the peers")
    parser.add_argument("--requests", type=int, default=6000, help="pages of the simulated world")
    parser.add_argument("--history", type=int, default=20, help="behaviours in a history of the simulated world")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--models", nargs="*", default=list(OURS), choices=OURS)
    parser.add_argument("--report", action="store_true", help="train nothing: the table of what is in --out")
    parser.add_argument("--page", type=Path, help="where the table goes, between its two marks")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    terms = replace(Terms(), max_epochs=options.epochs, seeds=tuple(range(1, options.seeds + 1)))
    data = options.data or options.out / "world"
    if not options.data:
        small_world(data, options.requests, options.history)
    terms = replace(terms, history=open_dataset(data).rules.max_length)
    pairs = tuple(pair for pair in PAIRS if pair[0] in options.models)
    if not options.report:
        train_both(options, data, terms, pairs)
    found = f"{tables(options.out, terms, pairs)}\n\n{circumstances(data, options.out, terms, pairs)}"
    print(found)
    if options.page:
        write_measured(options.page, found)
    return 0


def train_both(options: argparse.Namespace, data: Path, terms: Terms, pairs: tuple[tuple[str, str], ...]) -> None:
    """Ours here, the peers in their own environment; what is on disk already is not trained again."""
    python = peers_python(options.environment.absolute(), options.torch)
    pools = prepare(data, options.out, terms)
    for seed in terms.seeds:
        for name in dict.fromkeys(own for own, _ in pairs):
            train_one(name, data, options.out, terms, seed, pools)
    theirs = [str(python), "-m", "benchmarks.peers.train_theirs", str(options.out), "--only"]
    subprocess.run([*theirs, *dict.fromkeys(peer for _, peer in pairs)], check=True, env=os.environ | ONE_THREAD)


if __name__ == "__main__":
    sys.exit(main())
