"""G14: ids that nobody else has are sent in every place of a request, broken and whole; then every output is searched.

Some requests raise inside the service, with the ids in the exception's own text; some meet a store that is away.
Searched: refusals (headers and body), the log, the store server's log, /metrics. A ranking names the candidates that it
was given, so in a 200 only the user counts. Called by `__main__.py`.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.goals.lab import Lab
from benchmarks.goals.outcome import Outcome, at_least, none_of
from tests.chaos.open_loop import LoadClient, Reply, get, load_client, post
from tests.chaos.service_process import ServiceProcess, free_port

USER, ITEM = "cnryU7f3a", "cnryI9c2b"
BUG = f"{ITEM}-bug"
N_AT_ONCE = 4
PATIENT_MS = 2_000

# Rankings of one trigger raise, ids and all.
RAISES = f"""
import service.ranker
compute = service.ranker.Ranker.compute
def _raising(self, turn):
    if turn.question.trigger == {BUG!r}:
        raise RuntimeError(f"{{turn.question.user}} {{turn.question.trigger}}")
    return compute(self, turn)
service.ranker.Ranker.compute = _raising
"""


@dataclass
class Search:
    """What was sent and where a canary came back."""

    n_sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def take(self, reply: Reply) -> None:
        """One answer."""
        self.n_sent += 1
        self.statuses[reply.status] += 1
        text = (reply.headers + reply.body).decode("utf-8", "replace")
        forbidden = (USER,) if reply.status == 200 else (USER, ITEM)
        self.look(f"answer {reply.status}", text, forbidden)

    def look(self, where: str, text: str, forbidden: tuple[str, ...] = (USER, ITEM)) -> None:
        found = text.lower()
        self.leaks += [where for canary in forbidden if canary.lower() in found]


def mutated(request: bytes, draw: random.Random) -> bytes:
    """One to three bytes of the body changed, its length kept."""
    head, separator, body = request.partition(b"\r\n\r\n")
    changed = bytearray(body)
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return head + separator + bytes(changed)


def event(**rest: object) -> dict[str, object]:
    at = int(time.time() - 10) * 1000
    return {"event_id": f"{ITEM}-e", "type": "click", "user": USER, "item": ITEM, "time": at, **rest}


def requests(lab: Lab) -> list[Callable[[random.Random], bytes]]:
    """Every kind of request, each with canaries in it."""
    known = lab.item_ids[:20]
    behaviours = [{"item": ITEM, "type": "click", "time": 1_000}]
    whole = {"user": USER, "trigger": ITEM, "candidates": [*known, ITEM], "deadline_ms": PATIENT_MS}
    plain: list[bytes] = [
        post("/v1/rank", whole),
        post("/v1/rank", {**whole, "trigger": BUG}),
        post("/v1/rank", {**whole, "behaviours": behaviours}),
        post("/v1/rank", {**whole, ITEM: USER}),
        post("/v1/rank", {**whole, "context": {ITEM: USER}}),
        post("/v1/rank", {**whole, "user": [USER]}),
        post("/v1/rank", {**whole, "user": USER + "\x00"}),
        post("/v1/rank", {**whole, "top_k": f"{USER}{ITEM}"}),
        post("/v1/rank", whole, f"x-priority: {USER}"),
        post("/v1/rank", whole, f"x-timeout-ms: {USER}"),
        post(f"/v1/rank?user={USER}", {**whole, "candidates": ITEM}),
        post("/v1/events", {"events": [event(), event(type=ITEM), event(time=ITEM), event(user="")]}),
        post("/v1/events", {"events": ITEM}),
        get(f"/{USER}/{ITEM}"),
        get(f"/v1/models/{ITEM}/versions/{USER}"),
        get(f"/v1/users/{USER}", f"cookie: {ITEM}"),
        get(f"/v1/users/{USER}").replace(b"GET", b"DELETE"),
        get(f"/v1/users/{USER}%00").replace(b"GET", b"DELETE"),
    ]
    fixed: list[Callable[[random.Random], bytes]] = [lambda _, one=one: one for one in plain]  # type: ignore[misc]
    broken: list[Callable[[random.Random], bytes]] = [
        lambda draw, one=one: mutated(one, draw)  # type: ignore[misc]
        for one in plain
        if one.startswith(b"POST")
    ]
    return fixed + broken


async def ask_all(lab: Lab, service: ServiceProcess, search: Search, n: int, seed: int) -> None:
    """`n` requests of all kinds at random."""
    draw, kinds = random.Random(seed), requests(lab)
    todo = iter([draw.choice(kinds)(draw) for _ in range(n)])

    async def one(client: LoadClient) -> None:
        for request in todo:
            search.take(await client.ask(request))

    with load_client(service.host, service.port) as client:
        await asyncio.gather(*(one(client) for _ in range(N_AT_ONCE)))
        search.look("metrics", (await client.ask(get("/metrics"))).body.decode())


def searched(lab: Lab) -> Search:
    """Half of the requests to a whole service, half to one whose store is away."""
    search, n = Search(), lab.sizes.n_canaries // 2
    away = f"redis://127.0.0.1:{free_port()}"
    for seed, settings in enumerate(({}, {"DAIAN_REDIS_URL": away})):
        with lab.service("g14", prelude=RAISES, settings={"DAIAN_LOG_LEVEL": "debug", **settings}) as service:
            asyncio.run(ask_all(lab, service, search, n, seed))
        for line in service.log.read_text().splitlines():
            search.look("log", line)
        for log in service.log.parent.glob("store/*.log"):
            search.look("the store server's log", log.read_text())
    return search


def measure(lab: Lab) -> Outcome:
    """G14."""
    search = searched(lab)
    statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(search.statuses.items()))
    where = f"; found in: {', '.join(sorted(set(search.leaks)))}" if search.leaks else ""
    return Outcome(
        f"requests with two ids that nobody else has, in every place, whole and mutated; answers by status: "
        f"{statuses}{where}",
        [
            none_of("places where a canary came back", len(search.leaks), search.n_sent),
            at_least("requests that raised inside the service", search.statuses[500], 1, "", "count"),
            at_least(
                "requests that were refused", sum(search.statuses.values()) - search.statuses[200], 1, "", "count"
            ),
        ],
    )
