"""The serving verbs of `daian`: serve, rank, events, doctor, bench, config, keys, bundle, store, openapi.

Found through the entry-point group `daian.commands`. Thin: each verb imports what it needs when it runs, calls one
function, and prints it, for people or with `--json` for machines.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

NO_FOLDER = "{} is no folder: name the one that `daian export` wrote bundles into"
DEFAULT_URL = "http://127.0.0.1:8000"
Json = Annotated[bool, Parameter(name="--json", help="print JSON")]
Url = Annotated[str, Parameter(name="--url", help="the running service")]


def register(app: App) -> None:
    """Adds the serving verbs."""
    for verb in (serve, rank, doctor, bench, openapi):
        app.command(verb)
    events = App("events", help="Behaviours of users.")
    events.command(send)
    config = App("config", help="Settings.")
    config.command(show_settings, name="show")
    app.command(events)
    app.command(config)
    app.command(_key_verbs())
    app.command(_bundle_verbs())
    app.command(_store_verbs())


def _key_verbs() -> App:
    keys = App("keys", help="API keys.")
    verbs: dict[str, Callable[..., int]] = {"add": keys_add, "list": keys_list, "revoke": keys_revoke}
    for name, verb in verbs.items():
        keys.command(verb, name=name)
    return keys


def _bundle_verbs() -> App:
    bundle = App("bundle", help="Deployable models.")
    verbs: dict[str, Callable[..., int]] = {
        "verify": bundle_verify,
        "sign": bundle_sign,
        "show": bundle_show,
        "list": bundle_list,
        "promote": bundle_promote,
        "rollback": bundle_rollback,
    }
    for name, verb in verbs.items():
        bundle.command(verb, name=name)
    return bundle


def _store_verbs() -> App:
    store = App("store", help="The behaviour store.")
    verbs: dict[str, Callable[..., int]] = {"load": store_load, "inspect": store_inspect, "estimate": store_estimate}
    for name, verb in verbs.items():
        store.command(verb, name=name)
    return store


# --- serving ----------------------------------------------------------------------------------------------------------


def serve(
    bundles: Path | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    store_folder: Path = Path("artifacts/store"),
) -> int:
    """Serve rankings over HTTP until stopped.

    Parameters
    ----------
    bundles
        Folder that `daian export` wrote, or one bundle; else DAIAN_BUNDLE_ROOT.
    host
        Address to listen on; else DAIAN_HOST.
    port
        Port to listen on; else DAIAN_PORT.
    store_folder
        Where the embedded store keeps its data when DAIAN_REDIS_URL is not set.
    """
    # Workers are processes of their own: what is given here reaches them through the environment.
    for name, value in {"BUNDLE_ROOT": bundles and bundles.resolve(), "HOST": host, "PORT": port}.items():
        if value is not None:
            os.environ[f"DAIAN_{name}"] = str(value)
    from service.serving import serve as run_server

    return run_server(store_folder)


def rank(
    trigger: str,
    *candidates: str,
    user: str | None = None,
    top_k: int | None = None,
    deadline_ms: int | None = None,
    key_file: Path | None = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> int:
    """Ask a running service for a ranking.

    Parameters
    ----------
    trigger
        The item just clicked.
    candidates
        Items to rank; none: recall.
    user
        The user; none: anonymous.
    top_k
        How many items.
    deadline_ms
        How long the service may take.
    key_file
        File that holds the API key and nothing else, where the service asks for one.
    """
    asked: dict[str, object] = {"trigger": trigger, "user": user}
    asked |= {"candidates": list(candidates)} if candidates else {}
    asked |= {name: value for name, value in {"top_k": top_k, "deadline_ms": deadline_ms}.items() if value is not None}
    status, answer = _post(f"{url}/v1/rank", json.dumps(asked).encode(), "application/json", key_file)
    if status == 200 and not as_json:
        _print_ranking(answer)
    else:
        _print_json(answer)
    return 0 if status == 200 else 1


def send(file: Path, /, *, key_file: Path | None = None, url: Url = DEFAULT_URL, batch: int = 1000) -> int:
    """Send events to a running service and say what it refused and why; repeating a file changes nothing.

    Parameters
    ----------
    file
        NDJSON, one event a line; `-` is standard input.
    batch
        Events per call, at most 1000.
    key_file
        File that holds the API key and nothing else, where the service asks for one.
    """
    from service.event_sending import send_events, shown

    sent = send_events(
        _lines(file), lambda body: _post(f"{url}/v1/events", body, "application/x-ndjson", key_file), batch
    )
    _print_json(shown(sent))
    return 0 if sent.is_whole else 1


def doctor(*, as_json: Json = False) -> int:
    """Look at threads, memory, port, bundle and store, and say what would hurt later."""
    from service.doctor import examine
    from service.settings import read_settings

    findings = examine(read_settings())
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        marks = {True: "ok   ", False: "FAULT", None: "note "}
        for finding in findings:
            print(f"{marks[finding.is_fine]} {finding.what}: {finding.detail}")
    return 1 if any(finding.is_fine is False for finding in findings) else 0


def bench(
    bundles: Path,
    *,
    candidates: tuple[int, ...] = (100, 500),
    rounds: int = 5,
    seconds: float = 3.0,
    workers: int = 1,
    threads: int = 1,
    as_json: Json = False,
) -> int:
    """Measure how fast a bundle ranks on this machine: its graphs alone, and over HTTP with a store of their own.

    Parameters
    ----------
    bundles
        Folder that `daian export` wrote, or one bundle.
    candidates
        Candidates of a page; repeat it for more sizes.
    rounds
        Turns of each measurement; medians and quartiles are over them.
    seconds
        How long a turn over HTTP takes.
    workers
        Processes of the service.
    threads
        Requests that each of them computes at once.
    """
    from dataclasses import asdict

    from service.bench.bundle import BenchPlan, shown
    from service.bench.bundle import bench as measure
    from service.bench.served import Placement

    plan = BenchPlan(candidates, rounds, seconds, Placement(workers, threads))
    found = measure(bundles, plan, (lambda _: None) if as_json else print)
    if as_json:
        _print_json([asdict(one) for one in found])
    else:
        print(shown(found))
    return 0


def openapi() -> int:
    """Print the OpenAPI document."""
    from service.app import create_app
    from service.settings import Settings

    _print_json(create_app(Settings()).openapi())
    return 0


def show_settings(*, as_json: Json = False) -> int:
    """Every setting, its value and where it comes from; secrets are hidden."""
    from service.settings import origin, read_settings, variable

    settings = read_settings()
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        is_secret = hasattr(value, "get_secret_value")
        shown = "(hidden)" if is_secret else str(value) if isinstance(value, Path) else value
        found = {"name": variable(name), "value": shown, "origin": origin(name, os.environ)}
        rows.append({**found, "about": field.description})
    if as_json:
        _print_json(rows)
    else:
        for row in rows:
            print(f"{row['name']:<34} {row['value']!s:<16} {row['origin']:<26} {row['about']}")
    return 0


# --- keys -------------------------------------------------------------------------------------------------------------


def keys_add(*, tenant: str = "main", client: str = "default", scope: list[str], file: Path | None = None) -> int:
    """Make an API key and print it, this once: the file keeps its hash alone.

    Parameters
    ----------
    tenant
        Whose users the key is for.
    client
        Who uses the key; a client may have two at once, to change from one to the other.
    scope
        What it is good for: rank, events, catalogue, admin, erase; may be given several times.
    file
        The keys file; else DAIAN_KEYS_FILE.
    """
    from service.api_keys import add_key

    made = add_key(_keys_file(file), tenant, client, scope)
    print(made.text)
    print(f"daian: key {made.record.id} of {tenant}/{client}, not shown again", file=sys.stderr)
    return 0


def keys_list(*, file: Path | None = None, as_json: Json = False) -> int:
    """List the live keys: ids, tenants, clients, scopes; never the keys.

    Parameters
    ----------
    file
        The keys file; else DAIAN_KEYS_FILE.
    """
    from service.api_keys import read_keys

    rows = [key.model_dump(exclude={"sha256"}) for key in read_keys(_keys_file(file))]
    if as_json:
        _print_json(rows)
    else:
        for row in rows:
            print(f"{row['id']} {row['tenant']}/{row['client']} {','.join(row['scopes'])} {row['created_at']}")
    return 0


def keys_revoke(key_id: str, /, *, file: Path | None = None) -> int:
    """Revoke a key; running services forget it within seconds.

    Parameters
    ----------
    key_id
        The id that `daian keys list` shows.
    file
        The keys file; else DAIAN_KEYS_FILE.
    """
    from service.api_keys import revoke_key

    gone = revoke_key(_keys_file(file), key_id)
    print(f"revoked: {gone.id} of {gone.tenant}/{gone.client}")
    return 0


def _keys_file(given: Path | None) -> Path:
    from service.settings import read_settings

    path = given or read_settings().keys_file
    if path is None:
        raise ValueError("which keys file? Name it with --file, or set DAIAN_KEYS_FILE")
    return path


# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle_verify(path: Path) -> int:
    """Open a bundle as the service would: hashes, fingerprint, graphs, golden requests.

    Parameters
    ----------
    path
        A bundle, or the folder that holds `current`.
    """
    from service.contract.errors import BundleError
    from service.doctor import verify
    from service.settings import Settings

    try:
        print(verify(path, Settings()))
    except BundleError as error:
        print(f"daian: {error}", file=sys.stderr)
        return 1
    return 0


def bundle_sign(path: Path, *, key: Path) -> int:
    """Sign a bundle, after checking its hashes, for services that pin the public key (DAIAN_BUNDLE_PUBLIC_KEY).

    Parameters
    ----------
    path
        A bundle, or the folder that holds `current`.
    key
        Ed25519 private key in PEM: `openssl genpkey -algorithm ed25519 -out FILE` makes one.
    """
    from service.bundle_signature import sign_bundle
    from service.contract.pointer import bundle_to_open

    bundle = bundle_to_open(path)
    sign_bundle(bundle, key)
    print(f"signed: {bundle}")
    return 0


def bundle_show(path: Path) -> int:
    """Print the manifest of a bundle, after checking its hashes."""
    from service.contract.bundle import read_bundle
    from service.contract.pointer import bundle_to_open

    _print_json(dict(read_bundle(bundle_to_open(path)).manifest))
    return 0


def bundle_list(root: Path, *, as_json: Json = False) -> int:
    """List the bundles of a folder; the current one is marked."""
    if not root.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(root))
    current = _current(root)
    rows = [{"name": one.parent.name, "version": one.name, "current": one == current} for one in _bundles(root)]
    if as_json:
        _print_json(rows)
    else:
        for row in rows:
            print(f"{'*' if row['current'] else ' '} {row['name']} {row['version']}")
        if not rows:
            print(f"{root} holds no bundles: `daian export` writes them")
    return 0


def bundle_promote(root: Path, version: str) -> int:
    """Make a version the current one, after verifying it as the service would.

    Parameters
    ----------
    root
        The folder that holds the bundles.
    version
        Which version.
    """
    if not root.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(root))
    matching = [one for one in _bundles(root) if one.name == version]
    if len(matching) != 1:
        found = ", ".join(f"{one.parent.name} {one.name}" for one in matching) or "none"
        raise FileNotFoundError(
            f"{root}: one bundle of version {version} is needed, found {found}: see `daian bundle list {root}`"
        )
    return _point_to(root, matching[0])


def bundle_rollback(root: Path) -> int:
    """Make the version before the current one the current one again."""
    if not root.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(root))
    current = _current(root)
    siblings = [one for one in _bundles(root) if current is not None and one.parent == current.parent]
    place = siblings.index(current) if current in siblings else 0
    if place == 0:
        raise FileNotFoundError(f"{root} holds no version before the current one: promote another")
    return _point_to(root, siblings[place - 1])


def _bundles(root: Path) -> list[Path]:
    from service.contract.bundle import list_bundles

    return list_bundles(root)


def _current(root: Path) -> Path | None:
    from service.contract.bundle import current_path

    return current_path(root) if (root / "current").exists() else None


def _point_to(root: Path, path: Path) -> int:
    from service.bundle_swap import check_place
    from service.contract.bundle import point_to, read_bundle
    from service.doctor import verify
    from service.settings import Settings

    verify(path, Settings())  # with the signature, where this environment names a key
    bundle = read_bundle(path)
    check_place(bundle)
    point_to(root, bundle)
    print(
        f"current: {path.parent.name}@{path.name}; services that follow this folder take it within DAIAN_BUNDLE_POLL_S"
    )
    return 0


# --- the store --------------------------------------------------------------------------------------------------------


def store_load(*files: str, shift_ms: int = 0, as_json: Json = False) -> int:
    """Load users' behaviours into the store in bulk; repeating a file changes nothing.

    Parameters
    ----------
    files
        NDJSON, `{"user", "behaviours": [{"item", "at", "type"}], "attributes"}` a line; `-` is standard input.
    shift_ms
        Added to every time, to bring an old log into the window.
    """
    from service.store_load import load

    report = load(_store_settings(), files, shift_ms=shift_ms, progress=not as_json)
    _print_json(vars(report))
    return 0


def store_inspect(user: str) -> int:
    """Print what the store holds of one user."""
    from service.store_tools import inspect_user

    _print_json(inspect_user(_store_settings(), user))
    return 0


def store_estimate(users: int, *, behaviours: int = 58, item_bytes: int = 13, user_bytes: int = 13) -> int:
    """Measure on an embedded server how much memory so many users take.

    Parameters
    ----------
    users
        Users with a history.
    behaviours
        Behaviours kept per user.
    item_bytes
        Length of an item's id.
    user_bytes
        Length of a user's id.
    """
    from service.store_tools import estimate

    _print_json(estimate(users, behaviours, item_bytes, user_bytes))
    return 0


def _store_settings() -> Any:
    from service.app import store_settings
    from service.settings import read_settings

    return store_settings(read_settings())


# --- talking to a service, printing -----------------------------------------------------------------------------------


def _post(address: str, body: bytes, media_type: str, key_file: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a call. Raises FileNotFoundError when nobody answers."""
    import httpx

    headers = {"content-type": media_type}
    if key_file is not None:
        headers["authorization"] = f"Bearer {_key_in(key_file)}"
    try:
        answer = httpx.post(address, content=body, headers=headers, timeout=10.0)
    except httpx.TransportError as error:
        raise FileNotFoundError(f"no service answers at {address} ({error}): start one with `daian serve`") from error
    return answer.status_code, answer.json()


