"""The pointer `current`, which names the bundle that is served, and how a bundle's file is read before it is trusted.

Used by `bundle.py`, and by the parent of the service's workers, which opens no bundle: nothing here imports numpy,
FAISS or what else an encoder takes. Never here: what a manifest must say (`manifest.py`), whole bundles (`bundle.py`).
"""

import hashlib
import json
import stat
from pathlib import Path

from service.contract.errors import BundleError
from service.contract.manifest import NAME

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20  # parsed before anything of it could be trusted
MAX_POINTER_BYTES = 64 << 10


def read_manifest(path: Path) -> bytes:
    """The manifest of the bundle in `path`, unparsed. Raises BundleError when it cannot be read or is too large."""
    return file_content(path / MANIFEST, MAX_MANIFEST_BYTES)


def current_path(root: Path) -> Path:
    """The folder that `current` points to. Raises BundleError when there is none or its manifest is another one."""
    return read_pointer(root)[0]


def read_pointer(root: Path) -> tuple[Path, str]:
    """The same with the hash of its manifest, which is that of `Bundle.digest`."""
    pointer = parsed(root / "current", file_content(root / "current", MAX_POINTER_BYTES))
    parts = [str(pointer.get(key, "")) for key in ("name", "version")]
    if not all(NAME.fullmatch(part) for part in parts):
        raise BundleError(f"{root / 'current'} names {parts}: promote a bundle again")
    path = root.joinpath(*parts)
    digest = hashlib.sha256(read_manifest(path)).hexdigest()
    compare(path / MANIFEST, digest, pointer.get("manifest_sha256"))
    return path, digest


def bundle_to_open(root: Path) -> Path:
    """The bundle that `root` means: the pointer's target, or `root` itself when it is a bundle folder."""
    return root if (root / MANIFEST).is_file() else current_path(root)


def is_version(text: str) -> bool:
    """True for what may name a bundle or a version, and so a folder."""
    return NAME.fullmatch(text) is not None


def file_content(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file. Raises BundleError for another kind, one of more than `most` bytes, or none."""
    try:
        found = path.lstat()
        check_kind(path, found.st_mode)
        if most is not None and found.st_size > most:
            raise BundleError(f"{path} has {found.st_size} bytes, {most} are allowed: export the bundle again")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): export or copy the bundle again") from error


def parsed(path: Path, content: bytes) -> dict[str, object]:
    """The JSON object in the bytes of `path`. Raises BundleError for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}): export or copy the bundle again") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds {type(value).__name__}, not an object: export the bundle again")
    return value


def compare(path: Path, found: str, expected: object) -> None:
    """Raises BundleError when the hash that was found is not the one that was promised."""
    if found != expected:
        raise BundleError(
            f"{path}: SHA-256 is {found[:12]}, expected {str(expected)[:12]}: the file was altered or cut"
        )


def check_kind(path: Path, mode: int) -> None:
    """Raises BundleError for all but a regular file: a link may lead out of the bundle, a pipe lets its reader wait
    for ever.
    """
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise BundleError(f"{path} is {kind}: bundles hold files only")
