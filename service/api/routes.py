"""The endpoints of the service, thin: read, validate, hand over, answer.

`router` is called by `service/app.py` with the parts of the process. `requested_at` is stamped here, and nothing below
reads the wall clock. Probes are `async` and ask nobody: no dependency decides our health.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import quote, unquote_to_bytes

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.api import docs, openapi
from service.api.bodies import FORM, JSON, NDJSON, parse, parse_events, read_body, service_error
from service.api.doorway import LABEL, RANK_PATHS, deadline_from
from service.api.exchange import Exchange, Handler, endpoint, new_request_id
from service.api.gate import Needed
from service.api.parts import Parts
from service.api.schemas import MAX_BEHAVIOURS, MAX_EVENTS, MAX_ID_BYTES, BehaviourEvent, RankRequest
from service.behaviour_codec import BehaviourEvent as StoredEvent
from service.behaviour_codec import StoredBehaviour, canonical_id
from service.deadline import IS_GONE
from service.errors import (
    CandidatesLimit,
    Draining,
    NotFound,
    Overloaded,
    StoreUnavailable,
    UnknownField,
    ValidationFailed,
)
from service.event_rules import RejectedEvent, Rejection, judge_event
from service.label_values import LIVE
from service.question import Question
from service.ranker import Ranking
from service.runtime import Runtime
from service.settings import Settings

EVENTS_BODY_BYTES = 8 << 20
USERS = b"/v1/users/"
CONTEXT_FIELDS = ("surface", "device", "position")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def router(parts: Parts) -> APIRouter:
    """All routes; those of the documentation only while `DAIAN_DOCS` is on."""
    routes = APIRouter()

    def add(method: str, path: str, handler: Handler, label: str | None = None, needed: Needed | None = None) -> None:
        parts.metrics.expect_requests(label or path)
        about = openapi.OPERATIONS.get((method, path))
        routes.add_api_route(
            path,
            endpoint(label or path, handler, parts, needed),
            methods=[method],
            include_in_schema=about is not None,
            openapi_extra=about,
            response_model=None,
            name=f"{method} {path}",
        )

    for path in RANK_PATHS:
        add("POST", path, rank, LABEL, "rank")
    parts.metrics.expect_requests(LABEL, LIVE)
    for path in ("/v1/events", "/events"):
        add("POST", path, events, "/v1/events", "events")
    add("DELETE", "/v1/users/{id:path}", erase_user, "/v1/users/{id}", "erase")
    for path in ("/livez", "/v2/health/live"):
        add("GET", path, livez)
    for path in ("/readyz", "/v2/health/ready"):
        add("GET", path, readyz)
    add("GET", "/v1/models", models, needed="any")
    add("GET", "/v1/models/{name}/versions/{version}", manifest, needed="any")
    add("GET", "/v1/limits", limits, needed="any")
    if parts.settings.admin_port is None:  # else it is on that port
        add("GET", "/metrics", metrics, needed="admin")
    if parts.settings.docs == "on":
        add("GET", "/openapi.json", openapi_json)
        add("GET", "/docs", docs_page)
    return routes


def rank_endpoint(parts: Parts) -> Callable[[Request], Awaitable[Response]]:
    """What answers `POST /v1/rank`, by route or without one."""
    return endpoint(LABEL, rank, parts, "rank")


# --- ranking ----------------------------------------------------------------------------------------------------------


async def rank(exchange: Exchange) -> Response:
    """`POST /v1/rank`."""
    parts, timer = exchange.parts, exchange.timer
    arrived_s, requested_at = time.monotonic(), time.time_ns() // 1_000_000
    runtime = parts.switch.live
    exchange.variant = LIVE
    exchange.headers["Daian-Model"] = f"{quote(runtime.label, safe='@._-')};variant=live"
    with timer.stage("admit"):
        header_ms, priority = exchange.number_header("x-timeout-ms"), exchange.priority()
    body, _ = await read_body(exchange.request, parts.settings.max_body_bytes, (JSON, FORM))
    with timer.stage("parse"):
        asked = parse(RankRequest, body)
        question = question_of(asked, exchange, runtime, requested_at)
        exchange.request_id = question.request_id
    with timer.stage("admit"):
        deadline = deadline_from(arrived_s, (header_ms, asked.deadline_ms), parts.settings)
        if (is_gone := exchange.request.scope.get(IS_GONE)) is not None:
            deadline = replace(deadline, is_gone=is_gone)
        parts.admission.enter(deadline, priority, exchange.caller.tenant)
    try:
        ranking = await runtime.ranker.rank(question, deadline, timer)
    finally:
        parts.admission.leave(exchange.caller.tenant)
    parts.swap.saw(runtime, ranking)
    _describe(exchange, ranking, question)
    return exchange.answer(rank_answer(ranking, question, runtime, timer.rounded()))


def question_of(asked: RankRequest, exchange: Exchange, runtime: Runtime, requested_at: int) -> Question:
    """The question of a validated body. Raises for what the settings or the bundle do not allow."""
    _check_limits(asked, exchange.parts.settings)
    _check_context(asked.context, runtime)
    given = asked.behaviours
    return Question(
        request_id=asked.request_id or exchange.request_id,
        requested_at=requested_at,
        user=asked.user,
        trigger=asked.trigger,
        candidates=asked.candidates,
        top_k=asked.top_k,
        context=asked.context,
        exclude=asked.exclude,
        tenant=exchange.caller.tenant,
        behaviours=None if given is None else [StoredBehaviour(one.item, one.time, one.type) for one in given],
    )


def _check_limits(asked: RankRequest, settings: Settings) -> None:
    n_candidates, most = len(asked.candidates or ()), settings.max_candidates
    if n_candidates > most:
        raise CandidatesLimit(
            f"{n_candidates} given, {most} allowed: send fewer, or none to use recall",
            [{"pointer": "/candidates", "code": "too_long"}],
        )
    for name, value, limit in (
        ("top_k", asked.top_k, most),
        ("deadline_ms", asked.deadline_ms, settings.max_deadline_ms),
    ):
        if value is not None and value > limit:
            raise ValidationFailed(f"{name} is at most {limit}", [{"pointer": f"/{name}", "code": "less_than_equal"}])


def _check_context(context: Mapping[str, object], runtime: Runtime) -> None:
    known = {*CONTEXT_FIELDS, *(found.name for found in runtime.encoder.schema.context)}
    if not known.issuperset(context):
        raise UnknownField(
            f"unknown context field: this model takes {', '.join(sorted(known))}",
            [{"pointer": "/context", "code": "extra_forbidden"}],
        )


def _describe(exchange: Exchange, ranking: Ranking, question: Question) -> None:
    """Headers and log fields of a ranking; users appear as a keyed hash."""
    if ranking.degraded:
        exchange.headers["Daian-Degraded"] = ", ".join(ranking.degraded)
    exchange.fields.update(
        n_candidates=ranking.n_candidates,
        n_behaviours=ranking.n_used,
        degraded=list(ranking.degraded),
        coverage=round(ranking.coverage, 4),
        model=exchange.headers["Daian-Model"],
        surface=exchange.surface,
        user=exchange.parts.hash_user(question.user),
        trigger=exchange.parts.hash_user.item(question.trigger),
    )


def rank_answer(
    ranking: Ranking, question: Question, runtime: Runtime, timing_ms: dict[str, float]
) -> dict[str, object]:
    """The body of an answer, in plain values."""
    intent = ranking.intent
    return {
        "request_id": question.request_id,
        "model": {"name": runtime.bundle.name, "version": runtime.bundle.version, "variant": LIVE},
        "degraded": ranking.degraded,
        "coverage": round(ranking.coverage, 6),
        "intent": None if intent is None else vars(intent),
        "behaviours": {"used": ranking.n_used, "similar": ranking.n_similar, "newest_age_s": ranking.newest_age_s},
        "items": ranking.items,
        "timing_ms": timing_ms,
    }


# --- events -----------------------------------------------------------------------------------------------------------


async def events(exchange: Exchange) -> Response:
    """`POST /v1/events`: 200 means stored and visible to the next ranking."""
    parts = exchange.parts
    now = time.time_ns() // 1_000_000
    body, media_type = await read_body(exchange.request, EVENTS_BODY_BYTES, (JSON, FORM, NDJSON))
    with exchange.timer.stage("parse"):
        accepted, rejected = _judged(parse_events(body, media_type), now, parts.settings.behaviours_window_days)
    with exchange.timer.stage("behaviours"):
        stored = await parts.store.append(accepted, exchange.caller.tenant)
    for event in accepted:
        parts.metrics.count_event(event.type, "accepted")
    for one in rejected:
        parts.metrics.count_event("other", one.code)
    if stored.erased:
        parts.metrics.count_event("other", "erased", stored.erased)
    exchange.fields.update(n_events=len(accepted), n_rejected=len(rejected))
    return exchange.answer(
        {
            "accepted": stored.accepted,
            "duplicates": stored.duplicates,
            "erased": stored.erased,
            "rejected": [{"index": one.index, "code": one.code, "detail": one.detail} for one in rejected],
            "took_ms": round(exchange.timer.total_ms(), 3),
        }
    )


def _judged(raw: list[object], now: int, window_days: int) -> tuple[list[StoredEvent], list[RejectedEvent]]:
    """Every event on its own: shaped, judged by the store's rules, or rejected with a code."""
    accepted, rejected = [], []
    for index, one in enumerate(raw):
        try:
            shaped = BehaviourEvent.model_validate(one)
        except ValidationError as error:
            reason = service_error(error, BehaviourEvent)
            rejected.append(RejectedEvent(index, "malformed", reason.detail))
            continue
        event = StoredEvent(shaped.user, shaped.item, shaped.type, shaped.time, shaped.surface)
        verdict = judge_event(event, now, window_days)
        if isinstance(verdict, Rejection):
            rejected.append(RejectedEvent(index, verdict.code, verdict.detail))
        else:
            accepted.append(verdict)
    return accepted, rejected


