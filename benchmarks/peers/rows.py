"""The encoded requests of one split as plain arrays, one row per candidate to take: what a peer is trained on.

Written by `convert` from the very batches that our models see, read by `train_theirs` in an environment of its own; so
this module imports numpy alone. Ids are the encoder's: 0 is "nothing", 1 "unknown".
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Heights:
    """Table heights by field."""

    user: tuple[int, ...]
    context: tuple[int, ...]
    item: tuple[int, ...]
    age: int
    similarity: int

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def open(cls, path: Path) -> "Heights":
        """The reverse of `save`."""
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in saved.items()}
        return cls(**values)


@dataclass(frozen=True)
class Rows:
    """R requests and their N candidates; histories have L places, the behaviours first, oldest first.

    Requests stand by ascending code and candidates by request, each page in its own order: the order of
    `training.scores.Scored.in_order`.
    """

    user: np.ndarray  # int32 R U
    context: np.ndarray  # int32 R C
    trigger: np.ndarray  # int32 R I
    history: np.ndarray  # int32 R L I
    age: np.ndarray  # int32 R L, 0 where there is no behaviour
    code: np.ndarray  # int64 R
    candidate: np.ndarray  # int32 N I
    similarity: np.ndarray  # int32 N, bin of the similarity to the trigger
    request: np.ndarray  # int32 N, row of its request
    click: np.ndarray  # float32 N

    @property
    def n_behaviours(self) -> np.ndarray:
        """int64 [R]."""
        found: np.ndarray = (self.age > 0).sum(axis=1)
        return found

    def save(self, path: Path) -> None:
        """Writes them as .npz."""
        np.savez(path, **vars(self))

    @classmethod
    def open(cls, path: Path) -> "Rows":
        """The reverse of `save`."""
        with np.load(path, allow_pickle=False) as saved:
            return cls(**{field.name: saved[field.name] for field in fields(cls)})


class Scores(NamedTuple):
    """What is kept of one trained model: scores of the test rows in their order, and what was seen in training."""

    scores: np.ndarray  # float32 N
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes them as .npz, whole or not at all: a killed run must not look like a finished one."""
        partial = path.with_name(f".partial-{path.name}")
        np.savez(partial, scores=self.scores, facts=json.dumps(self.facts))
        partial.rename(path)

    @classmethod
    def open(cls, path: Path) -> "Scores":
        """The reverse of `save`."""
        with np.load(path, allow_pickle=False) as saved:
            return cls(saved["scores"], json.loads(str(saved["facts"])))


def shuffled(n_rows: int, n_batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of an epoch in batches: all rows shuffled, as the peers' own loaders do."""
    order = np.random.default_rng([seed, epoch]).permutation(n_rows)
    return np.array_split(order, max(1, round(n_rows / n_batch)))
