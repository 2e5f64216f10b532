"""Signals: Prometheus series, the stage timer of one request, and the JSON log lines.

Written by every part of the service, read by operators. Histograms, never summaries (quantiles cannot be added over
replicas); no id in a label. In several processes prometheus-client shares its files through PROMETHEUS_MULTIPROC_DIR,
which `daian serve` sets before this module is imported. Users appear in logs only as a keyed hash.
"""

import hmac
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeAlias

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.label_values import (
    BUNDLE_FAILURES,
    BUNDLE_OUTCOMES,
    COLD_KINDS,
    CORRUPT_VALUES,
    DEGRADED_REASONS,
    LIVE,
    LOGS,
    OUR_FAULTS,
    SHED_REASONS,
    BundleOutcome,
    ColdKind,
    EventOutcome,
    ShedReason,
    Variant,
)

ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

STAGES = (
    "admit",
    "parse",
    "behaviours",
    "encode",
    "request_graph",
    "recall",
    "prerank",
    "candidate_graph",
    "order",
    "respond",
)
BUCKETS_S = tuple(ms / 1000 for ms in (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 250, 500, 1000, 2500))
COUNT_BUCKETS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SHARE_BUCKETS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
AGE_BUCKETS_S = (1, 5, 30, 60, 300, 1800, 3600, 21_600, 86_400, 3 * 86_400, 7 * 86_400, 14 * 86_400)


class StageTimer:
    """Times the stages of one request; used by one thread after the other, never by two at once."""

    def __init__(self) -> None:
        self.started_s = time.perf_counter()
        self.ms: dict[str, float] = {}

    def stage(self, name: str) -> "_Stage":
        """Adds the time of a `with` block to the stage's total, also when the block raises."""
        return _Stage(self.ms, name)

    def total_ms(self) -> float:
        """Milliseconds since the timer was made."""
        return (time.perf_counter() - self.started_s) * 1000

    def rounded(self) -> dict[str, float]:
        """Total and stages in milliseconds, as `timing_ms` of the answer has them."""
        return {"total": round(self.total_ms(), 3), **{name: round(self.ms.get(name, 0.0), 3) for name in STAGES[:-1]}}

    def header(self) -> str:
        """The value of a Server-Timing header."""
        stages = [f"{name};dur={self.ms[name]:.3f}" for name in STAGES if name in self.ms]
        return ", ".join([f"total;dur={self.total_ms():.3f}", *stages])


class _Stage:
    """One block of a stage; a class of its own because a generator costs twice as much, a dozen times a page."""

    __slots__ = ("_ms", "_name", "_started_s")

    def __init__(self, ms: dict[str, float], name: str) -> None:
        self._ms, self._name = ms, name

    def __enter__(self) -> None:
        self._started_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._ms[self._name] = self._ms.get(self._name, 0.0) + (time.perf_counter() - self._started_s) * 1000


