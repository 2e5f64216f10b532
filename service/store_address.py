"""Where the store is, read from its URL: one server, servers behind sentinels, or a cluster.

    redis://[user[:password]@]host[:port][/db]                                   one server; rediss:// with TLS
    unix://[user[:password]@]/path/to.sock                                       one server on this machine
    redis+sentinel://[user[:password]@]host[:port],host[:port]/service[/db]      sentinels; rediss+sentinel://
    redis+cluster://[user[:password]@]host[:port],host[:port]                    some nodes of a cluster; rediss+cluster://

Called by `redis_client.py` and `redis_cluster.py`. Never connects; no message repeats a URL, which may hold a password.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

Mode = Literal["standalone", "sentinel", "cluster"]
Node = tuple[str, int]

REDIS_PORT, SENTINEL_PORT = 6379, 26379
_SCHEMES: dict[str, tuple[Mode, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("standalone", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}


@dataclass(frozen=True)
class StoreAddress:
    """A store's URL, taken apart. `nodes`: the server, the sentinels, or the nodes that are asked for the others."""

    mode: Mode
    is_tls: bool
    nodes: tuple[Node, ...] = ()
    service: str | None = None
    db: int = 0
    user: str | None = None
    password: str | None = None


def split_url(url: str) -> tuple[str, str, str, str]:
    """(scheme, user:password, host:port[,host:port], what stands behind them).

    Not `urlsplit`: that knows one host, and newer Pythons refuse the brackets of a second one.
    """
    scheme, _, rest = url.partition("://")
    end = min((rest.index(mark) for mark in "/?#" if mark in rest), default=len(rest))
    credentials, _, places = rest[:end].rpartition("@")
    return scheme, credentials, places, rest[end:]


def parse_address(url: str) -> StoreAddress:
    """The address in a URL.

    Raises:
        ValueError: another scheme, a query (limits are set by settings alone), or a part that is missing or too much.
    """
    scheme, credentials, places, behind = split_url(url)
    try:
        parts = urlsplit(f"{scheme}://{credentials}@{places.split(',')[0]}{behind}")
    except ValueError as error:
        raise ValueError("the store's URL cannot be read: look at the brackets of its IPv6 addresses") from error
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"the store's URL is none of {', '.join(f'{name}://' for name in _SCHEMES)}: correct its start"
        )
    mode, is_tls = _SCHEMES[parts.scheme]
    unwanted = set(parse_qs(parts.query, keep_blank_values=True)) - ({"db"} if mode == "standalone" else set())
    if unwanted:
        raise ValueError(
            f"the store's URL sets {', '.join(sorted(unwanted))}: remove it, limits are set by DAIAN_REDIS_* alone"
        )
    if mode == "standalone":
        return StoreAddress(mode, is_tls)
    user, _, password = credentials.partition(":")
    service, db = _service_and_db(parts, mode)
    port = SENTINEL_PORT if mode == "sentinel" else REDIS_PORT
    nodes = tuple(_node(place, port) for place in places.split(","))
    return StoreAddress(mode, is_tls, nodes, service, db, unquote(user) or None, unquote(password) or None)


def _service_and_db(parts: SplitResult, mode: Mode) -> tuple[str | None, int]:
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    if mode == "cluster":
        if path and path != ["0"]:
            raise ValueError("a cluster has database 0 alone: remove what stands behind its nodes in the store's URL")
        return None, 0
    if not path or len(path) > 2 or (len(path) == 2 and not path[1].isdigit()):
        raise ValueError(
            "name what the sentinels watch: redis+sentinel://host:26379,host:26379/service, or /service/db"
        )
    return path[0], int(path[1]) if len(path) == 2 else 0


def _node(place: str, default_port: int) -> Node:
    try:
        found = urlsplit(f"//{place}")
        host, port = found.hostname, found.port
    except ValueError as error:
        raise ValueError("a port in the store's URL is not 1 to 65535: write host:port,host:port") from error
    if not host:
        raise ValueError("a host is missing in the store's URL: write host:port,host:port")
    return host, port or default_port