def _key_in(file: Path) -> str:
    """The one key in a file. Raises FileNotFoundError, or ValueError that names the file and never what is in it."""
    key = file.read_bytes().strip()
    if not key or any(not 33 <= byte <= 126 for byte in key):
        raise ValueError(f"{file} must hold one API key on one line and nothing else")
    return key.decode("ascii")


def _lines(file: Path) -> Iterable[bytes]:
    if str(file) == "-":
        yield from sys.stdin.buffer
    else:
        with file.open("rb") as stream:
            yield from stream


def _print_ranking(answer: Mapping[str, Any]) -> None:
    intent = answer["intent"]
    if intent:
        print("intent  " + "  ".join(_bars(intent["edges"], intent["applied"])))
    if answer["degraded"]:
        print("without " + ", ".join(answer["degraded"]))
    print(f"{'rank':>4}  {'ctr':>7}  {'similarity':>10}  {'level':>5}  reason           item")
    for item in answer["items"]:
        similarity = "-" if item["similarity"] is None else f"{item['similarity']:.3f}"
        line = f"{item['rank']:>4}  {item['ctr']:>7.4f}  {similarity:>10}  {item['level']:>5}  {item['reason']:<15}"
        print(f"{line}  {item['id']}")
    print(f"{answer['timing_ms']['total']} ms, {answer['model']['name']}@{answer['model']['version']}")


def _bars(edges: Sequence[float], shares: Sequence[float]) -> list[str]:
    return [f"{low:.2f}..{high:.2f} {share:4.0%}" for low, high, share in zip(edges, edges[1:], shares, strict=False)]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
