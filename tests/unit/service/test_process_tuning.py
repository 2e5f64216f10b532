"""What a process is told: nothing loaded is garbage, workers give way to the event loop, freed memory goes back."""

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest

from service.admission import Admission
from service.contract.bundle import Bundle
from service.deadline import Deadline
from service.metrics import Metrics
from service.process_tuning import COLLECT_AFTER, ON_MORE, ON_ONE_CORE, steps_back
from service.retriever import prepare_worker
from service.settings import Settings
from tests.asgi_client import opened

# How many objects a full collection looks at after the service's code was loaded, in thousands.
COUNT = """
import gc
import service.app
from service.process_tuning import calm_the_collector
{calm}
print(sum(len(gc.get_objects(generation)) for generation in range(3)) // 1000)
"""


def seen_by_the_collector(calm: str) -> int:
    answer = subprocess.run([sys.executable, "-c", COUNT.format(calm=calm)], capture_output=True, text=True, check=True)
    return int(answer.stdout)


def test_what_is_loaded_is_out_of_the_collectors_sight() -> None:
    assert seen_by_the_collector("calm_the_collector()") <= 2


def test_otherwise_every_full_collection_looks_at_all_of_it() -> None:
    assert seen_by_the_collector("") > 50


def test_an_opened_service_is_calm(bundle: Bundle) -> None:
    with opened(Settings(bundle_root=bundle.path)):
        assert gc.get_threshold() == COLLECT_AFTER
        assert gc.get_freeze_count() > 50_000


def test_workers_give_way_to_the_loop() -> None:
    def own_priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, admission = own_priority(), Admission(1, Metrics(), prepare_worker)
    of_worker = asyncio.run(admission.run(own_priority, Deadline.after_ms(60_000)))
    admission.close()
    has_priorities = sys.platform == "linux"
    assert of_worker == (min(19, before + steps_back()) if has_priorities else before)
    assert own_priority() == before


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
@pytest.mark.parametrize(("cores", "back"), [({0}, ON_ONE_CORE), ({0, 1}, ON_MORE), (set(range(64)), ON_MORE)])
def test_they_stand_far_back_only_where_there_is_one_core(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], back: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert steps_back() == back
    assert ON_ONE_CORE > ON_MORE > 0


def test_a_sandbox_that_forbids_priorities_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", forbidden)
    admission = Admission(1, Metrics(), prepare_worker)
    assert asyncio.run(admission.run(lambda: 1, Deadline.after_ms(60_000))) == 1
    admission.close()


# Megabytes that a process gives back of 50 that it freed, in blocks that Python leaves to the C library.
HELD = """
from pathlib import Path

from service.process_tuning import give_freed_memory_back


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


blocks = [bytes(1000) for _ in range(50_000)]
last = bytes(1000)  # at the end of the heap: without it the C library would return all by itself
del blocks
before = resident()
{call}
print((before - resident()) // 1_000_000)
"""


def given_back(call: str) -> int:
    answer = subprocess.run([sys.executable, "-c", HELD.format(call=call)], capture_output=True, text=True, check=True)
    return int(answer.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such call")
def test_freed_memory_is_given_back() -> None:
    assert given_back("assert give_freed_memory_back()") > 30


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such call")
def test_otherwise_it_stays_with_the_process() -> None:
    assert given_back("") < 5
