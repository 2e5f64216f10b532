"""Arrays mapped from the files of a folder; whatever is wrong with one, the error names its file. And their bytes.

Used by catalogue, indexes and the runtime. numpy's own reader raises what its parser happens to: a broken header alone
may be a ValueError, a SyntaxError or a TokenError.
"""

from pathlib import Path

import numpy as np

from service.contract.errors import SchemaError


def open_array(path: Path) -> np.ndarray:
    """A read-only plain view of the mapping: numpy.memmap itself costs microseconds at every slice.

    Raises SchemaError, naming the file, for one that is missing or is not an array.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:
        raise SchemaError(f"{path} holds no readable array ({error})") from error


def content_of(array: np.ndarray) -> memoryview:
    """The array's bytes for a digest, without a copy: what every worker copies once stays as holes in its heap."""
    return np.ascontiguousarray(array).data


def all_below(places: np.ndarray, n: int) -> bool:
    """Whether all of these lead into an array of n."""
    return len(places) == 0 or (int(places.min()) >= 0 and int(places.max()) < n)
