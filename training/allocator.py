"""Keeps the memory that a training step frees. Called by `training.train`; never by the service.

A step makes and frees the same tensors of tens of megabytes. The C library maps each from the system anew and gives it
back, and the kernel clears every page of it each time: 40 % of the time of a small run of DIN (docs/compare.md).
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory(n_bytes: int = 1 << 30) -> bool:
    """Lets blocks of up to so many bytes, and so much free memory, stay with this process.

    Returns False where the C library has no such setting (macOS, musl): all works there, only slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, n_bytes) and mallopt(_M_TRIM_THRESHOLD, n_bytes))
