"""What both sides of the comparison agree on: widths, layers, optimiser, batches, epochs. Read by both environments.

The peers' environment has no `service` and no exporter; this module imports the standard library alone.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Terms:
    """One embedding width for every field (DeepFM's machine needs it, and the peers allow no other)."""

    width: int = 16
    top: tuple[int, ...] = (64, 32)
    attention: tuple[int, ...] = (80, 40)
    history: int = 20
    similarity_bins: int = 20
    learning_rate: float = 2e-3
    batch_candidates: int = 512
    max_epochs: int = 4
    patience: int = 1
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def open(cls, path: Path) -> "Terms":
        """The reverse of `save`."""
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in saved.items()}
        return cls(**values)
