"""The load test: pages opened and items clicked at a constant rate, whatever the service makes of it.

Run by `make load` and by the `load` profile of docker-compose.yml, never against a machine that is not ours: the host
must be a loopback or private address. Arrivals are open-loop: they are drawn from a Poisson process and sent when due,
late answers or not, and the reported time counts from the moment a request was due. So one locust user is all it takes;
many closed-loop users would wait for the slow answers that the test is there to see.

Pages (trigger and candidates) and users come from the golden requests of the bundle that is being served, with Zipf
weights: few are asked for often. A share of the users is unknown, a share of the pages asks for recall.

The run ends with its objectives, each met or MISSED; one that was missed makes the exit code 1.
"""

import ipaddress
import itertools
import json
import random
import socket
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.stats import StatsEntry

ZIPF_EXPONENT = 1.1
MAX_IN_FLIGHT = 256
CLICK_SHARE = 0.2
RECALL_SHARE = 0.25
UNKNOWN_USER_SHARE = 0.1
RANK, DEGRADED = "rank", "degraded"
OF_THE_CATALOGUE = {"recall", "trigger_unknown", "candidates_unknown"}  # what no load and no fault has taken away


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser, **_: Any) -> None:
    parser.add_argument("--rate", type=float, default=50.0, help="arrivals a second, ranks and clicks together")
    parser.add_argument("--bundles", default="artifacts/bundles", help="the bundle root that the service serves")
    parser.add_argument("--max-failed", type=float, default=0.01, help="objective: share of arrivals that may fail")
    parser.add_argument(
        "--max-degraded",
        type=float,
        default=0.01,
        help="objective: share of ranks that lack a part, and not for what the catalogue is",
    )
    parser.add_argument("--max-p99-ms", type=float, default=150.0, help="objective: the 99th percentile of ranks")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same pages, users and times")


@events.test_start.add_listener
def refuse_strangers(environment: Environment, **_: Any) -> None:
    """Loopback and private addresses only."""
    name = urlsplit(environment.host or "").hostname
    if name is None:
        raise SystemExit("no host to load: give --host http://127.0.0.1:8000")
    for *_head, (address, *_rest) in socket.getaddrinfo(name, None):
        if not ipaddress.ip_address(address).is_private:
            raise SystemExit(f"{name} is {address}, a public address: load only what runs on your own machines")


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Holds the run against its objectives; shedding now and then is the service's right on a busy machine."""
    options, total = environment.parsed_options, environment.stats.total
    assert options is not None
    ranks = StatsEntry(environment.stats, "all ranks", "POST")
    n_degraded = n_of_the_catalogue = 0
    for (name, _method), entry in environment.stats.entries.items():
        if name.startswith(RANK):
            ranks.extend(entry)
            reasons = {*name.partition(f"{DEGRADED}: ")[2].split(", ")} - {""}
            n_degraded += entry.num_requests if reasons - OF_THE_CATALOGUE else 0
            n_of_the_catalogue += entry.num_requests if reasons & OF_THE_CATALOGUE else 0
    found = [
        ("arrivals that failed", total.fail_ratio, options.max_failed),
        (
            "ranks that lack a part for a fault or want of time",
            n_degraded / max(1, ranks.num_requests),
            options.max_degraded,
        ),
        ("p99 of ranks from when they were due, ms", ranks.get_response_time_percentile(0.99), options.max_p99_ms),
    ]
    is_fine = ranks.num_requests > 0
    print(f"{total.num_requests} arrivals, {ranks.num_requests} of them ranks.", end=" ")
    if n_of_the_catalogue:
        print(f"{n_of_the_catalogue} asked for items that the catalogue has no vector of, or does not know.", end=" ")
    print("Objectives:")
    for what, value, limit in found:
        print(f"  {'met' if value <= limit else 'MISSED'}: {what}: {value:.4g}, at most {limit:.4g}")
        is_fine = is_fine and value <= limit
    environment.process_exit_code = 0 if is_fine else 1


