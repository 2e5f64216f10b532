"""What a process is told at its start: nothing loaded is garbage, and workers give way to the event loop."""

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
from service.process_tuning import COLLECT_AFTER, WORKERS_STAND_BACK
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
    of_worker = asyncio.run(admission.run(own_priority, Deadline.after_ms(1000)))
    admission.close()
    has_priorities = sys.platform == "linux"
    assert of_worker == (min(19, before + WORKERS_STAND_BACK) if has_priorities else before)
    assert own_priority() == before


def test_a_sandbox_that_forbids_priorities_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", forbidden)
    admission = Admission(1, Metrics(), prepare_worker)
    assert asyncio.run(admission.run(lambda: 1, Deadline.after_ms(1000))) == 1
    admission.close()