class Metrics:
    """All series of one process. Constructed once by the app; tests make one each, on its own registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        labels = ["route", "status", "variant", "surface"]
        self.requests = Counter("daian_requests", "Requests answered", labels, registry=r)
        self.request_seconds = Histogram(
            "daian_request_seconds", "Time from arrival to answer", labels, registry=r, buckets=BUCKETS_S
        )
        self.stage_seconds = Histogram(
            "daian_stage_seconds", "Time per stage of a ranking", ["stage"], registry=r, buckets=BUCKETS_S
        )
        self.degraded = Counter("daian_degraded", "Rankings answered without some part", ["reason"], registry=r)
        self.shed = Counter("daian_shed", "Requests refused to protect the rest", ["reason"], registry=r)
        self.tenant_rejected = Counter(
            "daian_tenant_rejected",
            "Requests over their tenant's quota or its half of the queue",
            ["tenant"],
            registry=r,
        )
        self.in_flight = Gauge(
            "daian_in_flight", "Rankings admitted and not yet answered", registry=r, multiprocess_mode="livesum"
        )
        self.queue_seconds = Histogram(
            "daian_queue_seconds", "Time between admission and a free worker", registry=r, buckets=BUCKETS_S
        )
        self.service_time = Gauge(
            "daian_service_time_ewma_seconds", "Moving mean of a worker's time per ranking", registry=r,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.candidates = Histogram("daian_candidates", "Candidates per ranking", registry=r, buckets=COUNT_BUCKETS)
        self.coverage = Histogram("daian_coverage", "Share scored by the network", registry=r, buckets=SHARE_BUCKETS)
        self.cold = Counter("daian_cold", "Ids that the bundle does not know", ["kind"], registry=r)
        self.behaviours_used = Histogram(
            "daian_behaviours_used", "Behaviours in the history of a ranking", registry=r, buckets=COUNT_BUCKETS
        )
        self.behaviour_age = Histogram(
            "daian_behaviour_age_seconds", "Age of the newest behaviour", registry=r, buckets=AGE_BUCKETS_S
        )
        self.top_level = Counter("daian_top_level", "Similarity level of the item ranked first", ["level"], registry=r)
        self.events = Counter("daian_events", "Events received", ["type", "outcome"], registry=r)
        self.store_seconds = Histogram(
            "daian_store_seconds", "Time of one store operation", ["op"], registry=r, buckets=BUCKETS_S
        )
        self.store_errors = Counter("daian_store_errors", "Failed store operations", ["op", "kind"], registry=r)
        self.store_breaker_open = Gauge(
            "daian_store_breaker_open", "breakers that are open", ["pool"], registry=r, multiprocess_mode="livemax"
        )
        self.store_memory = Gauge(
            "daian_store_memory_share", "Used memory of the fullest server, of its limit", registry=r,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.store_late = Counter("daian_store_late_replies", "Replies after the read budget", ["pool"], registry=r)
        self.store_corrupt = Counter(
            "daian_store_corrupt", "Stored values that failed their check", ["what"], registry=r
        )
        self.bundle_info = Gauge(
            "daian_bundle_info", "The bundle that answers", ["name", "version", "variant"], registry=r,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.bundle_loads = Counter("daian_bundle_loads", "Bundles opened or refused", ["outcome"], registry=r)
        self.bundle_load_seconds = Histogram(
            "daian_bundle_load_seconds", "Time to open and verify a bundle", ["outcome"], registry=r
        )
        self.bundle_failed = Gauge(
            "daian_bundle_failed", "1 while a bundle is left, or answers, of whose scores half or more are not finite",
            ["outcome"], registry=r, multiprocess_mode="livemax",
        )  # fmt: skip
        self.loop_lag = Gauge(
            "daian_loop_lag_seconds", "Delay of the event loop's heartbeat", registry=r, multiprocess_mode="livemax"
        )
        self.log_dropped = Counter(
            "daian_log_dropped", "Log rows dropped because the queue was full", ["log"], registry=r
        )
        self._store_memory_s: float | None = None
        self._answers: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self._shed = {reason: self.shed.labels(reason) for reason in SHED_REASONS}
        self._stages = {name: self.stage_seconds.labels(name) for name in STAGES}
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """A series that begins with its first hit never rises: `rate` and `increase` would not see that hit."""
        for counter, values in (
            (self.degraded, DEGRADED_REASONS),
            (self.shed, SHED_REASONS),
            (self.cold, COLD_KINDS),
            (self.store_corrupt, CORRUPT_VALUES),
            (self.bundle_loads, BUNDLE_OUTCOMES),
            (self.log_dropped, LOGS),
            (self.bundle_failed, BUNDLE_FAILURES),
        ):
            for value in values:
                counter.labels(value)

    def expect_requests(self, route: str, variant: Variant = "none") -> None:
        """The same for the failures of a route, which the router knows."""
        for status in OUR_FAULTS:
            self.requests.labels(route, status, variant, "other")

    def count_answer(self, route: str, status: int, variant: Variant, surface: str, timer: StageTimer) -> None:
        """A request was answered. Its series are looked up once: finding them costs more than counting."""
        labels = (route, str(status), variant, surface)
        series = self._answers.get(labels)
        if series is None:
            series = self._answers[labels] = self.requests.labels(*labels), self.request_seconds.labels(*labels)
        series[0].inc()
        series[1].observe(timer.total_ms() / 1000)
        for stage, spent_ms in timer.ms.items():
            self._stages[stage].observe(spent_ms / 1000)

    def count_shed(self, reason: ShedReason) -> None:
        """A request was refused to protect the rest."""
        self._shed[reason].inc()

    def count_bundle(self, outcome: BundleOutcome) -> None:
        """A bundle was opened or refused."""
        self.bundle_loads.labels(outcome).inc()

    def count_cold(self, kind: ColdKind, n: int) -> None:
        """Ids that the bundle does not know."""
        self.cold.labels(kind).inc(n)

    def count_event(self, type_: str, outcome: EventOutcome, n: int = 1) -> None:
        """Events were stored, or why not; `type_` is one of ours or `other`."""
        self.events.labels(type_, outcome).inc(n)

    def saw_store_memory(self, share: float) -> None:
        """The fullest server of the store uses so much of its memory."""
        self.store_memory.set(share)
        self._store_memory_s = time.monotonic()

    def forget_store_memory(self, fresh_s: float) -> None:
        """Says 0 where nobody looked for so long: only who writes looks, and what the last one saw need not be so."""
        if self._store_memory_s is not None and time.monotonic() - self._store_memory_s >= fresh_s:
            self.store_memory.set(0.0)
            self._store_memory_s = None

    def forget_bundle(self, name: str, version: str) -> None:
        """A bundle no longer answers: its series goes, so that a thousand swaps do not leave a thousand series."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # where a series cannot be removed, it says 0
            self.bundle_info.labels(name, version, LIVE).set(0)
        else:
            self.bundle_info.remove(name, version, LIVE)

    def text(self) -> bytes:
        """Everything in the Prometheus text format; over all workers when they share a directory."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            shared = CollectorRegistry()
            MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
            return generate_latest(shared)
        return generate_latest(self.registry)


class UserHasher:
    """Names users and items in logs: 12 hex digits of HMAC-SHA-256, the same wherever the key is the same.

    Without a key each instance has one of its own.
    """

    def __init__(self, key: bytes | None) -> None:
        self._key = key or os.urandom(32)

    def __call__(self, user_id: str | None) -> str | None:
        return None if user_id is None else self._name(user_id)

    def item(self, item_id: str) -> str:
        """The name of an item; a user of the same id has another."""
        return self._name(f"item\0{item_id}")

    def _name(self, text: str) -> str:
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:12]


class JsonLines(logging.Formatter):
    """One JSON object per line: ts, level, event and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            line.update(fields)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["where"] = _where(record.exc_info[2])
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        except TypeError:  # a lone surrogate, or a number that is too long
            return json.dumps(line, default=str, ensure_ascii=False)


class TextLines(logging.Formatter):
    """The same for people: one line a record, fields at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s %(fields)s", defaults={"fields": ""})

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802  (logging's name)
        """Class and frames, in place of a traceback that ends in the message."""
        return f"{ei[0].__name__} at {' '.join(_where(ei[2]))}" if ei[0] else ""


def _where(trace: TracebackType | None) -> list[str]:
    """The frames of an exception without its message: a message may hold ids."""
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    return frames[-8:]


def configure_logging(level: str, style: str) -> None:
    """Sends every log line of the process to stdout, as JSON lines or as text."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line says them, each costs time
    logging._srcfile = None  # nor where it was written: logging's own way to skip the search
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