def golden_rows(bundles: Path) -> list[dict[str, Any]]:
    """The raw golden requests of the bundle that `current` points to.

    Without the odd ones, which are odd on purpose (items that nobody knows): asked for often, they would be counted as
    ranks that lack a part.
    """
    current = json.loads((bundles / "current").read_text())
    lines = (bundles / current["name"] / current["version"] / "golden.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [one["request"] for one in found if one["case"] == "ordinary"] or [one["request"] for one in found]


class Zipf:
    """Draws from `values`, the first of them most often."""

    def __init__(self, values: Sequence[Any], chance: random.Random) -> None:
        self.values = chance.sample(values, len(values))
        self.cumulative = list(itertools.accumulate((1 + i) ** -ZIPF_EXPONENT for i in range(len(values))))
        self.chance = chance

    def draw(self) -> Any:
        return self.chance.choices(self.values, cum_weights=self.cumulative)[0]


class Visitors(FastHttpUser):
    """All visitors of the shop: one locust user that sends every arrival when it is due."""

    fixed_count = 1
    concurrency = MAX_IN_FLIGHT
    network_timeout = connection_timeout = 5.0

    def on_start(self) -> None:
        options = self.environment.parsed_options
        rows = golden_rows(Path(options.bundles))
        self.chance = random.Random(options.seed)
        self.pages = Zipf([row for row in rows if row["candidates"]], self.chance)
        self.users = Zipf(sorted({row["user"]["user"] for row in rows if row["user"]["user"]}), self.chance)
        self.rate = options.rate
        self.in_flight = Pool(MAX_IN_FLIGHT)
        self.n_clicks = 0
        self.due = time.perf_counter()

    def on_stop(self) -> None:
        self.in_flight.join(timeout=self.network_timeout)

    @task
    def next_arrival(self) -> None:
        self.due += self.chance.expovariate(self.rate)
        gevent.sleep(max(0.0, self.due - time.perf_counter()))
        if self.in_flight.full():
            # Waiting would hide the queue: the arrival is lost and says so.
            self.report_lost()
        elif self.chance.random() < CLICK_SHARE:
            self.in_flight.spawn(self.click, self.due, self.user_id(), self.pages.draw())
        else:
            self.in_flight.spawn(
                self.rank, self.due, self.user_id(), self.pages.draw(), self.chance.random() < RECALL_SHARE
            )

    def user_id(self) -> str:
        if self.chance.random() < UNKNOWN_USER_SHARE:
            return f"stranger-{self.chance.randrange(10**6)}"
        return str(self.users.draw())

    def rank(self, due: float, user: str, page: dict[str, Any], recall: bool) -> None:
        body = {"user": user, "trigger": page["trigger"]}
        if not recall:
            body["candidates"] = page["candidates"]
        self.send("/rank", f"{RANK}, {'recalled' if recall else 'candidates given'}", body, due)

    def click(self, due: float, user: str, page: dict[str, Any]) -> None:
        self.n_clicks += 1
        event = {
            "event_id": f"load-{self.n_clicks}",
            "type": "click",
            "user": user,
            "item": self.chance.choice(page["candidates"]),
            "time": int(time.time() * 1000),
            "trigger": page["trigger"],
        }
        self.send("/events", "events, one click", {"events": [event]}, due)

    def send(self, path: str, name: str, body: dict[str, Any], due: float) -> None:
        """One call; its time counts from `due`, a degraded answer gets a line of its own, shedding is a failure."""
        with self.client.post(path, json=body, name=name, catch_response=True) as response:
            response.request_meta["response_time"] = (time.perf_counter() - due) * 1000
            degraded = (response.headers or {}).get("Daian-Degraded")
            if degraded:
                response.request_meta["name"] = f"{name}, {DEGRADED}: {degraded}"
            if response.status_code != 200:
                response.failure(f"{response.status_code} {(response.text or '')[:120]}")

    def report_lost(self) -> None:
        self.environment.events.request.fire(
            request_type="POST", name="never sent", response_time=0, response_length=0, context={},
            exception=StopUser(f"{MAX_IN_FLIGHT} requests in flight already"),
        )  # fmt: skip
