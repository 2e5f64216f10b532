"""B15: a crowd asks and hangs up. Its rankings are not computed, and the log has no storm of errors."""

import json
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.chaos.open_loop import post
from tests.chaos.service_process import ServiceProcess, errors_in, service_process
from tests.small_bundle import item_ids, write_small_bundle

pytestmark = pytest.mark.e2e
N_CALLERS = 60
NOBODY_SAYS_SO = "import service.api.routes as module\nmodule.IS_GONE = 'nowhere'"
SLOW_WORKER = """
import time
import service.ranker as ranker
_compute = ranker.Ranker.compute
def _slow(self, turn):
    time.sleep(0.02)
    return _compute(self, turn)
ranker.Ranker.compute = _slow
"""


def ask_and_leave(service: ServiceProcess) -> None:
    asked = post("/v1/rank", {"trigger": "i0", "candidates": item_ids()[:500]}, "x-timeout-ms: 60000")
    callers = [socket.create_connection((service.host, service.port), timeout=60) for _ in range(N_CALLERS)]
    for caller in callers:
        caller.sendall(asked)
    for caller in callers:
        caller.close()


def n_found_gone(tmp_path: Path, prelude: str = "") -> int:
    """Of a crowd behind one worker of 20 ms a ranking, how many were found to have left before their turn."""
    write_small_bundle(tmp_path / "bundles")
    given = {"DAIAN_MAX_DEADLINE_MS": "60000", "DAIAN_SCORER_CONCURRENCY": "1", "DAIAN_DRAIN_S": "0.5"}
    with service_process(tmp_path / "bundles", tmp_path, prelude=SLOW_WORKER + prelude, **given) as service:
        ask_and_leave(service)
        until_s = time.monotonic() + 60
        text = ""
        while time.monotonic() < until_s:
            text = httpx.get(f"{service.url}/metrics", timeout=60).text
            counted = re.findall(r'^daian_requests_total\{route="/v1/rank".*\} (\S+)$', text, re.MULTILINE)
            if sum(map(float, counted)) >= N_CALLERS:
                break
            time.sleep(0.1)
        assert httpx.post(f"{service.url}/v1/rank", json={"trigger": "i0", "deadline_ms": 60_000}).status_code == 200
        lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    assert errors_in(service.log) == []
    assert sum(line["event"] == "request" for line in lines) <= N_CALLERS + 1
    assert [line for line in lines if line["level"] in ("warning", "error") and "no keys" not in line["event"]] == []
    found = re.search(r'^daian_shed_total\{reason="gone"\} (\S+)$', text, re.MULTILINE)
    return int(float(found.group(1))) if found else 0


def test_b15_what_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    assert n_found_gone(tmp_path) > N_CALLERS / 2


def test_b15_with_nobody_to_say_so_it_all_is(tmp_path: Path) -> None:
    assert n_found_gone(tmp_path, NOBODY_SAYS_SO) == 0
