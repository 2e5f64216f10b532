"""Latency: the first turns, in which everything is still cold, are not counted."""

from typing import Any

import numpy as np
import pytest

from models_export import latency
from models_export.parity import ExportedModel
from service.contract.encoder import ModelInputs

COLD, HOT = 1.0, 0.001


class Clock:
    """A clock that only a model moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Model(ExportedModel):
    """Slow until it has been called a few times."""

    def __init__(self, clock: Clock, cold_calls: int) -> None:
        self._clock, self._left = clock, cold_calls

    def score(self, _inputs: ModelInputs) -> Any:
        self._clock.now += COLD if self._left > 0 else HOT
        self._left -= 1


def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    nothing = ModelInputs._make([np.zeros(0)] * len(ModelInputs._fields))
    ready: Any = {name: (Model(clock, cold_calls=5), nothing) for name in ("din", "daian")}
    return latency._in_turn(ready, lambda _text: None)


def test_every_model_is_timed_as_often_and_never_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = taken(monkeypatch)
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys(found, latency.N_REPETITIONS)
    assert max(max(seconds) for seconds in found.values()) == pytest.approx(HOT)


def test_without_the_warm_up_cold_calls_would_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(latency, "_WARM_UP", 0)
    assert all(max(seconds) == pytest.approx(COLD) for seconds in taken(monkeypatch).values())
