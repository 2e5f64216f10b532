"""Valid requests and what becomes of them byte by byte: a seeded generator, so that a failure can be sent again.

Used by test_byte_fuzz.py. Case `n` of seed `s` is the same on every machine and needs none of the cases before it.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.fuzz.verdicts import CANARY

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Case:
    """One request. `pieces` cuts the body: positions in ascending order."""

    method: str
    path: bytes  # percent-encoded, with its query
    headers: tuple[Header, ...]
    body: bytes
    pieces: tuple[int, ...] = ()

    def as_bytes(self) -> bytes:
        """The request on the wire, with the length of the body that it has."""
        first = self.method.encode() + b" " + self.path + b" HTTP/1.1\r\n"
        length = (b"content-length", str(len(self.body)).encode())
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in (*self.headers, length))
        return first + b"host: x\r\n" + lines + b"\r\n" + self.body


JSON = ((b"content-type", b"application/json"),)
LINES = ((b"content-type", b"application/x-ndjson"),)


def _rank(**more: object) -> bytes:
    return json.dumps({"trigger": f"{CANARY}-t", "deadline_ms": 2000, **more}).encode()


def _event(n: int) -> dict[str, object]:
    return {
        "event_id": f"{CANARY}-e{n}",
        "type": ("click", "favourite", "cart", "purchase", "dislike")[n % 5],
        "user": f"{CANARY}-u",
        "item": f"{CANARY}-i{n}",
        "time": "2026-11-21T10:00:04Z" if n % 2 else 1_790_000_000_000,
        "surface": "item_detail",
        "position": n,
        "value": 1.5,
    }


CANDIDATES = [f"{CANARY}-c{n}" for n in range(3)]
FULL = _rank(
    user=f"{CANARY}-u",
    candidates=[*CANDIDATES, "i7", "i9"],
    top_k=3,
    context={"surface": CANARY, "position": 3, "device": None},
    exclude=["i3"],
    request_id="r-1",
    behaviours=[{"item": f"{CANARY}-b", "type": "click", "time": 1_790_000_000_000}],
)
EVENTS = json.dumps({"events": [_event(n) for n in range(3)]}).encode()
NDJSON = b"\n".join(json.dumps(_event(n)).encode() for n in range(3))
PROMOTE = json.dumps({"version": f"{CANARY}-v", "if_live": f"{CANARY}-l"}).encode()

PUBLIC: tuple[Case, ...] = (
    Case("POST", b"/v1/rank", JSON, FULL),
    Case("POST", b"/rank", (*JSON, (b"x-timeout-ms", b"1500"), (b"x-priority", b"prefetch")), _rank(user=CANARY)),
    Case("POST", b"/v1/rank", (*JSON, (b"x-request-id", b"r-2")), _rank(candidates=CANDIDATES)),
    Case("POST", b"/v1/events", JSON, EVENTS),
    Case("POST", b"/events", LINES, NDJSON),
    Case("DELETE", b"/v1/users/" + CANARY.encode() + b"%2F%C3%A9", ((b"x-request-id", b"r-3"),), b""),
    Case("GET", b"/livez", (), b""),
    Case("GET", b"/readyz?verbose", (), b""),
    Case("GET", b"/v2/health/ready", (), b""),
    Case("GET", b"/v2/health/live", (), b""),
    Case("GET", b"/v1/models", ((b"accept", b"*/*"),), b""),
    Case("GET", b"/v1/models/daian/versions/" + CANARY.encode(), (), b""),
    Case("GET", b"/v1/limits", (), b""),
    Case("GET", b"/metrics", (), b""),
    Case("GET", b"/openapi.json", (), b""),
    Case("GET", b"/docs", (), b""),
)
ADMIN: tuple[Case, ...] = (
    Case("POST", b"/v1/admin/models/daian:promote", JSON, PROMOTE),
    Case("POST", b"/v1/admin/models/daian:rollback", JSON, json.dumps({"if_live": f"{CANARY}-l"}).encode()),
    Case("POST", b"/v1/admin/models/" + CANARY.encode() + b":promote", JSON, PROMOTE),
)
# Three of four cases go to the endpoints that read a body.
WEIGHTS = tuple(6 if one.body else 1 for one in PUBLIC)

TOKENS: tuple[bytes, ...] = tuple(
    b"NaN|-Infinity|1e999|-0|99999999999999999999|1.5|true|null|\"\"|[]|{}|[[[[|}}}}|{\"a\":|\"\\ud800\"|\"\\udc00x\"|\\u0000|"
    b"\\|\"|,|:|\x00|\xff|\xed\xa0\x80|\xc0\xaf|\xf4\x90\x80\x80|\xef\xbb\xbf|\r\n|\n|%|%00|%ff|%0a|{}|{user}|*|../|'|;|"
    b"-1|0|1e5|1e-400|0x10|1_0|\xd9\xa3|e\xcc\x81|\xe2\x80\xae|daian:1:main:{|\"topk\":1|\"__proto__\":{}|2026-13-45T99:99:99Z"
    .split(b"|")
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/plain"), (b"content-type", b"application/x-ndjson"), (b"content-type", b""),
    (b"content-type", b"application/json; charset=utf-16"), (b"content-type", b"application/x-www-form-urlencoded"),
    (b"content-encoding", b"gzip"), (b"content-encoding", b"identity"), (b"content-length", b"9" * 5000),
    (b"x-timeout-ms", b"nan"), (b"x-timeout-ms", b"5"), (b"x-timeout-ms", b"1e999"), (b"x-priority", b"prefetch"),
    (b"x-request-id", b"a" * 200), (b"x-request-id", b"\xff"), (b"x-request-id", b""), (b"host", b"["),
    (b"host", b"\xff:99999999"), (b"authorization", b"Bearer daian_" + CANARY.encode()), (b"cookie", b"a=b"),
    (b"x-api-key", CANARY.encode()), (b"range", b"bytes=0-1"), (b"if-none-match", b"*"), (b"origin", b"null"),
    (b"x-forwarded-for", b"1.2.3.4"), (b"x-http-method-override", b"DELETE"), (b"expect", b"100-continue"),
)  # fmt: skip


def case_of(seed: int, number: int, bases: tuple[Case, ...] = PUBLIC, weights: tuple[int, ...] = WEIGHTS) -> Case:
    """The case `number` of `seed`: one to four mutations of a valid request."""
    dice = random.Random(f"{seed}/{number}")
    case = dice.choices(bases, weights[: len(bases)])[0]
    for _ in range(dice.choice((1, 1, 2, 4))):
        case = dice.choices(_MUTATIONS, (10, 3, 3, 1, 2, 1))[0](case, dice)
    return case


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One change of some bytes: flipped, replaced, inserted, removed, doubled, cut, moved, filled."""
    at, until = sorted((dice.randint(0, len(data)), dice.randint(0, len(data))))
    kind = dice.randrange(8)
    if kind == 0 and data:
        place = dice.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:at] + dice.choice(TOKENS) + data[at:]
    if kind == 2:
        return _with_value(data, dice)
    if kind == 3:
        return data[:at] + data[until:]
    if kind == 4:
        return data[:until] + data[at:until] * dice.choice((1, 2, 50)) + data[until:]
    if kind == 5:
        return data[:at]
    if kind == 6:
        return data[:at] + dice.randbytes(dice.choice((1, 3, 40))) + data[at:]
    filling = dice.choice((b"[", b'{"a":', b"9", b"a", b"\xc3\xa9", b" "))
    return data[:at] + filling * dice.choice((150, 3000)) + data[at:]


