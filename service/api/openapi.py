"""The OpenAPI 3.1 document: what each endpoint takes and gives, with examples.

Bodies are read as bytes, so FastAPI cannot know their shapes; this module names them. Called by the routes (one entry
per operation) and by `service/app.py` (components). Committed as a snapshot by a test: a change of the interface is a
decision.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.schemas import (
    MAX_ID_BYTES,
    BehaviourEvent,
    ErasedResponse,
    EventsRequest,
    EventsResponse,
    Problem,
    RankRequest,
    RankResponse,
)

_SHAPES: tuple[type[BaseModel], ...] = (
    RankRequest,
    RankResponse,
    EventsRequest,
    BehaviourEvent,
    EventsResponse,
    ErasedResponse,
    Problem,
)

_HEADERS = {
    "X-Request-Id": "the request's id: yours, or one made here",
    "Server-Timing": "milliseconds by stage",
    "Daian-Model": "name@version;variant=v",
    "Daian-Degraded": "what the answer lacks, comma-separated; absent when nothing",
}


def _reference(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": _reference(Problem)}}}


def _body(shape: type[BaseModel], *media_types: str) -> dict[str, Any]:
    return {"required": True, "content": {one: {"schema": _reference(shape)} for one in media_types}}


def _ok(shape: type[BaseModel], headers: tuple[str, ...] = ()) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done", "content": {"application/json": {"schema": _reference(shape)}}}
    if headers:
        answer["headers"] = {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in headers}
    return answer


_CLIENT_ERRORS = {
    "400": _problem("`malformed_json`, `bad_request`"),
    "413": _problem("`body_too_large`"),
    "415": _problem("`unsupported_media_type`, `unsupported_encoding`"),
}

_RANK: dict[str, Any] = {
    "operationId": "rank",
    "summary": "Rank the page below a clicked item",
    "description": "With `candidates`: a permutation of them. Without: items recalled by the predicted intent.",
    "tags": ["ranking"],
    "requestBody": _body(RankRequest, "application/json"),
    "responses": {
        "200": _ok(RankResponse, tuple(_HEADERS)),
        **_CLIENT_ERRORS,
        "422": _problem("`validation_failed`, `unknown_field`, `candidates_limit`"),
        "503": _problem("`overloaded`, `deadline_exceeded`, `draining`, `no_model`; come back after `Retry-After`"),
    },
}

_EVENTS: dict[str, Any] = {
    "operationId": "events",
    "summary": "Store behaviours; 200 means visible to the next ranking",
    "description": "JSON, or NDJSON with one event a line. Sending an event twice changes nothing.",
    "tags": ["events"],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _reference(EventsRequest)},
            "application/x-ndjson": {"schema": _reference(BehaviourEvent)},
        },
    },
    "responses": {
        "200": _ok(EventsResponse),
        **_CLIENT_ERRORS,
        "422": _problem("`validation_failed`, `unknown_field`: the envelope"),
        "503": _problem("`store_unavailable`: repeat the call as it is"),
        "507": _problem("`store_full`"),
    },
}


_ERASE: dict[str, Any] = {
    "operationId": "erase_user",
    "summary": "Remove every trace of a user, with a receipt",
    "description": "May be repeated: a user who is not there has nothing removed. Events that come afterwards are new.",
    "tags": ["users"],
    "parameters": [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
        }
    ],
    "responses": {
        "200": _ok(ErasedResponse),
        "404": _problem("`not_found`: a line break or a dot segment where the id should be"),
        "405": _problem("`method_not_allowed`: the same"),
        "422": _problem("`validation_failed`: no user can have that id"),
        "503": _problem("`store_unavailable`: repeat the call as it is"),
    },
}


def _plain(operation: str, summary: str, tag: str, *failures: str) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {"description": "Done", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
    answers |= {status: _problem("see `code`") for status in failures}
    return {"operationId": operation, "summary": summary, "tags": [tag], "responses": answers}


def _alias(operation: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{operation['operationId']}_alias"
    return {**operation, "operationId": name, "summary": f"{operation['summary']} (permanent alias)"}


_METRICS = _plain("metrics", "Prometheus metrics", "signals")
_METRICS["responses"] = {
    "200": {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
_MANIFEST = _plain("manifest", "The manifest of a loaded version", "models", "404", "503")
_MANIFEST["parameters"] = [
    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in ("name", "version")
]

_NO_KEY = {
    "401": _problem("`unauthenticated`: no live key; only where the service asks for keys"),
    "403": _problem("`forbidden_scope`: the key may not do this"),
    "429": _problem("`tenant_quota`, and of rankings `tenant_share`: come back after `Retry-After`"),
}
_SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _for_keys(operation: dict[str, Any]) -> dict[str, Any]:
    """The operation as a service that asks for keys has it; `{}` says that none may be needed."""
    if operation["tags"] == ["probes"]:
        return operation
    security: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY]
    return {**operation, "security": [*security, {}], "responses": {**operation["responses"], **_NO_KEY}}


_OPERATIONS: Mapping[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/rank"): _RANK,
    ("POST", "/rank"): _alias(_RANK),
    ("POST", "/v1/events"): _EVENTS,
    ("POST", "/events"): _alias(_EVENTS),
    ("DELETE", "/v1/users/{id:path}"): _ERASE,
    ("GET", "/v1/models"): _plain("models", "What is loaded", "models"),
    ("GET", "/v1/models/{name}/versions/{version}"): _MANIFEST,
    ("GET", "/v1/limits"): _plain("limits", "The limits in force", "models"),
    ("GET", "/livez"): _plain("livez", "Is the process alive", "probes"),
    ("GET", "/readyz"): _plain("readyz", "May it get requests", "probes", "503"),
    ("GET", "/metrics"): _METRICS,
}

OPERATIONS = {route: _for_keys(about) for route, about in _OPERATIONS.items()}


def with_components(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with our shapes in it and nothing of its own 422."""
    _, definitions = models_json_schema(
        [(shape, "validation") for shape in _SHAPES], ref_template="#/components/schemas/{model}"
    )
    document["components"] = {"schemas": definitions["$defs"], "securitySchemes": _SECURITY}
    for path in document["paths"].values():
        for operation in path.values():
            known = OPERATIONS_BY_ID[operation["operationId"]]
            operation["responses"] = known["responses"]
    return document


OPERATIONS_BY_ID: Mapping[str, dict[str, Any]] = {about["operationId"]: about for about in OPERATIONS.values()}
