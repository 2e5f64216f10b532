"""API keys: the file that holds their hashes, the making and revoking of keys, and the ring that knows them.

The file is JSON, written whole by `daian keys` and read by every process that serves; it holds SHA-256 of each key and
never the key. A key is `daian_<id>_<secret>`: the id is public and finds the record, the secret has 256 random bits, so
a plain hash is enough. A changed file is taken without a restart; a broken one is refused and the keys before it stay.
Called by `api/gate.py` (who is this), `commands.py` (add, list, revoke) and `doctor.py`. Never logs a key or a hash.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ServiceError

Scope = Literal["rank", "events", "catalogue", "admin", "erase"]
SCOPES: tuple[Scope, ...] = ("rank", "events", "catalogue", "admin", "erase")
LIVE_PER_CLIENT = 2  # one in use and the one that is to replace it

_KEY = re.compile(r"daian_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
_log = logging.getLogger("daian.keys")


class KeysFileError(ServiceError):
    """A keys file that cannot be read, is not one, or does not allow what was asked."""


class ApiKey(BaseModel):
    """One live key, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    tenant: _Name
    client: _Name
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: `text` exists here and nowhere else."""

    text: str
    record: ApiKey


class KeyRing:
    """The live keys of one process. Without a file it is off, and everyone is let in by whoever asks it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._by_id: dict[str, ApiKey] = {}
        self.tenants: frozenset[str] = frozenset()  # with a live key
        self._seen: tuple[int, ...] = ()
        self._nobody = secrets.token_bytes(32)  # compared with where no record is: the time says nothing of the id

    @property
    def is_on(self) -> bool:
        """Whether a keys file is named."""
        return self._path is not None

    def open(self) -> None:
        """Reads the file, if one is named. Raises KeysFileError."""
        if self._path is not None:
            self._seen = _signature(self._path)
            self._take(read_keys(self._path))

    def _take(self, keys: Iterable[ApiKey]) -> None:
        self._by_id = {key.id: key for key in keys}
        self.tenants = frozenset(key.tenant for key in self._by_id.values())

    def reload_if_changed(self) -> bool:
        """Takes a changed file and says whether it did; a broken one is told of once, and changes nothing."""
        if self._path is None or (found := _signature(self._path)) == self._seen:
            return False
        self._seen = found
        try:
            self._take(read_keys(self._path))
        except KeysFileError as error:
            _log.error("keys file refused, the keys before it stay: %s", error)
            return False
        _log.info("keys file taken", extra={"fields": {"n_keys": len(self._by_id)}})
        return True

    def find(self, given: str) -> ApiKey | None:
        """The record of a key; None for whatever is not a live key, in the same time whatever was wrong with it."""
        shape = _KEY.fullmatch(given)
        record = self._by_id.get(shape.group(1)) if shape else None
        expected = bytes.fromhex(record.sha256) if record else self._nobody
        is_same = hmac.compare_digest(_digest(given), expected)
        return record if is_same else None


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises KeysFileError, which says where the file is wrong and nothing of what is in it."""
    try:
        found = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise KeysFileError(f"{path} cannot be read ({error.strerror}): `daian keys add` makes one") from error
    except ValidationError as error:
        places = {".".join(map(str, one["loc"])) or "file": one["msg"] for one in error.errors(include_input=False)}
        where = "; ".join(f"{place}: {message}" for place, message in places.items())
        raise KeysFileError(f"{path} is not a keys file ({where}): restore it, or make it again") from None
    ids = [key.id for key in found.keys]
    if len(set(ids)) < len(ids):
        raise KeysFileError(f"{path} has an id twice: remove one of them")
    return found.keys


def add_key(path: Path, tenant: str, client: str, scopes: Sequence[str]) -> NewKey:
    """Makes a key and writes its hash to the file, which is made where there is none.

    Raises:
        KeysFileError: the client has two live keys already, or the file is not a keys file.
        ValueError: a name or scope that cannot be one.
    """
    key_id = secrets.token_hex(6)
    text = f"daian_{key_id}_{secrets.token_urlsafe(32)}"
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    try:
        record = ApiKey.model_validate(
            {"id": key_id, "tenant": tenant, "client": client, "scopes": tuple(dict.fromkeys(scopes)),
             "sha256": _digest(text).hex(), "created_at": created_at}
        )  # fmt: skip
    except ValidationError as error:
        wrong = ", ".join(sorted({str(one["loc"][0]) for one in error.errors(include_input=False)}))
        raise ValueError(
            f"{wrong}: names are 1 to 32 characters of a-z, 0-9 and '-'; scopes are {', '.join(SCOPES)}"
        ) from None
    with _changing(path) as keys:
        n_live = sum((key.tenant, key.client) == (tenant, client) for key in keys)
        if n_live >= LIVE_PER_CLIENT:
            raise KeysFileError(
                f"this client has {n_live} live keys already: move it to the newer one and revoke the older"
            )
        keys.append(record)
    return NewKey(text, record)


def revoke_key(path: Path, key_id: str) -> ApiKey:
    """Takes a key out of the file. Raises KeysFileError when it is not there."""
    with _changing(path) as keys:
        found = [key for key in keys if key.id == key_id]
        if not found:
            raise KeysFileError(f"{path} has no key of that id: `daian keys list` shows them")
        keys.remove(found[0])
    return found[0]


def is_writable_by_others(path: Path) -> bool:
    """Whether somebody who is neither the owner nor root may add keys."""
    return bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


@contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """The file's keys, written back whole when the block ends well; two commands at once wait for each other."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        _write(path, keys)
    finally:
        os.close(folder)


def _write(path: Path, keys: Iterable[ApiKey]) -> None:
    """All or nothing: a reader sees the old file or the new one. New files are the owner's alone."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(_File(keys=tuple(keys)).model_dump_json(indent=1) + "\n")
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _signature(path: Path) -> tuple[int, ...]:
    """Changes when the file does; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