def _with_value(data: bytes, dice: random.Random) -> bytes:
    """Another value behind one of the colons or commas: JSON stays JSON more often than not."""
    places = [place for place, byte in enumerate(data) if byte in b":,["]
    if not places:
        return data + dice.choice(TOKENS)
    start = dice.choice(places) + 1
    ends = [place for place in range(start, len(data)) if data[place] in b",]}"]
    return data[:start] + dice.choice(TOKENS) + data[ends[0] if ends else start :]


def _body(case: Case, dice: random.Random) -> Case:
    return replace(case, body=mutated(case.body, dice))


def _path(case: Case, dice: random.Random) -> Case:
    """Bytes that a request line cannot hold are left to the bare socket."""
    found = mutated(case.path, dice)[:3000]
    return replace(case, path=b"/" + bytes(byte for byte in found.lstrip(b"/") if 0x20 < byte < 0x7F))


def _headers(case: Case, dice: random.Random) -> Case:
    one = dice.choice(HEADERS)
    kept = tuple(found for found in case.headers if found[0] != one[0] or dice.random() < 0.2)
    return replace(case, headers=(*kept, one))


def _header_bytes(case: Case, dice: random.Random) -> Case:
    if not case.headers:
        return case
    name, value = dice.choice(case.headers)
    changed = bytes(byte for byte in mutated(value, dice)[:3000] if byte >= 0x20 and byte != 0x7F)
    return replace(case, headers=tuple((n, changed if n == name else v) for n, v in case.headers))


def _pieces(case: Case, dice: random.Random) -> Case:
    return replace(case, pieces=tuple(sorted(dice.randint(0, len(case.body)) for _ in range(dice.randint(1, 4)))))


def _method(case: Case, dice: random.Random) -> Case:
    return replace(case, method=dice.choice(METHODS))


Mutation = Callable[[Case, random.Random], Case]
_MUTATIONS: tuple[Mutation, ...] = (_body, _path, _headers, _header_bytes, _pieces, _method)
