"""Batches that the store has taken and could still lose: held until they are in its append-only file.

A server with `appendfsync everysec` answers before it writes, and while a sync of its disk is under way it puts the
write off for up to two seconds: killed in between, it forgets what it has acknowledged. So batches are held, the server
is asked every so often, and what was held is sent again when another server process answers than took it.
Called by `store_load.py` alone. Never sends a batch the first time, never holds more than a bound.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import redis
import redis.client
from redis import exceptions

from service.contract.errors import DaianError
from service.redis_client import STORE_ERRORS, failure_kind

# What is held before the store is asked. A member takes about 150 bytes of Python: at most 4 MB of profiles and 20 MB
# of behaviours.
HELD_BYTES = 4 << 20
HELD_MEMBERS = 100_000
# Less than a command's socket timeout (5 s), more than a write may be put off (2 s).
WAIT_MS = 3_000
# Pauses between questions that got no answer or another than yes, seconds.
ASK_PAUSES_S = (0.1, 0.3, 1.0, 3.0)

Batch = TypeVar("Batch")


class NotKeptError(DaianError):
    """The store lost, or may have lost, what it had taken, or does not write its file."""


class HeldBatches(Generic[Batch]):
    """What one load has sent and the store has not confirmed.

    A server process is known by the `run_id` of `INFO server`, a new one at every start: when it is the same before the
    first of the held batches and behind the last, one process took them all. redis-py connects anew without a word, so
    nothing is concluded from a connection.

    Args:
        client: the connection that the batches are sent on.
        queue: queues the commands of a batch's last user. They must repeat without effect and hold a write that is
            never left out of the append-only file (EXPIRE, SET): see `_asked`.
        send: sends a batch again, with patience, and raises when the store stays away.
        after: called with a batch whose last user's commands were sent to ask; may raise STORE_ERRORS.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: Callable[[redis.client.Pipeline, Batch], object],
        send: Callable[[Batch], object],
        after: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        self._client, self._queue, self._send, self._after = client, queue, send, after
        self._batches: list[Batch] = []
        self._n_members, self._n_bytes = 0, 0
        self._is_met, self._run_id = False, ""
        self.is_confirmed = True
        self.n_sent_again = 0

    def meet(self) -> None:
        """Learns which server process answers; to be called before a batch is sent. Raises STORE_ERRORS."""
        if not self._is_met:
            pipe = self._client.pipeline(transaction=False)
            pipe.execute_command("INFO", "server")  # type: ignore[no-untyped-call]
            self._run_id = _run_id(_answers(pipe, n_may_be_refused=1)[0])
            self._is_met = True

    def hold(self, batch: Batch, n_members: int, n_bytes: int) -> None:
        """Takes a batch that was sent; asks the store when there is enough of them. Raises as `confirm` does."""
        self._batches.append(batch)
        self._n_members += n_members
        self._n_bytes += n_bytes
        if self._n_members >= HELD_MEMBERS or self._n_bytes >= HELD_BYTES:
            self.confirm()

    def confirm(self) -> None:
        """Returns with nothing held: all of it is in the append-only file, or (`is_confirmed` is False) nobody knows.

        Raises:
            NotKeptError: a restarted server that keeps no such file, one that does not write it, or no answer.
            DaianError: what `send` raises.
        """
        trouble = "no answer"
        for pause_s in (*ASK_PAUSES_S, None) if self._batches else ():
            try:
                run_id, kept = self._asked()
            except STORE_ERRORS as error:
                trouble = failure_kind(error)
            else:
                if run_id == self._run_id and kept is not False:
                    self._drop(is_confirmed=bool(kept and run_id))
                    return
                trouble = self._sent_again(run_id, kept)
            if pause_s is not None:
                time.sleep(pause_s)
        if self._batches:
            raise NotKeptError(f"the store did not say that it has kept what it took ({trouble})")

    def _sent_again(self, run_id: str, kept: bool | None) -> str:
        """Sends what is held to a new server process; what is wrong, in a few words."""
        if run_id == self._run_id:
            return "it writes no append-only file, or slowly: appendfsync no, or its disk"
        if kept is None:
            raise NotKeptError("the store was restarted and keeps no append-only file (or is older than Redis 7.2)")
        self._run_id = run_id
        for batch in self._batches:
            self._send(batch)
        self.n_sent_again += len(self._batches)
        return "it is restarted again and again"

    def _drop(self, is_confirmed: bool) -> None:
        self._batches, self._n_members, self._n_bytes = [], 0, 0
        self.is_confirmed = self.is_confirmed and is_confirmed

    def _asked(self) -> tuple[str, bool | None]:
        """(`run_id` or "", whether all is in the file or None where it cannot say). Raises STORE_ERRORS.

        WAITAOF waits for the last write of its own connection: on one made a moment ago it would answer at once,
        whatever was read on it before. A write goes first, so, and in one pipeline there is no other connection.
        """
        pipe = self._client.pipeline(transaction=False)
        self._queue(pipe, self._batches[-1])
        pipe.execute_command("INFO", "server")  # type: ignore[no-untyped-call]
        pipe.execute_command("WAITAOF", 1, 0, WAIT_MS)  # type: ignore[no-untyped-call]
        *_, server, kept = _answers(pipe, n_may_be_refused=2)
        self._after(self._batches[-1])
        return _run_id(server), None if isinstance(kept, Exception) else _first(kept) >= 1


def _answers(pipe: redis.client.Pipeline, n_may_be_refused: int) -> Sequence[object]:
    """All replies; a refusal is raised unless it is of the last few commands."""
    replies = pipe.execute(raise_on_error=False)
    n_strict = len(replies) - n_may_be_refused
    for place, reply in enumerate(replies):
        is_refusal = isinstance(reply, exceptions.ResponseError)
        if isinstance(reply, Exception) and (place < n_strict or not is_refusal):
            raise reply
    return replies


def _run_id(server: object) -> str:
    """ "" where the user may not ask, or is not told."""
    return str(server.get("run_id", "")) if isinstance(server, dict) else ""


def _first(reply: object) -> int:
    return int(reply[0]) if isinstance(reply, list) and reply else 0
