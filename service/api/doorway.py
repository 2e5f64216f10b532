"""Doorway: turns rankings away that have no chance, before anything is made for them.

In an overload most requests end here, and what each of them costs is taken from those that are answered. So the answer
is made from a few bytes; it is counted like every other, and not written to the log, where thousands a second would be
the next overload. `http_guard.py` asks as soon as the headers are in, and writes the answer with no task, no scope and
no app; under another server the same doorway stands around the app of `app.py`, in front of routing, keys and quotas.
It looks for a key only where tenants share a queue: who has its half of it is told so here (429), and who is refused
for want of room is known to have asked.
Whoever passes is looked at again behind its body (`routes.rank`) and in front of its worker.
"""

import time
from collections.abc import Sequence

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admission import Priority
from service.api.exchange import PROBLEM, header_id
from service.api.parts import Parts
from service.deadline import Deadline
from service.door import STATUS_LINES, Headers, Refusal
from service.errors import Busy, Overloaded, TenantShare, problem_of, verdict_of
from service.label_values import LIVE
from service.settings import Settings

RANK_PATHS = ("/v1/rank", "/rank")
LABEL = RANK_PATHS[0]
_PATHS = {path.encode(): path for path in RANK_PATHS}
_PRIORITIES: dict[bytes, Priority] = {b"": "interactive", b"interactive": "interactive", b"prefetch": "prefetch"}


def deadline_from(arrived_s: float, asked_ms: Sequence[float | None], settings: Settings) -> Deadline:
    """From arrival on: the smallest that was asked for, else the setting's, within our own limit."""
    given = [budget_ms for budget_ms in asked_ms if budget_ms is not None]
    budget_ms = min([*(given or [settings.deadline_ms]), settings.max_deadline_ms])
    return Deadline(arrived_s + budget_ms / 1000)


class Doorway:
    """An ASGI app that answers 503 `overloaded` and 429 `tenant_share` itself; all else is for the app behind it."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._admin_port = parts.settings.admin_port
        labels, metrics = {one: (LABEL, str(one), LIVE, "other") for one in STATUS_LINES}, parts.metrics
        self._requests = {status: metrics.requests.labels(*found) for status, found in labels.items()}
        self._seconds = {status: metrics.request_seconds.labels(*found) for status, found in labels.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in RANK_PATHS:
            refusal = self.refusal(scope["path"], scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
        await send({"type": "http.response.body", "body": refusal.body})

    def turn_away(self, method: bytes, target: bytes, headers: Headers, port: int | None) -> Refusal | None:
        """`Door.turn_away`: asked by a server that would rather make nothing of a request."""
        path = _PATHS.get(target)
        if path is None or method != b"POST" or (port is not None and port == self._admin_port):
            return None
        return self.refusal(path, headers)

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """The answer to a ranking without a chance; None for others, and for headers that deserve another answer."""
        if self._parts.admission.predicted_wait_s() <= 0:
            return None
        arrived_s, given = time.monotonic(), list(headers)
        found = dict(reversed(given))  # the first of a name counts
        priority = _PRIORITIES.get(found.get(b"x-priority", b"").strip().lower())
        try:
            asked_ms = float(found[b"x-timeout-ms"]) if b"x-timeout-ms" in found else None
        except ValueError:
            return None
        if priority is None or (asked_ms is not None and not 0 < asked_ms < 1e9):
            return None
        admission, tenant = self._parts.admission, self._parts.gate.tenant_among_others(given, "rank")
        deadline = deadline_from(arrived_s, (asked_ms,), self._parts.settings)
        try:
            if tenant is not None:
                admission.check_share(deadline, tenant)
            admission.check(deadline, priority)
        except (Overloaded, TenantShare) as error:
            return self._answer(error, path, found.get(b"x-request-id", b""), arrived_s)
        return None

    def _answer(self, error: Busy, path: str, asked_id: bytes, arrived_s: float) -> Refusal:
        request_id = header_id(asked_id.decode("latin-1"))
        body = orjson.dumps(problem_of(error, path, request_id))
        seconds = time.monotonic() - arrived_s
        headers = [
            (b"content-type", PROBLEM.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % max(1, -(-error.retry_after_ms // 1000))),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"server-timing", b"total;dur=%.3f" % (seconds * 1000)),
        ]
        if self._parts.health.draining:
            headers.append((b"connection", b"close"))
        status = verdict_of(error).status
        self._requests[status].inc()
        self._seconds[status].observe(seconds)
        return Refusal(headers, body, status)
