"""The supervisor owes SIGHUP to every worker until it could be given: not to one that starts, and to nobody twice."""

import os
import signal

import pytest
import uvicorn

from service.serving import Supervisor


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


def test_one_that_still_starts_gets_it_when_it_is_ready(supervisor: Supervisor, signalled: list[int]) -> None:
    starting = Worker(12, False)
    supervisor.processes = [Worker(11, True), starting]  # type: ignore[list-item]
    supervisor.handle_hup()
    supervisor.keep_subprocess_alive()
    assert signalled == [11]
    starting.ready = True
    supervisor.keep_subprocess_alive()
    assert signalled == [11, 12]


def test_who_took_the_place_of_a_dead_worker_needs_none(supervisor: Supervisor, signalled: list[int]) -> None:
    supervisor.processes = [Worker(11, False)]  # type: ignore[list-item]
    supervisor.handle_hup()
    supervisor.processes = [Worker(13, True)]  # type: ignore[list-item]
    supervisor.keep_subprocess_alive()
    assert signalled == []
