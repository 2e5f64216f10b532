"""What a finished run has cost: its parameters, and how long it trained. Called by `training.evaluate`.

Time is read from what the run's folder keeps: `measured.json` of a run of `daian compare`, else the curves of
`daian train`, whose points carry the time of day. Nothing is measured here.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from training.compare_inside import n_parameters

CURVES = "tensorboard"
_MEASURED = "measured.json"


def cost_of(run_folder: Path, model: nn.Module) -> dict[str, Any]:
    """`parameters`: in tables and elsewhere. `training`: `seconds` and, of a run of a comparison, `cpu_seconds`; of
    curves, `sittings`. `missing` in their place says why nobody knows.
    """
    return {"parameters": n_parameters(model), "training": training_time(run_folder)}


def training_time(run_folder: Path) -> dict[str, Any]:
    """How long the run of this folder trained, validations included."""
    path = run_folder / _MEASURED
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("seconds") is None:
            return {"missing": "the run was interrupted, and knows only its last part"}
        return {key: float(found[key]) for key in ("seconds", "cpu_seconds")}
    sittings = [seconds for file in sorted((run_folder / CURVES).glob("events.*")) if (seconds := _span(file))]
    if not sittings:
        return {"missing": f"its folder has neither {_MEASURED} nor curves"}
    return {"seconds": sum(sittings), "sittings": len(sittings)}


def _span(file: Path) -> float:
    """Seconds between the first and the last point of one process's curves; 0 for less than two of them.

    What a killed process left half written is passed over.
    """
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        EventFileLoader,  # not at the top: it takes half a second
    )

    times = [event.wall_time for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    return float(max(times) - min(times)) if times else 0.0
