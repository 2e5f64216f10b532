"""`daian serve`: uvicorn around the app, with a drain before the stop and an embedded store when none is named.

Called by `commands.py`. One process, or several behind one inherited socket. The drain on SIGTERM is in `app.py`. Every
limit of the server is said here, none is left to a library's default.
"""

import contextlib
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from service.api_keys import KeyRing
from service.contract.pointer import bundle_to_open
from service.embedded_store import embedded_store
from service.http_guard import GuardedConfig, GuardedProtocol, Guards
from service.listening import bound_sockets
from service.settings import Settings, read_settings, variable

KEEP_ALIVE_S = 75
BACKLOG = 2048
STUCK_S = 5  # a worker that is silent for so long, the interpreter's lock held, is killed and replaced


class Supervisor(Multiprocess):
    """uvicorn's parent of the workers, for which SIGHUP means a look at the bundle instead of new processes."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._to_signal: set[int | None] = set()

    def handle_hup(self) -> None:
        """Owes every worker the signal."""
        self._to_signal = {process.pid for process in self.processes}

    def keep_subprocess_alive(self) -> None:
        """Twice a second: replaces workers that died, and passes a signal on that is owed.

        A worker that is still starting would die of the signal, and may have read the pointer before it moved: it gets
        the signal once it is ready. One that is busy gets it at a later look.
        """
        super().keep_subprocess_alive()
        self._to_signal &= {process.pid for process in self.processes}  # a new worker reads the pointer as it is now
        for process in self.processes:
            if process.pid in self._to_signal and process.pid is not None and process.is_ready(timeout=1):
                os.kill(process.pid, signal.SIGHUP)
                self._to_signal.discard(process.pid)

    def exit_code(self) -> int:
        """What `run` ended with: a worker that could not start stopped all, and has said why."""
        could_not_start = any(process.exitcode == STARTUP_FAILURE for process in self.processes)
        return STARTUP_FAILURE if could_not_start else 0


class AnnouncingServer(uvicorn.Server):
    """A uvicorn server that says where it is once it answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the bundle and the sockets, then speaks."""
        await super().startup(sockets)
        if self.started and sockets:
            announce(sockets[0])


def serve(store_folder: Path) -> int:
    """Serves with the settings of the environment until told to stop.

    Raises SettingsError, KeysFileError, BundleError, AddressError or EmbeddedStoreError before anything listens.
    """
    settings = read_settings()
    if settings.bundle_root is not None:
        bundle_to_open(settings.bundle_root)  # says what is missing before a store is started for nothing
    KeyRing(settings.keys_file).open()
    if settings.id_hash_key is None:  # one for all workers: a user has one name in the lines of a start
        os.environ[variable("id_hash_key")] = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(bound) for bound in bound_sockets(settings)]
        if settings.redis_url is None:
            url = stack.enter_context(embedded_store(store_folder))
            os.environ[variable("redis_url")] = url
            print(f"behaviours: embedded Valkey at {url} (DAIAN_REDIS_URL names another store)", flush=True)
        if settings.workers > 1:
            stack.enter_context(_shared_metrics())
        return _listen(settings, sockets)


def server_config(settings: Settings) -> GuardedConfig:
    """uvicorn's configuration, every limit of it set by us."""
    config = GuardedConfig(
        "service.app:create_app_from_environment",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=GuardedProtocol,  # on httptools, the strict parser: h11 accepts two ways of framing one body
        loop="auto",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who a proxy speaks for, and no header is believed in that
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        timeout_worker_healthcheck=STUCK_S,
    )
    config.guards = Guards(settings.max_header_bytes, settings.receive_timeout_s, settings.max_connections_per_peer)
    return config


def announce(listening: socket.socket) -> None:
    """Where to rank, and where to play."""
    host, port = listening.getsockname()[:2]
    base = f"http://{host}:{port}"
    print(f"ranking at {base}/rank - a page to play with at {base}/docs", flush=True)


def _listen(settings: Settings, sockets: list[socket.socket]) -> int:
    if settings.admin_port is not None:
        os.environ[variable("admin_port")] = str(sockets[1].getsockname()[1])  # the workers tell by it who asks
    config = server_config(settings)
    if settings.workers > 1:
        announce(sockets[0])
        with tempfile.TemporaryDirectory(prefix="daian-connections-") as folder:
            config.tally_folder = Path(folder)
            supervisor = Supervisor(config, sockets=sockets)
            supervisor.run()
        return supervisor.exit_code()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the app listens to it
    # uvicorn raises the signal that stopped it once more at its end: an orderly stop exits with 0.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    server = AnnouncingServer(config)
    server.run(sockets)
    return 0 if server.started else STARTUP_FAILURE


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which the workers' counters meet; prometheus-client reads its name when it is first imported."""
    with tempfile.TemporaryDirectory(prefix="daian-metrics-") as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield
