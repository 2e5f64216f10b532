"""What a process is told about itself: when to look for garbage, who gives way to whom, and to give memory back.

Called by `app.py`, `retriever.py` and `runtime.py`. The first two were found in an overload of three times the
capacity: the collector stood still for 100 ms every second, and refusals that cost a tenth of a millisecond waited
50 ms for a worker's slice to end.
"""

import contextlib
import ctypes
import gc
import os
import sys
import threading

# New containers before the collector looks at the young ones; how often it then looks at the middle and the old ones.
COLLECT_AFTER = (10_000, 20, 100)
ON_ONE_CORE, ON_MORE = 5, 1  # how far workers stand behind the event loop, in steps of `nice`


def calm_the_collector() -> None:
    """Takes all that is loaded by now out of the collector's sight for good: code and libraries are no garbage.

    Called before a bundle is opened, because a bundle that was swapped out is garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def stand_behind_the_loop() -> None:
    """This thread gives way to the event loop, by `steps_back`.

    Only Linux has priorities for threads, and a sandbox may forbid them: then it stands beside the loop.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        of_process = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, of_process + steps_back()))


def steps_back() -> int:
    """Five on one core, where loop and workers take turns; one on more.

    The scheduler shares cores out by weight: workers of little weight beside a loop of much are put on one core
    together, and half of the other stands idle.
    """
    return ON_ONE_CORE if len(os.sched_getaffinity(0)) == 1 else ON_MORE


def give_freed_memory_back() -> bool:
    """What opening a bundle took for a moment goes back to the system; the C library would keep it, in every worker.

    Returns False where the C library has no such call (macOS, musl): all works there, only larger.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    trim(0)
    return True
