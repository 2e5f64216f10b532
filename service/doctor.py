"""`daian doctor`: looks at the machine, the store and the bundle, and says what would hurt later.

Called by `commands.py`. Changes nothing, and asks the store only what its ACL user may ask anyway.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import redis

from service.api_keys import KeysFileError, is_writable_by_others, read_keys
from service.app import store_settings
from service.bundle_signature import signed_check
from service.contract.bundle import read_bundle
from service.contract.errors import DaianError
from service.contract.pointer import bundle_to_open
from service.listening import address_fault
from service.redis_client import failure_advice, failure_kind
from service.redis_cluster import CommandClients
from service.runtime import check_bundle
from service.settings import Settings, usable_cores

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `is_fine` False is a failed check; None is worth knowing only."""

    what: str
    is_fine: bool | None
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which an operator would look."""
    checks: list[Callable[[Settings], Finding]] = [_threads, _memory, _port, _keys, _bundle]
    findings = [check(settings) for check in checks]
    return findings + _store(settings)


def _threads(settings: Settings) -> Finding:
    cores, asked = usable_cores(), settings.workers * settings.scorer_concurrency * settings.ort_threads
    detail = f"{asked} computing threads in {settings.workers} process(es) on {cores} usable cores, FAISS "
    detail += f"{faiss.omp_get_max_threads()} at import and 1 in service"
    return Finding("threads", asked <= cores, detail + ("" if asked <= cores else ": lower DAIAN_SCORER_CONCURRENCY"))


def _memory(settings: Settings) -> Finding:
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    root = settings.bundle_root
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) if root and root.is_dir() else 0
    return Finding("memory", None, f"{free / 1e6:.0f} MB free, bundles on disk {size / 1e6:.0f} MB (mapped, shared)")


def _port(settings: Settings) -> Finding:
    address = f"{settings.host}:{settings.port}"
    try:
        with socket.create_server((settings.host, settings.port)):
            return Finding("port", True, f"{address} is free")
    except OSError as error:
        return Finding("port", False, address_fault(settings.host, settings.port, error, "port"))


def _keys(settings: Settings) -> Finding:
    path = settings.keys_file
    if path is None:
        is_near = settings.host in LOOPBACK
        detail = "NO KEYS: whoever reaches the port may rank, write and erase (`daian keys add`, DAIAN_KEYS_FILE)"
        return Finding("keys", None if is_near else False, detail)
    try:
        keys = read_keys(path)
    except KeysFileError as error:
        return Finding("keys", False, str(error))
    if is_writable_by_others(path):
        return Finding("keys", False, f"{path} may be written by others, who could add keys: chmod go-w")
    n_tenants = len({key.tenant for key in keys})
    return Finding("keys", bool(keys), f"{len(keys)} live keys of {n_tenants} tenants" if keys else "none: all get 401")


def _bundle(settings: Settings) -> Finding:
    if settings.bundle_root is None:
        return Finding("bundle", False, "DAIAN_BUNDLE_ROOT is not set: name a folder that `daian export` wrote")
    try:
        return Finding("bundle", True, verify(settings.bundle_root, settings))
    except DaianError as error:
        return Finding("bundle", False, str(error))


def verify(path: Path, settings: Settings) -> str:
    """Opens a bundle as the service would and replays its golden requests. Raises BundleError for the first fault."""
    bundle = read_bundle(bundle_to_open(path), signed_check(settings))
    n_golden = check_bundle(bundle, settings.chunk, settings.ort_threads)
    return (
        f"{bundle.name}@{bundle.version}: {len(bundle.files)} files as hashed, {n_golden} golden requests as recorded"
    )


def _store(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        return [Finding("store", None, "DAIAN_REDIS_URL is not set: `daian serve` starts an embedded server")]
    store = store_settings(settings)
    clients = CommandClients(store.url, store)
    try:
        nodes = clients.all()
        for client in nodes:
            client.ping()
        findings = [Finding("store", True, f"{len(nodes)} nodes answer" if clients.is_cluster else "answers")]
        for client in nodes:
            findings += [_server_setting(client, *one) for one in _WANTED] + [_listpack(client, settings)]
            findings += [_replicas(client, settings)] if settings.redis_wait_replicas else []
        return findings
    except redis.RedisError as error:
        kind = failure_kind(error)
        return [Finding("store", False, f"does not answer ({kind}): {failure_advice(kind) or 'check DAIAN_REDIS_URL'}")]
    finally:
        clients.close()


_WANTED = (
    ("maxmemory-policy", "noeviction", "behaviours would be evicted silently"),
    ("appendonly", "yes", "acknowledged events would be lost with the process"),
)


def _server_setting(client: redis.Redis, name: str, wanted: str, otherwise: str) -> Finding:
    found = _config(client, name)
    if found is None:
        return Finding(f"store {name}", None, "this user may not ask (CONFIG)")
    detail = found if found == wanted else f"{found}, should be {wanted}: {otherwise}"
    return Finding(f"store {name}", found == wanted, detail)


def _listpack(client: redis.Redis, settings: Settings) -> Finding:
    found = _config(client, "zset-max-listpack-entries")
    if found is None:
        return Finding("store listpack", None, "this user may not ask (CONFIG)")
    is_fine = settings.behaviours_keep <= int(found)
    advice = "" if is_fine else ": histories take several times the memory, raise it above DAIAN_BEHAVIOURS_KEEP"
    return Finding("store listpack", is_fine, f"{found} entries stay compact, {settings.behaviours_keep} kept{advice}")


def _replicas(client: redis.Redis, settings: Settings) -> Finding:
    """Those that are connected and in step: the others confirm nothing."""
    wanted = settings.redis_wait_replicas
    try:
        about = client.info("replication")
    except redis.RedisError:
        return Finding("store replicas", None, "this user may not ask (INFO)")
    rows = [about.get(f"slave{number}") for number in range(int(about.get("connected_slaves", 0)))]
    n_found = sum(isinstance(row, dict) and row.get("state") == "online" for row in rows)
    advice = "" if n_found >= wanted else ": events would be refused (503), start replicas or lower the setting"
    detail = f"{n_found} in step, DAIAN_REDIS_WAIT_REPLICAS is {wanted}{advice}"
    return Finding("store replicas", n_found >= wanted, detail)


def _config(client: redis.Redis, name: str) -> str | None:
    try:
        return str(client.config_get(name).get(name, ""))
    except redis.RedisError:
        return None
