"""The supervisor owes SIGHUP to every worker until it could be given: not to one that starts, and to nobody twice.

Its twins pass the signal on at once, or never cross out what was given. And every limit of the server is ours.
"""

import os
import signal

import pytest
import uvicorn

from service.serving import Supervisor, server_config
from service.settings import Settings


class Worker:
    """A worker that is ready, or not yet."""

    def __init__(self, pid: int, is_ready: bool) -> None:
        self.pid, self.ready = pid, is_ready

    def is_alive(self, timeout: float = 5) -> bool:  # noqa: ARG002
        return True

    def is_ready(self, timeout: float = 5) -> bool:  # noqa: ARG002
        return self.ready


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert number == signal.SIGHUP
        found.append(pid)

    monkeypatch.setattr(os, "kill", kill)
    return found


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handlers
    return Supervisor(uvicorn.Config("service.app:create_app", workers=2), [])


def test_each_ready_worker_gets_it_once(supervisor: Supervisor, signalled: list[int]) -> None:
    supervisor.processes = [Worker(11, True), Worker(12, True)]  # type: ignore[list-item]
    supervisor.handle_hup()
    for _ in range(3):
        supervisor.keep_subprocess_alive()
    assert signalled == [11, 12]


def test_saboteur_a_debt_that_is_never_crossed_out_is_paid_again_and_again(
    supervisor: Supervisor, signalled: list[int]
) -> None:
    class Debts(set[int | None]):
        def discard(self, _: object) -> None: ...

    supervisor.processes = [Worker(11, True)]  # type: ignore[list-item]
    supervisor.handle_hup()
    supervisor._to_signal = Debts(supervisor._to_signal)
    for _ in range(3):
        supervisor.keep_subprocess_alive()
        supervisor._to_signal = Debts(supervisor._to_signal)
    assert signalled == [11, 11, 11]


def signalled_before_and_after_its_start(supervisor: Supervisor, signalled: list[int]) -> tuple[list[int], list[int]]:
    """Who has the signal while the second of two workers still starts, and who once it is ready."""
    starting = Worker(12, False)
    supervisor.processes = [Worker(11, True), starting]  # type: ignore[list-item]
    supervisor.handle_hup()
    supervisor.keep_subprocess_alive()
    before = list(signalled)
    starting.ready = True
    supervisor.keep_subprocess_alive()
    return before, signalled


def test_one_that_still_starts_gets_it_when_it_is_ready(supervisor: Supervisor, signalled: list[int]) -> None:
    assert signalled_before_and_after_its_start(supervisor, signalled) == ([11], [11, 12])


def test_saboteur_passed_on_at_once_it_would_end_the_one_that_starts(
    supervisor: Supervisor, signalled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(parent: Supervisor) -> None:
        for process in parent.processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGHUP)

    monkeypatch.setattr(Supervisor, "handle_hup", at_once)
    assert signalled_before_and_after_its_start(supervisor, signalled)[0] == [11, 12]


def test_who_took_the_place_of_a_dead_worker_needs_none(supervisor: Supervisor, signalled: list[int]) -> None:
    supervisor.processes = [Worker(11, False)]  # type: ignore[list-item]
    supervisor.handle_hup()
    supervisor.processes = [Worker(13, True)]  # type: ignore[list-item]
    supervisor.keep_subprocess_alive()
    assert signalled == []


def test_a13_every_limit_of_the_server_is_the_one_that_we_set() -> None:
    settings = Settings(grace_s=7, port=0)
    config, left_alone = server_config(settings), uvicorn.Config("service.app:create_app")
    assert (config.backlog, config.timeout_keep_alive, config.timeout_graceful_shutdown) == (2048, 75, 7)
    assert (config.timeout_worker_healthcheck, config.limit_concurrency, config.limit_max_requests) == (5, None, None)
    assert (config.proxy_headers, config.server_header, config.access_log, config.ws) == (False, False, False, "none")
    assert left_alone.proxy_headers  # the saboteur: the library believes what a neighbour says of whom it speaks for
    assert left_alone.timeout_graceful_shutdown is None  # and waits for a stalled body for ever