# --- users ------------------------------------------------------------------------------------------------------------


async def erase_user(exchange: Exchange) -> Response:
    """`DELETE /v1/users/{id}`: 200 means that nothing is left; asking again finds nothing and is 200 too."""
    parts, tenant = exchange.parts, exchange.caller.tenant
    user = _user_of_path(exchange)
    with exchange.timer.stage("behaviours"):
        erased = await parts.store.erase(user, tenant)
    try:
        # A ranking that began before may still log the history that it read: not longer than its deadline.
        n_rows = await parts.request_log.erase(user, tenant, parts.settings.max_deadline_ms / 1000)
    except OSError as error:
        raise StoreUnavailable("the request log could not be cleared: repeat the call as it is") from error
    receipt = {
        "receipt": new_request_id(),
        "erased_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "erased": {
            "behaviours": erased.behaviours,
            "profile": erased.profile,
            "other_keys": erased.other_keys,
            "log_rows": n_rows,
        },
        "sealed": erased.is_sealed,
    }
    exchange.fields.update(receipt)
    return exchange.answer({**receipt, "took_ms": round(exchange.timer.total_ms(), 3)})


def _user_of_path(exchange: Exchange) -> str:
    """The user in the path, percent-decoded from the bytes that were sent: slashes and all. Raises ValidationFailed."""
    scope = exchange.request.scope
    raw: bytes = scope.get("raw_path") or quote(scope["path"], safe="/").encode()
    try:
        if not raw.startswith(USERS):  # encoded, and then some other part might pass for the id
            raise ValueError
        return canonical_id(unquote_to_bytes(raw.removeprefix(USERS)).decode())
    except ValueError as error:  # the decoder's own text repeats the bytes
        raise ValidationFailed(
            f"a user id is 1 to {MAX_ID_BYTES} bytes of UTF-8 without control characters, percent-encoded"
        ) from error


