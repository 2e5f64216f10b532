"""`daian bench`: how fast a bundle ranks on this machine, in this process and over HTTP. Called by `service.commands`.

The requests are the bundle's golden ones, with candidates drawn from its catalogue and their behaviours moved to now.
Graphs alone and the service take turns, so that the share of its time that is graphs can be told. The service is
a process of its own with an embedded store: nothing that runs is asked, nobody's users are written to.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from service.bench.asking import ask_once, closed_loop, open_loop, post, run
from service.bench.served import BenchError, Placement, Served, serving
from service.bench.stage_times import of_headers
from service.bench.turns import Spread, in_turns, seconds_of
from service.contract.bundle import Bundle, read_bundle
from service.contract.encoder import Encoder, ModelInputs
from service.contract.pointer import bundle_to_open
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.runtime import GOLDEN, open_scorer
from service.scorer import Scorer
from service.settings import Settings

DEADLINE_MS = 2000
ONE_THREAD = Placement(1, 1)
CONNECTIONS = 4
WARM_UP_S = 1.0
LONG_MS = 60_000
TRIES, PAUSE_S = 60, 0.5
LEAST_S = 0.1  # of a turn: shorter ones have no answer
Row = dict[str, Any]


@dataclass(frozen=True)
class BenchPlan:
    """What to measure. `seconds`: of each turn over HTTP. Raises BenchError for what cannot be measured."""

    candidates: tuple[int, ...] = (100, 500)
    rounds: int = 5
    seconds: float = 3.0
    placement: Placement = ONE_THREAD

    def __post_init__(self) -> None:
        least = {"candidates": min(self.candidates, default=0), "rounds": self.rounds}
        for name, n in least.items():
            if n < 1:
                raise BenchError(f"{name}: {n} asked for; give 1 or more")
        if not self.seconds >= LEAST_S:
            raise BenchError(f"seconds: {self.seconds:g} asked for; give {LEAST_S:g} or more")


@dataclass(frozen=True)
class SizeFound:
    """Milliseconds (quartiles over the rounds), answers a second, and shares, for pages of one size."""

    candidates: int
    encode_ms: Spread
    request_graph_ms: Spread
    candidate_graph_ms: Spread
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    open_p50_ms: Spread
    open_p99_ms: Spread
    server_efficiency: Spread
    stages_ms: dict[str, float]
    n_failed: int
    n_degraded: int
    degraded: dict[str, int]  # answers by what they said was missing


def bench(bundles: Path, plan: BenchPlan, tell: Callable[[str], None]) -> list[SizeFound]:
    """Measures a bundle, or the one that `current` points to.

    Raises BundleError for a bundle that is not whole, BenchError when the service does not start or answer.
    """
    bundle = read_bundle(bundle_to_open(bundles))
    encoder = bundle.open_encoder()
    rows = moved_to_now(golden_rows(bundle), int(time.time() * 1000))
    settings = Settings()
    scorer = open_scorer(bundle, settings.chunk, settings.ort_threads)
    most = {"DAIAN_MAX_CANDIDATES": str(max(*plan.candidates, settings.max_candidates))}
    with TemporaryDirectory(prefix="daian-bench-") as folder:
        tell(f"starting the service over {bundle.path}")
        with serving(bundle.path, Path(folder), plan.placement, most) as served:
            send_behaviours(served, rows)
            return [_size(served, encoder, scorer, rows, n, plan, tell) for n in plan.candidates]


def golden_rows(bundle: Bundle) -> list[Row]:
    """The golden requests of known users, each under a user of its own."""
    lines = [json.loads(line)["request"] for line in bundle.read(GOLDEN).splitlines()]
    rows = [row for row in lines if row["candidates"]]
    return [{**row, "user": {**row["user"], "user": f"bench-{number}"}} for number, row in enumerate(rows)]


def moved_to_now(rows: Sequence[Row], now_ms: int) -> list[Row]:
    """The same requests made now, their behaviours as long before as they were."""
    moved = []
    for row in rows:
        shift = now_ms - row["requested_at"]
        behaviours = [{**one, "at": one["at"] + shift} for one in row["behaviours"]]
        moved.append({**row, "requested_at": now_ms, "behaviours": behaviours})
    return moved


def with_candidates(rows: Sequence[Row], encoder: Encoder, n: int) -> list[Row]:
    """The same requests with `n` items each, drawn from the catalogue (all of them when it has fewer)."""
    chance, n_items = np.random.default_rng(n), encoder.catalogue.n_items
    drawn = (chance.choice(n_items, min(n, n_items), replace=False) + 1 for _ in rows)
    return [{**row, "candidates": encoder.catalogue.ids(items)} for row, items in zip(rows, drawn, strict=True)]


def send_behaviours(served: Served, rows: Sequence[Row]) -> None:
    """Puts the rows' behaviours into the service's store. Raises BenchError when they are not taken."""
    events = [
        {"event_id": f"{row['user']['user']}-{place}", "user": row["user"]["user"], "item": one["item"],
         "time": one["at"], "type": one.get("type", "click")}
        for row in rows
        for place, one in enumerate(row["behaviours"])
    ]  # fmt: skip
    for start in range(0, len(events), 1000):
        body = json.dumps({"events": events[start : start + 1000]}).encode()
        for _ in range(TRIES):
            answer = run(ask_once(served.port, post("/v1/events", body)))
            if answer.status != 503:  # which means: the same again
                break
            time.sleep(PAUSE_S)
        if answer.status != 200:
            raise BenchError(f"events were not taken: {answer.status} {answer.body[:300]!r}")


def request_of(row: Row) -> bytes:
    """A row as a rank call."""
    body = {"user": row["user"]["user"], "trigger": row["trigger"], "context": row["context"],
            "candidates": row["candidates"], "deadline_ms": DEADLINE_MS}  # fmt: skip
    return post("/v1/rank", json.dumps(body).encode())


def _size(
    served: Served, encoder: Encoder, scorer: Scorer, rows: Sequence[Row], n: int, plan: BenchPlan,
    tell: Callable[[str], None],
) -> SizeFound:  # fmt: skip
    """Graphs alone, then the service, round by round."""
    asked = with_candidates(rows, encoder, n)
    requests = [request_of(row) for row in asked]
    run(closed_loop(served.port, requests, CONNECTIONS, WARM_UP_S))
    found: dict[str, list[float]] = {}
    stages: list[str] = []
    n_failed, n_degraded, degraded = 0, 0, Counter[str]()
    for number in range(plan.rounds):
        alone = _alone(encoder, scorer, asked[number % len(asked)])
        cpu_s = served.cpu_s()
        load = run(closed_loop(served.port, requests, CONNECTIONS, plan.seconds))
        cpu_s = served.cpu_s() - cpu_s
        half = run(open_loop(served.port, requests, max(1.0, load.per_s / 2), plan.seconds, seed=number))
        graphs_s = alone["request_graph"] + alone["candidate_graph"]
        told = {**{name: 1000 * s for name, s in alone.items()}, "per_s": load.per_s, "p50": load.ms(50)}
        told |= {"p99": load.ms(99), "open_p50": half.ms(50), "open_p99": half.ms(99)}
        told |= {"efficiency": len(load.seconds) * graphs_s / max(cpu_s, 1e-9)}
        for name, value in told.items():
            found.setdefault(name, []).append(value)
        stages += load.stages
        n_failed, n_degraded = n_failed + load.n_failed + half.n_failed, n_degraded + load.n_degraded + half.n_degraded
        degraded += load.degraded + half.degraded
        tell(f"{n} candidates, round {number + 1} of {plan.rounds}: {load.per_s:.0f} answers a second")
    of = {name: Spread.of(values) for name, values in found.items()}
    medians = {name: float(np.median(values)) for name, values in of_headers(stages).items()}
    return SizeFound(
        n, of["encode"], of["request_graph"], of["candidate_graph"], of["per_s"], of["p50"], of["p99"],
        of["open_p50"], of["open_p99"], of["efficiency"], medians, n_failed, n_degraded, dict(degraded.most_common()),
    )  # fmt: skip


def _alone(encoder: Encoder, scorer: Scorer, row: Row) -> dict[str, float]:
    """Processor seconds of the parts in this process, medians of a few turns."""
    batch = RequestBatch.from_rows([row])
    inputs: ModelInputs = encoder.encode(batch)
    state = scorer.encode_request(inputs)
    subjects = {
        "encode": seconds_of(lambda: encoder.encode(batch), time.thread_time),
        "request_graph": seconds_of(lambda: scorer.encode_request(inputs), time.thread_time),
        "candidate_graph": seconds_of(
            lambda: scorer.score(state, inputs, Deadline.after_ms(LONG_MS)), time.thread_time
        ),
    }
    return {name: Spread.of(values).median for name, values in in_turns(subjects, 7).items()}


def shown(found: Sequence[SizeFound]) -> str:
    """For people: one column for each size."""
    lines = [("candidates", [str(one.candidates) for one in found])]
    lines += [(label, [getattr(one, name).shown() for one in found]) for label, name in _LINES.items()]
    stages = [(f"stage {name}, ms", name) for name in found[0].stages_ms]
    lines += [(label, [f"{one.stages_ms.get(name, 0.0):.3f}" for one in found]) for label, name in stages]
    lines.append(("answers failed / degraded", [f"{one.n_failed} / {one.n_degraded}" for one in found]))
    reasons = dict.fromkeys(reason for one in found for reason in one.degraded)
    lines += [(f"lacking {reason}", [str(one.degraded.get(reason, 0)) for one in found]) for reason in reasons]
    return "\n".join(f"{label:<34}" + "".join(f"{value:>26}" for value in values) for label, values in lines)


_LINES = {
    "encoding alone, ms": "encode_ms",
    "request graph alone, ms": "request_graph_ms",
    "candidate graph alone, ms": "candidate_graph_ms",
    "answers a second, closed loop": "per_s",
    "p50, closed loop, ms": "p50_ms",
    "p99, closed loop, ms": "p99_ms",
    "p50 at half of it, open loop, ms": "open_p50_ms",
    "p99 at half of it, open loop, ms": "open_p99_ms",
    "server efficiency": "server_efficiency",
}
