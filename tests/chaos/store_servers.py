"""Real servers on loopback for tests: a primary with a replica behind sentinels, and a cluster of three primaries.

Started and ended by a test, each in a folder of its own; nothing but these very processes is ever ended.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from service.embedded_store import _server_binary
from service.redis_client import command_client, with_password

# Of silence, after which a server counts as dead. Where one is to die, soon, but later than a busy machine may let it
# wait; `make chaos` asks for less. Where none is, never: an election that nobody wanted would spoil the test.
DOWN_AFTER_MS = int(os.environ.get("DAIAN_TEST_DOWN_AFTER_MS", "2500"))
NODE_TIMEOUT_MS = 2_500
NEVER_MS = 600_000


def free_port() -> int:
    """A port that is free now, and with a cluster's second one (10,000 above) below those that the system gives out."""
    for port in range(11_000 + time.monotonic_ns() % 5_000, 22_000):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 10_000)),
        ):
            return port
    raise RuntimeError("no port is free")


@dataclass
class Server:
    """One process that listens on 127.0.0.1."""

    port: int
    process: "subprocess.Popen[bytes]"
    folder: Path
    password: str | None = None

    def ask(self, *command: object) -> Any:
        """The reply to a command, asked on a connection of its own."""
        client = command_client(with_password(f"redis://127.0.0.1:{self.port}", self.password))
        try:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            client.close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Alive and doing nothing (SIGSTOP) for as long as the block runs."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """-9, as a machine that is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def started(folder: Path, *arguments: str, config: str | None = None, password: str | None = None) -> Server:
    """A server that answers. `config`: a sentinel with this file; `password`: what it asks for."""
    port = free_port()
    folder.mkdir(parents=True)
    command = [str(_server_binary())]
    if config is not None:
        (folder / "sentinel.conf").write_text(config)
        command += [str(folder / "sentinel.conf"), "--sentinel"]
    secret = ["--requirepass", password] if password else []
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *secret, *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    server = Server(port, process, folder, password)
    try:
        wait_for(lambda: bool(server.ask("PING")), 60)
    except BaseException:
        server.kill()
        raise
    return server


def wait_for(is_so: Callable[[], bool], timeout_s: float) -> None:
    """Returns when it is so; what cannot be asked yet is not so."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if is_so():
                return
        time.sleep(0.05)
    raise TimeoutError(f"not so within {timeout_s:g} s")


@dataclass
class Sentinels:
    """A primary, its replica, and three sentinels that watch them as `users`."""

    primary: Server
    replica: Server
    sentinels: Sequence[Server]

    @property
    def url(self) -> str:
        """The last sentinel is one that does not exist: the others have to do."""
        places = [f"127.0.0.1:{one.port}" for one in self.sentinels]
        return f"redis+sentinel://127.0.0.1:1,{','.join(places)}/users"


@contextlib.contextmanager
def pair(folder: Path, password: str | None = None) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica in step."""
    with contextlib.ExitStack() as stack:
        data = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"]
        data += ["--masterauth", password] if password else []
        primary = started(folder / "a", *data, password=password)
        stack.callback(primary.kill)
        replica = started(folder / "b", *data, "--replicaof", f"127.0.0.1 {primary.port}", password=password)
        stack.callback(replica.kill)
        wait_for(lambda: b"master_link_status:up" in _info(replica, "replication"), 60)
        yield primary, replica


@contextlib.contextmanager
def sentinels(
    folder: Path, password: str | None = None, sentinel_password: str | None = None, down_after_ms: int = NEVER_MS
) -> Iterator[Sentinels]:
    """Up, with the replica in step, for as long as the block runs. `password`: the servers'."""
    with contextlib.ExitStack() as stack:
        primary, replica = stack.enter_context(pair(folder, password))
        config = (
            f"sentinel monitor users 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds users {down_after_ms}\n"
            "sentinel failover-timeout users 2500\n"  # an election without a winner is held again after twice that
            + (f"sentinel auth-pass users {password}\n" if password else "")
            + (f"sentinel sentinel-pass {sentinel_password}\n" if sentinel_password else "")
        )
        watchers = list[Server]()
        for number in range(3):
            watchers.append(started(folder / f"s{number}", config=config, password=sentinel_password))
            stack.callback(watchers[-1].kill)
        wait_for(lambda: all(_knows_all(one) for one in watchers), 60)
        yield Sentinels(primary, replica, watchers)


@contextlib.contextmanager
def cluster(folder: Path, node_timeout_ms: int = NEVER_MS) -> Iterator[list[Server]]:
    """Three primaries, and a replica of the first as the fourth, all of one mind about who has which slot."""
    servers = list[Server]()
    try:
        for number in range(4):
            servers.append(
                started(
                    folder / f"n{number}", "--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms),
                    "--cluster-require-full-coverage", "no", "--appendonly", "yes", "--save", "",
                    "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0",
                )
            )  # fmt: skip
        first, *others = servers
        for number, (low, high) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            servers[number].ask("CLUSTER", "ADDSLOTSRANGE", low, high)
        for other in others:
            other.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        wait_for(lambda: all(b"cluster_known_nodes:4" in _state(one) for one in servers), 60)
        my_id = str(first.ask("CLUSTER", "MYID").decode())
        wait_for(lambda: bool(servers[3].ask("CLUSTER", "REPLICATE", my_id)), 60)
        wait_for(lambda: b"master_link_status:up" in _info(servers[3], "replication"), 60)
        wait_for(lambda: all(b"cluster_state:ok" in _state(one) for one in servers), 60)
        yield servers
    finally:
        for server in servers:
            server.kill()


def cluster_url(servers: Sequence[Server]) -> str:
    """Two of the nodes: the others are found."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in servers[:2])


def _info(server: Server, section: str) -> bytes:
    found = server.ask("INFO", section)
    return (
        str(found).encode()
        if not isinstance(found, dict)
        else b"\n".join(f"{k}:{v}".encode() for k, v in found.items())
    )


def _state(server: Server) -> bytes:
    found = server.ask("CLUSTER", "INFO")
    return found if isinstance(found, bytes) else "\n".join(f"{k}:{v}" for k, v in dict(found).items()).encode()


def _knows_all(sentinel: Server) -> bool:
    row = sentinel.ask("SENTINEL", "MASTER", "users")
    text = dict(row) if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
    found = {_text(key): _text(value) for key, value in text.items()}
    return found["num-other-sentinels"] == "2" and found["num-slaves"] == "1" and found["flags"] == "master"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