# --- probes and metadata ----------------------------------------------------------------------------------------------


async def livez(exchange: Exchange) -> Response:
    """200 while the event loop runs."""
    return exchange.answer({"status": "alive"})


async def readyz(exchange: Exchange) -> Response:
    """200 once a bundle passed its golden requests, while not draining. Never asks the store."""
    parts = exchange.parts
    if parts.health.draining:
        raise Draining("this process is about to stop: send new requests elsewhere")
    if parts.health.is_stuck:
        raise Overloaded("the event loop is behind: send new requests elsewhere")
    runtime = parts.switch.live
    answer: dict[str, object] = {"status": "ready"}
    if "verbose" in exchange.request.query_params:
        answer |= {"bundle": runtime.label, "loop_lag_s": round(parts.health.loop_lag_s, 4)}
    return exchange.answer(answer)


async def models(exchange: Exchange) -> Response:
    """What is loaded."""
    switch, left = exchange.parts.switch, exchange.parts.swap.left
    if not switch.is_loaded:
        return exchange.answer({"models": []})
    live, previous = switch.live, switch.previous
    versions = [_version(live.bundle.version, live.loaded_at, "live", 1.0)]
    if previous is not None:
        versions.append(_version(previous.bundle.version, previous.loaded_at, "previous", 0.0))
    if left is not None:
        versions.append(_version(left.version, left.loaded_at, "failed", 0.0))
    return exchange.answer({"models": [{"name": live.bundle.name, "versions": versions}]})


def _version(version: str, loaded_at: float, state: str, traffic: float) -> dict[str, object]:
    loaded_since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(loaded_at))
    return {"version": version, "state": state, "loaded_since": loaded_since, "traffic": traffic}


async def manifest(exchange: Exchange) -> Response:
    """The manifest of a loaded bundle."""
    asked = exchange.request.path_params
    bundle = exchange.parts.switch.live.bundle
    if (asked["name"], asked["version"]) != (bundle.name, bundle.version):
        raise NotFound("no such model version is loaded: GET /v1/models lists them")
    return exchange.answer(dict(bundle.manifest))


async def limits(exchange: Exchange) -> Response:
    """The limits in force."""
    settings = exchange.parts.settings
    return exchange.answer(
        {
            "candidates": settings.max_candidates,
            "top_k": settings.max_candidates,
            "body_bytes": settings.max_body_bytes,
            "header_bytes": settings.max_header_bytes,
            "events_body_bytes": EVENTS_BODY_BYTES,
            "events": MAX_EVENTS,
            "behaviours": MAX_BEHAVIOURS,
            "deadline_ms": settings.deadline_ms,
            "max_deadline_ms": settings.max_deadline_ms,
        }
    )


async def metrics(exchange: Exchange) -> Response:
    """Prometheus text."""
    return exchange.answer(exchange.parts.metrics.text(), media_type=METRICS_TYPE)


async def openapi_json(exchange: Exchange) -> Response:
    """The OpenAPI document."""
    return exchange.answer(exchange.request.app.openapi())


async def docs_page(exchange: Exchange) -> Response:
    """The page to play with, whole in one file."""
    exchange.headers["Content-Security-Policy"] = docs.POLICY
    return exchange.answer(docs.page(), media_type="text/html; charset=utf-8")
