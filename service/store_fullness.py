"""Fullness: whether one server's memory has room for more, with a gap between full and no longer full.

`user_store.py` keeps one per server (of a cluster, per range of slots) and asks it before it adds anything; reads and
erasures never do. A server that is full to the last byte refuses writes one by one, takes some in between, and cannot
note an erasure either: stopping short of that leaves it the room, and the gap keeps senders from flapping. Only where
the server evicts nothing: one that evicts is always full, and has agreed to lose users.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import redis.asyncio

FULL, ROOM = 0.95, 0.90  # of maxmemory: refused from the one on, until below the other
EVERY_S = 1.0  # between two looks
FRESH_S = 60.0
_log = logging.getLogger("daian.store")


async def memory_of(client: "redis.asyncio.Redis") -> list[object]:
    """What a server says of its memory, for `Fullness.saw`; an error where our user may not ask."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command("INFO", "memory")
        replies: list[object] = await pipe.execute(raise_on_error=False)
        return replies


class Fullness:
    """What is known of one server's memory; `share` of its limit is used, 0 where there is none or nobody says."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = 0.0
        self.is_full = False
        self._is_known = True
        self._looked_s: float | None = None
        self._before_s: float | None = None
        self._clock = clock

    def is_due(self) -> bool:
        """Whether it is time to look; says so to one caller, who then does."""
        now_s = self._clock()
        if self._looked_s is not None and now_s - self._looked_s < EVERY_S:
            return False
        self._before_s, self._looked_s = self._looked_s, now_s
        return True

    def not_looked(self) -> None:
        """Who was to look was not let through to the server: the next one may."""
        self._looked_s = self._before_s

    @property
    def is_fresh(self) -> bool:
        """Whether somebody has looked lately: where slots have moved, nobody looks at what they were any more."""
        return self._looked_s is not None and self._clock() - self._looked_s < FRESH_S

    def saw(self, replies: Sequence[object]) -> None:
        """Takes what `memory_of` was told."""
        share = _share(replies[0]) if replies and isinstance(replies[0], Mapping) else None
        if share is None and self._is_known:
            _log.warning("the store does not say how full it is (+info): events are refused only when it is")
        self._is_known, self.share = share is not None, share or 0.0
        if self.is_full != (is_full := self.share >= (ROOM if self.is_full else FULL)):
            self._say(is_full)

    def refused(self) -> None:
        """The server itself has refused a write for want of memory: more came between two looks than had room."""
        if self.share and not self.is_full:
            self._say(True)

    def _say(self, is_full: bool) -> None:
        self.is_full = is_full
        used = f"{self.share:.0%} of the store's memory are used"
        said = f"events are refused until it is less than {ROOM:.0%}" if is_full else "events are taken again"
        _log.warning("%s: %s", used, said)


def _share(told: Mapping[str, object]) -> float | None:
    """Used memory, as the server counts it against its limit (without the buffers that it may not evict for).

    0 where there is no limit, or where it evicts; None where the reply does not say.
    """
    used, most, spare = (told.get(name) for name in ("used_memory", "maxmemory", "mem_not_counted_for_evict"))
    if not isinstance(used, int) or not isinstance(most, int):
        return None
    if most <= 0 or told.get("maxmemory_policy", "noeviction") != "noeviction":
        return 0.0
    return max(0, used - (spare if isinstance(spare, int) else 0)) / most
