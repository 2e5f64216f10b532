"""From the bytes of a body to a validated shape, or to an error that says where and why without repeating the input.

Called by the routes. Bytes go straight to pydantic's parser: the standard library's lets NaN, lone surrogates and
endless nesting in. Nothing here knows what a field means.
"""

import difflib
from collections.abc import Iterable
from typing import TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from service.api.schemas import FIELD_NAMES, MAX_EVENTS, EventsRequest
from service.errors import (
    BadRequest,
    BodyTooLarge,
    MalformedJson,
    ServiceError,
    UnknownField,
    UnsupportedEncoding,
    UnsupportedMediaType,
    ValidationFailed,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"  # what `curl -d` says of any body
MAX_POINTERS = 20
MAX_DIGITS = 15  # of a length that is worth reading

Shape = TypeVar("Shape", bound=BaseModel)


async def read_body(request: Request, limit: int, accepted: Iterable[str]) -> tuple[bytes, str]:
    """The body and its media type (no header reads as JSON).

    Raises UnsupportedMediaType, UnsupportedEncoding, or BodyTooLarge: at once when Content-Length says so, else at the
    first byte too many.
    """
    media_type = _media_type(request, accepted)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and (len(declared) > MAX_DIGITS or int(declared) > limit):
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect as error:
        raise BadRequest("the connection closed before the body was whole") from error
    return b"".join(parts), media_type


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"more than {limit} bytes: send fewer candidates or events per call")


def _media_type(request: Request, accepted: Iterable[str]) -> str:
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    found, allowed = said or JSON, tuple(accepted)
    # A browser sends a page's body with these to any address without asking it first; `curl` has no Origin.
    if found not in allowed or (said in ("", FORM) and _is_from_a_page(request)):
        raise UnsupportedMediaType(f"send the body as {' or '.join(one for one in allowed if one != FORM)}")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding("send the body uncompressed, without Content-Encoding")
    return found


def _is_from_a_page(request: Request) -> bool:
    return "origin" in request.headers


def parse(shape: type[Shape], body: bytes) -> Shape:
    """The body as `shape`. Raises MalformedJson, UnknownField or ValidationFailed, with pointers."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise service_error(error, shape) from None


def parse_events(body: bytes, media_type: str) -> list[object]:
    """The raw events of one call, from a JSON envelope or from one JSON value per line.

    Raises MalformedJson for a broken envelope and ValidationFailed for too many; a line that is not JSON becomes None,
    which no event shape takes.
    """
    if media_type != NDJSON:
        return list(parse(EventsRequest, body).events)
    lines = [line for line in body.split(b"\n") if line.strip()]  # as the sender counts them
    if len(lines) > MAX_EVENTS:
        raise ValidationFailed(f"{len(lines)} events given, {MAX_EVENTS} allowed: send several calls")
    return [_line(line) for line in lines]


def _line(line: bytes) -> object:
    try:
        return pydantic_core.from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None


def service_error(error: ValidationError, shape: type[BaseModel]) -> ServiceError:
    """Our error for pydantic's, without the input that pydantic's own text repeats."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return MalformedJson(found[0]["msg"])
    pointers = [_pointer(one) for one in found[:MAX_POINTERS]]
    unknown = [one for one in found if one["type"] == "extra_forbidden"]
    if unknown:
        return UnknownField(_unknown_detail(unknown, shape), pointers)
    first = found[0]
    return ValidationFailed(f"{pointers[0]['pointer'] or 'body'}: {_message(first)}", pointers)


def _unknown_detail(unknown: list[ErrorDetails], shape: type[BaseModel]) -> str:
    """Names the field of ours that is nearest to the unknown one, never the unknown one itself."""
    name = str(unknown[0]["loc"][-1])
    nearest = difflib.get_close_matches(name, shape.model_fields, n=1, cutoff=0.5)
    hint = f": did you mean `{nearest[0]}`?" if nearest else f": the fields are {', '.join(shape.model_fields)}"
    return f"{len(unknown)} unknown field{'s' if len(unknown) > 1 else ''}{hint}"


def _pointer(error: ErrorDetails) -> dict[str, str]:
    """A JSON pointer as far as it is made of our names and of positions: a key of the caller's is input too."""
    path = ""
    for part in error["loc"]:
        if isinstance(part, str) and part not in FIELD_NAMES:
            break
        path += f"/{part}"
    return {"pointer": path, "code": error["type"]}


def _message(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")
