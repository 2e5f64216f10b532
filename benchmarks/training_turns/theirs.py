"""Trains FuxiCTR's DIN in turns. Started by `training_speed` with a folder.

Runs in the peers' environment (`benchmarks.peers.environment`) over the same rows; one step is what `make peers` takes.
Making a batch is in the time; the rows are in memory, encoded.
"""

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.rows import Heights, Rows, shuffled
from benchmarks.peers.terms import Terms
from benchmarks.peers.train_theirs import make_peer
from benchmarks.training_turns.turns import stay_on_one_core, take_turns


def steps(folder: Path, name: str) -> Iterator[int]:
    """Takes one step each time it is asked; gives the step's candidates. Ends never."""
    terms, heights = Terms.open(folder / "terms.json"), Heights.open(folder / "heights.json")
    rows = Rows.open(folder / "train.npz")
    peer = make_peer(name, heights, terms, 1, np.unique(rows.candidate, axis=0))
    optimizer = torch.optim.Adam(peer.module.parameters(), lr=terms.learning_rate)
    peer.module.train()
    for epoch in count():
        for taken in shuffled(len(rows.click), terms.batch_candidates, 1, epoch):
            optimizer.zero_grad()
            peer.loss(rows, taken).backward()
            optimizer.step()
            yield len(taken)


def main() -> None:
    stay_on_one_core()
    torch.set_num_threads(1)
    take_turns(steps(Path(sys.argv[1]), "fuxictr/din"), "fuxictr/din")


if __name__ == "__main__":
    main()
