"""Processes that work tasks off. Called by `training.compare`; knows nothing of models.

Each worker is a fresh interpreter (spawn) with a pipe of its own. A worker that dies (out of memory, a crash in a
library) costs the task it had and is replaced; the others go on. Workers leave when their parent is gone.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple


class Done(NamedTuple):
    """A task that is over: its result, or why there is none (with the traceback, where there was one)."""

    task: Any
    result: Any
    failure: str | None = None
    trace: str = ""


class Said(NamedTuple):
    """What a worker says while it works."""

    worker: int
    task: Any
    text: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Any = None


class WorkerPool:
    """`n` processes. Use it in a `with` block: leaving it ends them, whatever they are doing."""

    def __init__(self, work: Callable[[Any, Callable[[str], None]], Any], n: int) -> None:
        self._work = work
        self._context = multiprocessing.get_context("spawn")
        self._waiting: deque[Any] = deque()
        self._workers = [self._start() for _ in range(n)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._workers:
            worker.pipe.close()  # one that waits for a task leaves by itself
            if worker.task is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def add(self, task: Any) -> None:
        """Puts a task behind those that wait."""
        self._waiting.append(task)

    def add_first(self, task: Any) -> None:
        """Puts a task before those that wait."""
        self._waiting.appendleft(task)

    def events(self) -> Iterator[Done | Said]:
        """What happens, until no task is left. Tasks may be added meanwhile."""
        while True:
            self._hand_out()
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe in ready:
                    yield self._received(worker)

    def _hand_out(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker.task is None and self._waiting:
                if not worker.process.is_alive():
                    self._workers[place] = worker = self._start()
                worker.task = self._waiting.popleft()
                worker.pipe.send(worker.task)

    def _received(self, worker: _Worker) -> Done | Said:
        try:
            found: Any = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._died(worker)
        if isinstance(found, str):
            return Said(self._workers.index(worker), worker.task, found)
        task, worker.task = worker.task, None
        return Done(task, *found)

    def _died(self, worker: _Worker) -> Done:
        worker.process.join()
        task = worker.task
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()
        return Done(task, None, f"its process died with exit code {worker.process.exitcode}; out of memory?")

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._work, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _serve(work: Callable[[Any, Callable[[str], None]], Any], pipe: Connection, parent: int) -> None:
    """The worker's life: a task from the pipe, its result back, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers itself

    def say(text: str) -> None:
        if os.getppid() != parent:  # killed: whoever comes next must find the folders to itself
            os._exit(1)
        pipe.send(text)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                answer: tuple[Any, str | None, str] = (work(task, say), None, "")
            except Exception as error:  # noqa: BLE001 - whatever it was, it is reported as this task's failure
                answer = (None, f"{type(error).__name__}: {error}", traceback.format_exc())
            pipe.send(answer)
