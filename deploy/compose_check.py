"""`docker-compose up` to a ranked answer, through a Redis that dies and comes back, and down again.

Run by `make e2e-compose`. Speaks to the service as a shop would, over HTTP alone; needs Docker with docker-compose or
`docker compose`, nothing of ours installed. Ends 0 when every step held, 1 when one did not, 3 without Docker.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "http://127.0.0.1:8000"
READY_WITHIN_S = 120.0
RECOVERED_WITHIN_S = 30.0


class StepFailedError(Exception):
    """A step that did not hold: what was asked, what came."""


def compose_command() -> list[str]:
    """The compose that this machine has and whose engine answers; exits 3 in plain words when there is none."""
    for command in (["docker-compose"], ["docker", "compose"]):
        try:
            subprocess.run([*command, "version"], check=True, capture_output=True)
            subprocess.run(["docker", "info"], check=True, capture_output=True)
            return command
        except (OSError, subprocess.CalledProcessError):
            continue
    print("not run: no Docker engine with docker-compose answers here; install and start one, then repeat")
    sys.exit(3)


def call(path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """POST `body` (GET without one); status and the JSON that came with it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SERVICE + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def demand(holds: bool, what: str, found: object) -> None:
    if not holds:
        raise StepFailedError(f"{what}; found: {json.dumps(found)[:600]}")


def wait_until(holds: Callable[[], bool], what: str, within_s: float) -> float:
    """Seconds until `holds()`; connections that are not there yet are waited for."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < within_s:
        try:
            if holds():
                return time.monotonic() - started_s
        except OSError:
            pass
        time.sleep(0.2)
    raise StepFailedError(f"{what} did not happen within {within_s:.0f} s")


def rank(**body: Any) -> dict[str, Any]:
    status, answer = call("/rank", {"deadline_ms": 1000, **body})
    demand(status == 200, f"/rank answers 200 to {body}", answer)
    return answer


def a_stranger_is_ranked_for() -> list[str]:
    """Nothing known, no candidates: the bundle's popular items, and the reasons. Returns their ids."""
    answer = rank(user="compose-visitor", trigger="no such item")
    demand("trigger_unknown" in answer["degraded"], "an unknown trigger is named in `degraded`", answer)
    items = [item["id"] for item in answer["items"]]
    demand(len(items) >= 3, "recall finds items", answer)
    return items


def candidates_are_ranked(items: list[str]) -> None:
    answer = rank(user="compose-visitor", trigger=items[0], candidates=items)
    demand(sorted(item["id"] for item in answer["items"]) == sorted(items), "the answer is a permutation", answer)
    demand(answer["degraded"] == [] and answer["coverage"] == 1.0, "nothing is missing", answer)
    print(json.dumps({**answer, "items": answer["items"][:3]}))


def clicks_are_seen_at_once(items: list[str]) -> None:
    clicked = [{"event_id": f"c-{i}", "type": "click", "user": "compose-visitor", "item": item,
                "time": int(time.time() * 1000)} for i, item in enumerate(items[1:3])]  # fmt: skip
    status, answer = call("/events", {"events": clicked})
    demand(status == 200 and answer["accepted"] == 2, "two clicks are accepted", answer)
    answer = rank(user="compose-visitor", trigger=items[0], candidates=items)
    demand(answer["behaviours"]["used"] == 2, "the next ranking uses both clicks", answer)


def redis_may_die(compose: list[str], items: list[str]) -> None:
    """Answers go on, name what is missing, and are whole again after Redis is back, clicks included."""

    def used() -> int:
        answer = rank(user="compose-visitor", trigger=items[0], candidates=items)
        return int(answer["behaviours"]["used"]) if answer["degraded"] == [] else -1

    subprocess.run([*compose, "kill", "redis"], cwd=ROOT, check=True)
    answer = rank(user="compose-visitor", trigger=items[0], candidates=items)
    demand(answer["degraded"] == ["behaviours"] and len(answer["items"]) == len(items), "answers go on", answer)
    demand(call("/readyz")[0] == 200, "readiness does not hang on Redis", call("/readyz"))
    subprocess.run([*compose, "up", "--detach", "--no-deps", "redis"], cwd=ROOT, check=True)
    seconds = wait_until(
        lambda: used() == 2, "a whole answer with both clicks after Redis came back", RECOVERED_WITHIN_S
    )
    print(f"Redis killed and started again: whole answers {seconds:.1f} s later, both clicks kept")


def check(compose: list[str]) -> None:
    started_s = time.monotonic()
    subprocess.run([*compose, "up", "--detach", "--build"], cwd=ROOT, check=True)
    wait_until(lambda: call("/readyz")[0] == 200, "readiness", READY_WITHIN_S)
    print(f"ready {time.monotonic() - started_s:.0f} s after `up`")
    items = a_stranger_is_ranked_for()
    candidates_are_ranked(items)
    clicks_are_seen_at_once(items)
    redis_may_die(compose, items)
    started_s = time.monotonic()
    subprocess.run([*compose, "stop", "service"], cwd=ROOT, check=True)
    print(f"service stopped in {time.monotonic() - started_s:.1f} s")


def main() -> int:
    compose = compose_command()
    try:
        check(compose)
    except (StepFailedError, subprocess.CalledProcessError, OSError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        subprocess.run([*compose, "logs", "--tail", "40"], cwd=ROOT, check=False)
        return 1
    finally:
        subprocess.run([*compose, "down", "--volumes"], cwd=ROOT, check=False)
    print("docker-compose: every step held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
