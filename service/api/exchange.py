"""Exchange: one HTTP request and its answer, with the headers, the log line and the metrics that every answer gets.

The routes give a handler; `endpoint` makes it a Starlette endpoint. All errors, bugs included, end here as
problem+json, so that the connection survives and nothing of the input comes back.
"""

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.admission import Priority
from service.api.gate import Caller, Needed
from service.api.parts import Parts
from service.errors import BadRequest, BodyTooLarge, Unauthenticated, problem_of, retry_after_ms_of, verdict_of
from service.label_values import Variant
from service.metrics import StageTimer

PROBLEM = "application/problem+json"
JSON = "application/json"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_dice = (
    random.Random()
)  # seeded by the system at the start: an id is no secret, and a call of the system for each is dear
_log = logging.getLogger("daian.http")


@dataclass
class Exchange:
    """What a handler may see and say; `fields` go to the log line, `headers` to the answer."""

    request: Request
    parts: Parts
    route: str
    request_id: str
    timer: StageTimer = field(default_factory=StageTimer)
    headers: dict[str, str] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)
    caller: Caller = field(default_factory=Caller)
    variant: Variant = "none"
    surface: str = "other"

    def answer(self, content: object, status: int = 200, media_type: str = JSON) -> Response:
        """A JSON answer of plain values."""
        with self.timer.stage("respond"):
            body = content if isinstance(content, bytes) else orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, status, media_type=media_type)

    def priority(self) -> Priority:
        """What X-Priority says. Raises BadRequest when it says something else."""
        found = self.request.headers.get("x-priority", "interactive").strip().lower()
        if found == "interactive":
            return "interactive"
        if found != "prefetch":
            raise BadRequest("X-Priority is `interactive` or `prefetch`")
        self.fields["priority"] = found
        return "prefetch"

    def number_header(self, name: str) -> float | None:
        """A header that must be a positive number. Raises BadRequest when it is not."""
        found = self.request.headers.get(name)
        if found is None:
            return None
        try:
            value = float(found)
        except ValueError:
            value = -1.0
        if not 0 < value < 1e9:
            raise BadRequest(f"{name} must be a positive number of milliseconds")
        return value


Handler = Callable[[Exchange], Awaitable[Response]]


def endpoint(
    route: str, handler: Handler, parts: Parts, needed: Needed | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """The Starlette endpoint of a handler. `route` is the metric label: the template, never the path that was asked;
    `needed` is what a key must be good for, None for what is open to all.
    """

    async def answered(request: Request) -> Response:
        exchange = Exchange(request, parts, route, header_request_id(request))
        try:
            if needed is not None:
                exchange.caller = parts.gate.admit(request, needed)
            response = await handler(exchange)
        except Exception as error:  # noqa: BLE001  (the edge of the process: everything becomes an answer)
            response = problem_response(error, _instance(error, exchange), exchange.request_id)
            _note(error, exchange)
        return _finished(exchange, response)

    return answered


def problem_response(error: BaseException, instance: str, request_id: str) -> Response:
    """Any error as problem+json, with Retry-After where a second try is worth it."""
    problem = problem_of(error, instance, request_id)
    response = Response(orjson.dumps(problem), verdict_of(error).status, media_type=PROBLEM)
    response.headers["X-Request-Id"] = _header_text(request_id)
    response.headers["Cache-Control"] = "no-store"
    wait_ms = retry_after_ms_of(error)
    if wait_ms is not None:
        response.headers["Retry-After"] = str(max(1, -(-wait_ms // 1000)))
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge):  # the rest of the body is still under way
        response.headers["Connection"] = "close"
    return response


def _instance(error: BaseException, exchange: Exchange) -> str:
    """The path, as far as it is ours: of a path with a parameter the template, of one without a route nothing."""
    if verdict_of(error).status in (404, 405):
        return ""
    scope = exchange.request.scope  # not the request's URL: that is made of the Host header and the query string too
    return exchange.route if scope.get("path_params") else str(scope["path"])


def header_request_id(request: Request) -> str:
    """The caller's X-Request-Id when it is plain text of a sane length, else a new one."""
    return header_id(request.headers.get("x-request-id", ""))


def header_id(asked: str) -> str:
    """The same, of the header's value; "" without one."""
    return asked if _REQUEST_ID.fullmatch(asked) else new_request_id()


def _header_text(request_id: str) -> str:
    """The id as a header can hold it: a body may name any id, a header only plain text; the rest is percent-encoded."""
    return request_id if _REQUEST_ID.fullmatch(request_id) else quote(request_id, safe="")


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by time."""
    value = (time.time_ns() // 1_000_000) << 80 | _dice.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _note(error: BaseException, exchange: Exchange) -> None:
    exchange.fields["code"] = verdict_of(error).code
    if verdict_of(error).status == 500:
        fields = {"request_id": exchange.request_id, "route": exchange.route}
        _log.error("bug", exc_info=error, extra={"fields": fields})


def _finished(exchange: Exchange, response: Response) -> Response:
    """Headers, metrics and the log line; the same for success and failure."""
    headers = {
        "X-Request-Id": _header_text(exchange.request_id),
        "Cache-Control": "no-store",
        "Server-Timing": exchange.timer.header(),
        **exchange.headers,
    }
    if exchange.parts.health.draining:
        headers["Connection"] = "close"
    response.headers.update(headers)
    _measure(exchange, response.status_code)
    return response


def _measure(exchange: Exchange, status: int) -> None:
    timer = exchange.timer
    exchange.parts.metrics.count_answer(exchange.route, status, exchange.variant, exchange.surface, timer)
    # Requests over a quota come by the thousand: they are counted, not written down.
    if status != 429 and (exchange.fields or status >= 400):
        fields = {
            "request_id": exchange.request_id,
            "route": exchange.route,
            "status": status,
            "ms": round(timer.total_ms(), 3),
            "stages": {name: round(spent_ms, 3) for name, spent_ms in timer.ms.items()},
            **_caller_fields(exchange.caller),
            **exchange.fields,
        }
        _log.info("request", extra={"fields": fields})


def _caller_fields(caller: Caller) -> dict[str, str]:
    """Whose request it was, while keys are asked for."""
    return {} if caller.key is None else {"tenant": caller.tenant, "key": caller.key}
