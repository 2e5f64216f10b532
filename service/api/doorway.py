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

from service.admission import NO_ROOM, SHARE_IS_TAKEN, Priority
from service.api.exchange import PROBLEM, header_id
from service.api.parts import Parts
from service.deadline import Deadline
from service.door import Headers, Refusal
from service.errors import Busy, Overloaded, TenantShare, problem_of, verdict_of
from service.label_values import LIVE
from service.metrics import Metrics
from service.settings import Settings

RANK_PATHS = ("/v1/rank", "/rank")
LABEL = RANK_PATHS[0]
_PATHS = {path.encode(): path for path in RANK_PATHS}
_LINES = (
    b"content-type: " + PROBLEM.encode() + b"\r\ncontent-length: %d\r\nretry-after: %d\r\nx-request-id: %s\r\n"
    b"cache-control: no-store\r\nserver-timing: total;dur=%.3f\r\n"
)
_PRIORITIES: dict[bytes, Priority] = {b"": "interactive", b"interactive": "interactive", b"prefetch": "prefetch"}


def deadline_from(arrived_s: float, asked_ms: Sequence[float | None], settings: Settings) -> Deadline:
    """From arrival on: the smallest that was asked for, else the setting's, within our own limit."""
    given = [budget_ms for budget_ms in asked_ms if budget_ms is not None]
    budget_ms = min([*(given or [settings.deadline_ms]), settings.max_deadline_ms])
    return Deadline(arrived_s + budget_ms / 1000)


class Form:
    """One refusal on one path, made once but for the request's id and the time after which to come back."""

    def __init__(self, error: Busy, path: str, metrics: Metrics) -> None:
        self._status = verdict_of(error).status
        error.retry_after_ms = 0
        body = orjson.dumps(problem_of(error, path, "")).replace(b"%", b"%%")
        self._body = body.replace(b'"request_id":""', b'"request_id":%s').replace(b'_ms":0', b'_ms":%d')
        labels = (LABEL, str(self._status), LIVE, "other")
        self._requests, self._seconds = metrics.requests.labels(*labels), metrics.request_seconds.labels(*labels)

    def filled(self, request_id: str, retry_after_ms: int, arrived_s: float, is_last: bool) -> Refusal:
        """The refusal of a request that arrived then; counted."""
        body = self._body % (orjson.dumps(request_id), retry_after_ms)  # an id may hold quotes
        seconds = time.monotonic() - arrived_s
        lines = _LINES % (len(body), max(1, -(-retry_after_ms // 1000)), request_id.encode(), seconds * 1000)
        self._requests.inc()
        self._seconds.observe(seconds)
        return Refusal(self._status, lines, body, is_last)


class Doorway:
    """An ASGI app that answers 503 `overloaded` and 429 `tenant_share` itself; all else is for the app behind it."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._admin_port = parts.settings.admin_port
        self._no_room = {path: Form(Overloaded(NO_ROOM), path, parts.metrics) for path in RANK_PATHS}
        self._no_share = {path: Form(TenantShare(SHARE_IS_TAKEN), path, parts.metrics) for path in RANK_PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in RANK_PATHS:
            refusal = self.refusal(scope["path"], scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers()})
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
        form, retry_after_ms = self._no_room, 0
        if tenant is not None:
            try:
                admission.check_share(deadline, tenant)
            except TenantShare as error:
                form, retry_after_ms = self._no_share, error.retry_after_ms
        retry_after_ms = retry_after_ms or admission.turned_away_ms(deadline, priority)
        if not retry_after_ms:
            return None
        request_id = header_id(found.get(b"x-request-id", b"").decode("latin-1"))
        return form[path].filled(request_id, retry_after_ms, arrived_s, self._parts.health.draining)
