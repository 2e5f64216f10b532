"""Files that appear under their name whole or not at all, whatever stops the machine. The one place in training that
flushes to the disk; called by whatever writes a file that is read again later.

A rename is safe only when the content was flushed before it and the folder's list of names after it.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that its name holds the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    take_name(partial, path)


def take_name(partial: Path, path: Path) -> None:
    """Gives a finished file, written beside it under another name, its name. An older file of that name is gone."""
    sync_to_disk(partial)
    os.replace(partial, path)
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Makes the folders that a path will lie in; after an error in the block, those that were made go again."""
    made = missing_above(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def missing_above(path: Path) -> list[Path]:
    """The folders above a path that are not there yet, the deepest first."""
    return [folder for folder in path.parents if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those that are there and hold nothing: what was made for a work that came to nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
