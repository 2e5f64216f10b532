"""The admin calls: which bundle answers, and back to the one before.

`router` is called by `service/app.py`: on the admin port, or, while there is none and keys are asked for, beside the
public routes. Each call is synchronous: 200 means that the bundle passed its trial, the pointer was moved and this
process answers with it; other workers are told at once. Everything is done by `service/bundle_swap.py`.
"""

import time

from fastapi import APIRouter
from starlette.responses import Response

from service.api import routes as public
from service.api.bodies import FORM, JSON, parse, read_body
from service.api.exchange import Exchange, Handler, endpoint
from service.api.gate import Needed
from service.api.parts import Parts
from service.api.schemas import PromoteRequest, RollbackRequest
from service.errors import NotFound
from service.runtime import Runtime

BODY_BYTES = 16_384


def admin_router(parts: Parts) -> APIRouter:
    """The calls that change which bundle answers."""
    routes = APIRouter()
    for action, handler in (("promote", promote), ("rollback", rollback)):
        _add(routes, parts, "POST", f"/v1/admin/models/{{name}}:{action}", handler, "admin")
    return routes


def listener_router(parts: Parts) -> APIRouter:
    """All routes of the admin port: the admin calls, metrics, and what probes and people look at."""
    routes = admin_router(parts)
    looks: tuple[tuple[str, Handler, Needed | None], ...] = (
        ("/livez", public.livez, None),
        ("/readyz", public.readyz, None),
        ("/metrics", public.metrics, "admin"),
        ("/v1/models", public.models, "any"),
        ("/v1/models/{name}/versions/{version}", public.manifest, "any"),
        ("/v1/limits", public.limits, "any"),
    )
    for path, handler, needed in looks:
        _add(routes, parts, "GET", path, handler, needed)
    return routes


def _add(routes: APIRouter, parts: Parts, method: str, path: str, handler: Handler, needed: Needed | None) -> None:
    parts.metrics.expect_requests(path)
    routes.add_api_route(
        path, endpoint(path, handler, parts, needed), methods=[method], include_in_schema=False, response_model=None
    )


async def promote(exchange: Exchange) -> Response:
    """`POST /v1/admin/models/{name}:promote`."""
    body, _ = await read_body(exchange.request, BODY_BYTES, (JSON, FORM))
    asked = parse(PromoteRequest, body)
    _check_name(exchange)
    return _changed(exchange, await exchange.parts.swap.promote(asked.version, asked.if_live))


async def rollback(exchange: Exchange) -> Response:
    """`POST /v1/admin/models/{name}:rollback`; no body is an empty one."""
    body, _ = await read_body(exchange.request, BODY_BYTES, (JSON, FORM))
    asked = parse(RollbackRequest, body or b"{}")
    _check_name(exchange)
    return _changed(exchange, await exchange.parts.swap.rollback(asked.if_live))


def _check_name(exchange: Exchange) -> None:
    if exchange.request.path_params["name"] != exchange.parts.settings.bundle_name:
        raise NotFound("no such model: GET /v1/models lists them")


def _changed(exchange: Exchange, runtime: Runtime) -> Response:
    exchange.fields["model"] = runtime.label
    previous = exchange.parts.switch.previous
    return exchange.answer(
        {
            "name": runtime.bundle.name,
            "version": runtime.bundle.version,
            "loaded_since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(runtime.loaded_at)),
            "previous": None if previous is None else previous.bundle.version,
            "took_ms": round(exchange.timer.total_ms(), 3),
        }
    )
