"""The service as people run it: `daian serve` in a process of its own, a real socket, a real Valkey."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.contract.bundle import Bundle, point_to, read_bundle
from tests.chaos.service_process import end_orphan, free_port
from tests.small_bundle import item_ids, write_small_bundle

pytestmark = pytest.mark.e2e
START_S = 120
PATIENT_MS = 20_000  # for rankings: what is asked is what is in them, not how busy this machine is
# The machine may do other things: neither a ranking nor its look at the store is to end for that.
PATIENT = {
    "DAIAN_DEADLINE_MS": str(PATIENT_MS), "DAIAN_MAX_DEADLINE_MS": str(PATIENT_MS),
    "DAIAN_REDIS_READ_BUDGET_MS": "1000", "DAIAN_REDIS_POOL_WAIT_MS": "1000", "DAIAN_REDIS_TIMEOUT_MS": "5000",
    "DAIAN_RECEIVE_TIMEOUT_S": "30",
}  # fmt: skip


@dataclass
class Served:
    """A running `daian serve`."""

    process: "subprocess.Popen[str]"
    client: httpx.Client

    def rank(self, **body: object) -> httpx.Response:
        return self.client.post("/rank", json={"deadline_ms": PATIENT_MS, **body})


def environment_of(**settings: str) -> dict[str, str]:
    """Ours without any setting of a running shop, a free port, and all the time that a busy machine may need."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DAIAN_")}
    ours = {"DAIAN_PORT": "0", "DAIAN_DRAIN_S": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return own | ours | PATIENT | settings


@contextmanager
def serving(bundle: Bundle | Path, folder: Path, **settings: str) -> Iterator[Served]:
    """Starts the command on a free port and waits until it says where it is."""
    root = bundle if isinstance(bundle, Path) else bundle.path
    code = "import sys; from service.commands import serve; from pathlib import Path; "
    code += f"sys.exit(serve(Path({str(root)!r}), store_folder=Path({str(folder / 'store')!r})))"
    # A file, not a pipe: nobody would read the pipe, and a full one stops the service at its next log line.
    log = folder / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment_of(**settings), stdout=output, text=True, cwd=os.getcwd()
        )
    try:
        with httpx.Client(base_url=_address(process, log), timeout=60) as client:
            _wait_until_ready(client)
            yield Served(process, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
            end_orphan(folder / "store")


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        found = re.search(r"ranking at (http://[^/]+)/rank", log.read_text())
        if found:
            return found.group(1)
        assert process.poll() is None, f"the service ended before it said where it is: {log.read_text()}"
        time.sleep(0.05)
    raise AssertionError("the service did not say where it is")


def _wait_until_ready(client: httpx.Client) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < until, "the service never became ready"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_small_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    with serving(bundle, folder, DAIAN_REQUEST_LOG=str(folder / "ranked.ndjson")) as found:
        yield found


def test_a_click_changes_the_next_ranking_through_a_real_store(served: Served) -> None:
    before = served.rank(user="u-e2e", trigger="i0").json()
    event = {"event_id": "1", "type": "click", "user": "u-e2e", "item": "i8", "time": int(time.time() * 1000) - 2000}
    assert served.client.post("/events", json={"events": [event]}).json()["accepted"] == 1
    after = served.rank(user="u-e2e", trigger="i0").json()
    assert (before["behaviours"]["used"], after["behaviours"]["used"]) == (0, 1)
    assert (before["degraded"], after["degraded"]) == ([], [])
    assert after["intent"]["predicted"][-1] > before["intent"]["predicted"][-1]


def test_many_requests_on_one_connection_are_all_ranked(served: Served) -> None:
    ids = item_ids()[:500]
    for turn in range(50):
        answer = served.rank(user=f"u{turn}", trigger=ids[turn], candidates=ids)
        assert answer.status_code == 200
        assert sorted(item["id"] for item in answer.json()["items"]) == sorted(ids)


def test_a_body_that_is_too_large_is_refused_and_the_next_request_answered(served: Served) -> None:
    assert served.client.post("/rank", content=b"x" * 3_000_000).status_code == 413
    assert served.rank(trigger="i0").status_code == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_refused_bundle_ends_the_start_with_one_line_and_an_exit_code(tmp_path: Path, workers: str) -> None:
    refused = write_small_bundle(tmp_path / "bundles")
    (refused.path / "golden.jsonl").write_text("{}\n")
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "serve",
        str(refused.path),
        "--store-folder",
        str(tmp_path / "store"),
    ]
    environment = environment_of(DAIAN_WORKERS=workers)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 3
    assert f"bundle refused: {refused.path / 'golden.jsonl'}: SHA-256 is" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_server_does_not_say_what_it_is(served: Served) -> None:
    assert "server" not in served.client.get("/livez").headers


