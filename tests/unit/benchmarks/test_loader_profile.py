"""The loader's profile: both sources have the same batches, and who waits for whom comes out of the clocks."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks.loader_profile import line_of
from benchmarks.scene import Scene
from benchmarks.training_speed import prepare
from benchmarks.training_turns.loader import Profile, profile, sources
from benchmarks.training_turns.ours import TrainingSteps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of a small shop, some batches of them."""
    made = tmp_path_factory.mktemp("training")
    prepare(Scene(n_items=300, n_users=20), 20, 2600, made)
    return made


def test_both_sources_train_and_have_the_same_batches(folder: Path) -> None:
    steps = TrainingSteps(folder, "din")
    by_name = sources(folder, steps, n_ready=3)
    firsts = [list(islice(source, 3)) for source in by_name.values()]
    for loaded, ready in zip(*firsts, strict=True):
        assert loaded.after == ready.after
        assert torch.equal(loaded.inputs.candidate_fields, ready.inputs.candidate_fields)
        assert torch.equal(loaded.clicks, ready.clicks)
    found = profile(steps, by_name["ready"], 0.01)
    assert found["candidates"] >= 500
    assert found["step_cpu_s"] > 0


class Standing:
    """Steps that cost nothing."""

    def take(self, _batch: object) -> int:
        return 10


def waiting_share(source: Iterator[object]) -> float:
    found = profile(Standing(), source, 0.05)  # type: ignore[arg-type]
    return found["waited_s"] / found["seconds"]


def test_a_slow_loader_is_seen_as_waiting() -> None:
    def slow() -> Iterator[object]:
        while True:
            time.sleep(0.01)
            yield None

    assert waiting_share(slow()) > 0.5


def test_a_line_is_made_round_by_round() -> None:
    def turn(candidates: int, waited_s: float = 0.0, loader_cpu_s: float = 0.0) -> Profile:
        return Profile(candidates=candidates, seconds=2.0, waited_s=waited_s, step_cpu_s=1.6, loader_cpu_s=loader_cpu_s)

    # The machine was ten times slower in the second round: the ratio is .9 in both.
    found = {"loaded": [turn(1800, 0.1, 0.4), turn(180, 0.1, 0.4)], "ready": [turn(2000), turn(200)]}
    speed, from_memory, share, waited, work = line_of(found)  # type: ignore[arg-type]
    assert speed.startswith("495 ")
    assert from_memory.startswith("550 ")
    assert share == "0.900 (0.900-0.900)"
    assert waited == "0.0500 (0.0500-0.0500)"
    assert work == "0.250 (0.250-0.250)"
