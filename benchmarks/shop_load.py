"""The scene's shop over HTTP: its users put into the store of a running service, and pages as requests.

Called by the parts that measure the service. Behaviours come in by `POST /v1/events`, as a shop sends them.
"""

import json
import time
from collections.abc import Sequence

from benchmarks.scene import Scene
from service.bench.asking import Answer, ask_once, post, run
from service.bench.served import BenchError, Served

N_USERS = 200
EVENTS_A_CALL = 1000
DEADLINE_MS = 2000  # long enough that nothing is cut: what is measured is whole answers
TRIES = 60
PAUSE_S = 0.5


def send_behaviours(served: Served, scene: Scene, n_users: int = N_USERS) -> int:
    """Every user's behaviours; returns how many. Raises BenchError when one is not taken."""
    now_ms = int(time.time() * 1000)
    events = [
        {"event_id": f"bench-{user}-{place}", "type": "click", "user": scene.user(user), "item": one["item"],
         "time": one["at"]}
        for user in range(n_users)
        for place, one in enumerate(scene.behaviours(user, now_ms))
    ]  # fmt: skip
    for start in range(0, len(events), EVENTS_A_CALL):
        _send(served, json.dumps({"events": events[start : start + EVENTS_A_CALL]}).encode())
    return len(events)


def _send(served: Served, body: bytes) -> None:
    """One call, repeated as it is while the store is away: that is what its 503 says, and repeating changes nothing."""
    for _ in range(TRIES):
        answer = run(ask_once(served.port, post("/v1/events", body)))
        if answer.status == 200 and not json.loads(answer.body)["rejected"]:
            return
        if answer.status != 503:
            break
        time.sleep(PAUSE_S)
    raise BenchError(f"events were not taken: {answer.status} {answer.body[:300]!r}")


def pages(scene: Scene, n_candidates: int | None, n_users: int = N_USERS) -> list[bytes]:
    """One page for each of the users, as it goes over the wire; without candidates it asks for recall.

    The page's trigger is what the user's behaviours are like.
    """
    made = []
    for number in range(n_users):
        body: dict[str, object] = {
            "user": scene.user(number),
            "trigger": scene.item_ids[scene.trigger(number)],
            "context": {"device": "phone", "hour": "20"},
            "deadline_ms": DEADLINE_MS,
        }
        if n_candidates is not None:
            body["candidates"] = scene.candidates(number, n_candidates)
        made.append(post("/v1/rank", json.dumps(body).encode()))
    return made


def check_whole(served: Served, requests: Sequence[bytes], n_candidates: int | None, n_behaviours: int) -> None:
    """Looks at one answer: all candidates scored, the user's behaviours used. Raises BenchError for another one.

    A busy machine may make the store late once or twice; it is asked again.
    """
    for _ in range(TRIES):
        answer = run(ask_once(served.port, requests[0]))
        why = _what_is_missing(answer, n_candidates, n_behaviours)
        if not why:
            return
        time.sleep(PAUSE_S)
    raise BenchError(f"not a whole answer, so not to be measured: {why}")


def _what_is_missing(answer: Answer, n_candidates: int | None, n_behaviours: int) -> str:
    if answer.status != 200:
        return f"{answer.status} {answer.body[:300]!r}"
    found = json.loads(answer.body)
    n_items = len(found["items"])
    whole = not found["degraded"] and found["coverage"] == 1 and (n_candidates is None or n_items == n_candidates)
    if whole and found["behaviours"]["used"] >= n_behaviours:
        return ""
    return f"{n_items} items, { ({key: found[key] for key in ('degraded', 'coverage', 'behaviours')}) }"