def test_what_was_ranked_is_in_the_log(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    answer = served.rank(user="u-log", trigger="i0", candidates=["i3", "i5"], request_id="wanted").json()
    file = next(tmp_path_factory.getbasetemp().glob("serving*/ranked.ndjson"))
    until = time.monotonic() + 30
    while True:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = [row for row in rows if row["request_id"] == "wanted"]
        if found:
            break
        assert time.monotonic() < until, "the row never came"
        time.sleep(0.05)
    assert found[0]["candidates"] == [item["id"] for item in answer["items"]]


DRAIN_S = 5.0


def test_d3_sigterm_drains_first_and_exits_with_0(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, DAIAN_DRAIN_S=str(DRAIN_S)) as found:
        found.process.send_signal(signal.SIGTERM)
        while (ready := found.client.get("/readyz")).status_code == 200:
            time.sleep(0.02)
        assert ready.json()["code"] == "draining"
        answer = found.rank(trigger="i0")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        found.process.communicate(timeout=60)
        assert found.process.returncode == 0


def test_d3_without_the_drain_the_door_is_shut_at_once(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, DAIAN_DRAIN_S="0") as found:
        found.client.close()
        found.process.send_signal(signal.SIGTERM)
        signalled_s = time.monotonic()
        with suppress(httpx.TransportError):
            while True:
                httpx.get(f"{found.client.base_url}/readyz", timeout=30)
        assert time.monotonic() - signalled_s < DRAIN_S


STALLED = b"content-length: 50\r\n\r\n{"


def stopped_after_s(found: Served, limit_s: float) -> float | None:
    """Seconds from SIGTERM to the end, with a body under way that never comes; None when it takes longer than that."""
    address = (found.client.base_url.host, found.client.base_url.port or 80)
    with socket.create_connection(address, timeout=60) as stalled:
        stalled.sendall(HEAD + b"expect: 100-continue\r\n" + STALLED)
        assert stalled.recv(1024).startswith(b"HTTP/1.1 100 ")  # it waits for the rest
        started_s = time.monotonic()
        found.process.send_signal(signal.SIGTERM)
        try:
            found.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - started_s


def test_d3_a_stalled_body_does_not_hold_the_process(bundle: Bundle, tmp_path: Path) -> None:
    patient = {"DAIAN_RECEIVE_TIMEOUT_S": "60", "DAIAN_DRAIN_S": "0.5", "DAIAN_GRACE_S": "1"}
    with serving(bundle, tmp_path, **patient) as found:
        assert stopped_after_s(found, 40) is not None
        assert found.process.returncode == 0


def test_d3_without_an_end_to_the_grace_it_would(bundle: Bundle, tmp_path: Path) -> None:
    patient = {"DAIAN_RECEIVE_TIMEOUT_S": "60", "DAIAN_DRAIN_S": "0.5", "DAIAN_GRACE_S": "60"}
    with serving(bundle, tmp_path, **patient) as found:
        assert stopped_after_s(found, 8) is None
        found.process.kill()


def versions_of(found: Served) -> str:
    return str(httpx.get(f"{found.client.base_url}/readyz?verbose", timeout=20).json().get("bundle"))


def test_c7_sighup_reaches_every_worker_and_the_pointer_is_followed(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "bundles", version="v1")
    root = write_small_bundle(tmp_path / "bundles", version="v2").path.parent.parent
    point_to(root, read_bundle(root / "daian/v1"))
    settings = {"DAIAN_WORKERS": "2", "DAIAN_BUNDLE_POLL_S": "0"}
    with serving(root, tmp_path, **settings) as found:
        point_to(root, read_bundle(root / "daian/v2"))
        until = time.monotonic() + START_S
        found.process.send_signal(signal.SIGHUP)  # once: a worker that is still starting gets it later
        while {versions_of(found) for _ in range(12)} != {"daian@v2"}:
            assert time.monotonic() < until, "a worker stayed with the old bundle"
            time.sleep(0.3)
        assert found.process.poll() is None


def test_the_admin_port_swaps_and_the_public_port_does_not(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "bundles", version="v1")
    root = write_small_bundle(tmp_path / "bundles", version="v2").path.parent.parent
    port = free_port()
    settings = {"DAIAN_ADMIN_PORT": str(port), "DAIAN_BUNDLE_POLL_S": "0"}
    with serving(root, tmp_path, **settings) as found:
        admin, call = f"http://127.0.0.1:{port}", "/v1/admin/models/daian:rollback"
        assert found.client.post(call).status_code == 404
        assert found.client.get("/metrics").status_code == 404
        answer = httpx.post(f"{admin}{call}", timeout=60)
        assert (answer.status_code, answer.json()["version"]) == (200, "v1")
        assert found.rank(trigger="i0").json()["model"]["version"] == "v1"
        assert 'daian_bundle_info{name="daian",variant="live",version="v1"} 1.0' in httpx.get(f"{admin}/metrics").text


def test_two_workers_share_one_port_and_their_counters(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, DAIAN_WORKERS="2") as found:
        for _ in range(20):
            assert httpx.post(f"{found.client.base_url}/rank", json={"trigger": "i0"}, timeout=60).status_code == 200
        text = found.client.get("/metrics").text
        counts = re.findall(r'daian_requests_total\{route="/v1/rank",status="200".*\} (\d+)', text)
        assert sum(map(float, counts)) == 20


def connections_of_workers(found: Served) -> list[int]:
    """How many connections to the service each worker has open, as the kernel counts them."""
    port = found.client.base_url.port or 80
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    counts = []
    for children in Path(f"/proc/{found.process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
            counts.append(sum(link in {f"socket:[{inode}]" for inode in inodes} for link in links))
    return [count for count in counts if count]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_workers_have_as_many_connections_each(bundle: Bundle, tmp_path: Path) -> None:
    """A gateway keeps its connections: were they all one worker's, the other core would stand idle for good."""
    with serving(bundle, tmp_path, DAIAN_WORKERS="2") as found, ExitStack() as clients:
        url = found.client.base_url
        until = time.monotonic() + START_S
        counts: list[int] = []
        while len(counts) < 2 or min(counts) < 10 or max(counts) - min(counts) > 2:
            assert time.monotonic() < until, f"connections of the workers: {counts}"
            clients.enter_context(httpx.Client(base_url=url, timeout=60)).get("/livez")
            counts = connections_of_workers(found)
            time.sleep(0.05)  # one worker may still be starting: the other is not to have hundreds by then


def raw(found: Served, *parts: bytes, silent_s: float = 20.0) -> bytes:
    """What a bare socket gets back until the server closes or falls silent for so long."""
    url = found.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=silent_s) as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        with suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


HEAD = b"POST /rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("n_bytes", [20_000, 3_000_000])
def test_b10_giant_headers_are_431(served: Served, n_bytes: int) -> None:
    assert raw(served, HEAD + b"x-big: " + b"a" * n_bytes).startswith(b"HTTP/1.1 431 ")


def test_b10_a_large_body_behind_small_headers_is_no_header(served: Served) -> None:
    ids = ",".join(f'"{n:0100d}"' for n in range(900)).encode()
    body = b'{"trigger": "i0", "candidates": [' + ids + b"]}"
    head = HEAD + b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n"
    assert raw(served, head + body).startswith(b"HTTP/1.1 200 ")


def test_b9_a_socket_that_says_nothing_or_half_is_closed(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, DAIAN_RECEIVE_TIMEOUT_S="0.5") as found:
        half_behind_a_whole = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD
        for parts in ([], [HEAD], [HEAD + b"content-length: 10\r\n\r\n", b"{"], [half_behind_a_whole]):
            started_s = time.monotonic()
            raw(found, *parts)
            assert time.monotonic() - started_s < 10  # the client would wait for twice as long
        assert found.rank(trigger="i0").status_code == 200


def test_b9_and_b10_with_loose_guards_the_same_bytes_pass(bundle: Bundle, tmp_path: Path) -> None:
    loose = {"DAIAN_RECEIVE_TIMEOUT_S": "60", "DAIAN_MAX_HEADER_BYTES": "1000000"}
    with serving(bundle, tmp_path, **loose) as found:
        started_s = time.monotonic()
        raw(found, HEAD, silent_s=3)
        assert time.monotonic() - started_s >= 2.5  # the client gave up first
        body = b"connection: close\r\ncontent-length: 17\r\n\r\n" + b'{"trigger": "i0"}'
        assert raw(found, HEAD + b"x-big: " + b"a" * 20_000 + b"\r\n" + body).startswith(b"HTTP/1.1 200 ")


def test_b9_one_address_may_not_take_all_connections(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, DAIAN_MAX_CONNECTIONS_PER_PEER="4") as found, ExitStack() as stack:
        address = (found.client.base_url.host, found.client.base_url.port or 80)
        for _ in range(3):  # the client of the fixture holds one
            stack.enter_context(socket.create_connection(address, timeout=20))
        time.sleep(0.2)
        assert raw(found, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        assert found.client.get("/livez").status_code == 200


def test_b9_bodies_that_never_come_keep_nobody_out(served: Served) -> None:
    address = (served.client.base_url.host, served.client.base_url.port or 80)
    with ExitStack() as stack:
        for _ in range(200):
            stalled = stack.enter_context(socket.create_connection(address, timeout=20))
            stalled.sendall(HEAD + b"content-length: 50\r\n\r\n{")
        time.sleep(0.2)
        assert {served.rank(trigger="i0").status_code for _ in range(20)} == {200}


def test_b14_two_ways_of_framing_one_body_are_refused(served: Served) -> None:
    smuggled = HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(served, smuggled).startswith(b"HTTP/1.1 400 ")
