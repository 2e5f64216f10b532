"""B8: a body of 100 MB in chunks, which no length announced: refused soon, and nothing of it kept."""

import contextlib
import re
import socket
from pathlib import Path

import pytest

from tests.chaos.service_process import ServiceProcess, service_process
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.e2e
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
N_CHUNKS = 100


def highest_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def answer_to_100_mb(service: ServiceProcess) -> bytes:
    with socket.create_connection((service.host, service.port), timeout=60) as connection:
        with contextlib.suppress(OSError):  # the answer may come before the last byte was sent
            connection.sendall(HEAD)
            for _ in range(N_CHUNKS):
                connection.sendall(CHUNK)
            connection.sendall(b"0\r\n\r\n")
        with contextlib.suppress(OSError):
            return connection.recv(65536)
    return b""


def grown_by(tmp_path: Path, **settings: str) -> int:
    """Bytes by which the highest memory of a service grew over three such bodies."""
    write_small_bundle(tmp_path / "bundles")
    patient = {"DAIAN_RECEIVE_TIMEOUT_S": "60", "DAIAN_DRAIN_S": "0.5", "DAIAN_GRACE_S": "1"}
    with service_process(tmp_path / "bundles", tmp_path, **patient, **settings) as service:
        (pid,) = service.workers()
        before = highest_bytes(pid)
        answers = [answer_to_100_mb(service) for _ in range(3)]
        assert service.is_ready()
        # a reset may overtake the answer on its way to a peer that is still sending
        assert {one[:13] for one in answers} <= {b"HTTP/1.1 413 ", b""}
        return highest_bytes(pid) - before


def test_b8_nothing_of_it_is_kept(tmp_path: Path) -> None:
    assert grown_by(tmp_path) < 10e6


def test_b8_with_64_times_the_limit_it_lies_in_memory(tmp_path: Path) -> None:
    assert grown_by(tmp_path, DAIAN_MAX_BODY_BYTES=str(64 << 20)) > 50e6
