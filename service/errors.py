"""The service's own errors, and the one table that gives every error its HTTP status and stable code.

Raised by the ranker, the stores and the routes; turned into `application/problem+json` by `service/app.py` alone.
A message here may reach the caller, so it never repeats what the caller sent: it names limits, fields of ours and
what to do. Nothing in this file logs, counts or answers.

    DaianError                      (service/contract/errors.py)
    ├── SchemaError, RequestError, BundleError
    └── ServiceError
        ├── BadRequest              400  ├── MalformedJson           400
        ├── Unauthenticated         401  ├── ForbiddenScope          403
        ├── NotFound                404  ├── MethodNotAllowed        405
        ├── VersionConflict         409  ├── BundleStoreReadOnly     409
        ├── BodyTooLarge            413  ├── UnsupportedMediaType    415
        ├── UnsupportedEncoding     415  ├── HeadersTooLarge         431
        ├── ValidationFailed        422  ├── UnknownField            422
        ├── CandidatesLimit         422  ├── BundleRefused           422
        ├── ModelFailed             500  (never reaches a caller: the ranker degrades)
        └── Busy                    503, with a time after which to come back
            ├── TenantQuota         429  ├── TenantShare          429
            ├── Overloaded              ├── DeadlineExceeded
            ├── Draining                ├── NoModel
            ├── StoreUnavailable        └── StoreFull               507
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.contract.errors import BundleError, DaianError, RequestError, SchemaError

PROBLEM_BASE = "https://daian.dev/errors/"


class ServiceError(DaianError):
    """An error of the service; `pointers` locate it in the request body (RFC 6901), each with a code of its own."""

    def __init__(self, detail: str, pointers: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointers = tuple(pointers)


class BadRequest(ServiceError):
    """A header or an envelope that cannot be read."""


class MalformedJson(ServiceError):
    """The body is not JSON as RFC 8259 has it."""


class Unauthenticated(ServiceError):
    """No key, or one that is not live: the same answer, whatever was wrong."""


class ForbiddenScope(ServiceError):
    """A live key that may not do this."""


class NotFound(ServiceError):
    """No such path, model or version."""


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""


class BodyTooLarge(ServiceError):
    """More bytes than `DAIAN_MAX_BODY_BYTES` (or the limit of batch writes)."""


class UnsupportedMediaType(ServiceError):
    """A body that is neither JSON nor, for events, NDJSON."""


class UnsupportedEncoding(ServiceError):
    """A compressed body."""


class HeadersTooLarge(ServiceError):
    """More bytes of headers than `DAIAN_MAX_HEADER_BYTES`."""


class ValidationFailed(ServiceError):
    """JSON of the wrong shape."""


class UnknownField(ServiceError):
    """A field that we do not know: ignoring it silently would cost the caller more than this answer."""


class CandidatesLimit(ServiceError):
    """More candidates than `DAIAN_MAX_CANDIDATES`."""


class ModelFailed(ServiceError):
    """A graph raised at run time. The ranker answers without the network."""


class VersionConflict(ServiceError):
    """Another version is live than the caller thought."""


class BundleStoreReadOnly(ServiceError):
    """The pointer `current` cannot be moved from this process."""


class BundleRefused(ServiceError):
    """A bundle that failed its trial. The message names the file and the reason; operators alone may ask."""


class Busy(ServiceError):
    """The caller did nothing wrong and may come back after `retry_after_ms`."""

    def __init__(self, detail: str, retry_after_ms: int = 1000) -> None:
        super().__init__(detail)
        self.retry_after_ms = retry_after_ms


class TenantQuota(Busy):
    """This tenant asks more often than it may; never a sign of overload."""


class TenantShare(Busy):
    """This tenant has half of what may wait for a worker, and others want their part."""


class Overloaded(Busy):
    """The queue is too long for this request to be answered within its deadline."""


class DeadlineExceeded(Busy):
    """The deadline passed while the request waited for a worker."""


class CallerGone(DeadlineExceeded):
    """The connection was closed before the answer was ready: what is raised here nobody reads."""


class Draining(Busy):
    """This process is about to stop."""


class NoModel(Busy):
    """No bundle has passed its golden requests yet."""


class StoreUnavailable(Busy):
    """The behaviour store did not take a write: nothing was acknowledged, repeat the call as it is."""


class StoreFull(Busy):
    """The behaviour store refuses writes because its memory is full."""


@dataclass(frozen=True)
class Verdict:
    """How one class of errors is answered."""

    status: int
    code: str
    title: str


_INTERNAL = Verdict(500, "internal", "Internal error")

_VERDICTS: dict[type[BaseException], Verdict] = {
    BadRequest: Verdict(400, "bad_request", "Bad request"),
    RequestError: Verdict(400, "bad_request", "Bad request"),
    MalformedJson: Verdict(400, "malformed_json", "The body is not valid JSON"),
    Unauthenticated: Verdict(401, "unauthenticated", "A live key is needed"),
    ForbiddenScope: Verdict(403, "forbidden_scope", "This key may not do that"),
    NotFound: Verdict(404, "not_found", "Not found"),
    MethodNotAllowed: Verdict(405, "method_not_allowed", "Method not allowed"),
    VersionConflict: Verdict(409, "version_conflict", "Another version is live"),
    BundleStoreReadOnly: Verdict(409, "bundle_store_read_only", "The pointer cannot be moved from here"),
    BodyTooLarge: Verdict(413, "body_too_large", "Body too large"),
    UnsupportedMediaType: Verdict(415, "unsupported_media_type", "Unsupported media type"),
    UnsupportedEncoding: Verdict(415, "unsupported_encoding", "Compressed bodies are not supported"),
    HeadersTooLarge: Verdict(431, "headers_too_large", "Headers too large"),
    ValidationFailed: Verdict(422, "validation_failed", "The body does not have the right shape"),
    UnknownField: Verdict(422, "unknown_field", "Unknown field"),
    CandidatesLimit: Verdict(422, "candidates_limit", "Too many candidates"),
    TenantQuota: Verdict(429, "tenant_quota", "Too many requests"),
    TenantShare: Verdict(429, "tenant_share", "Too many requests at once"),
    BundleRefused: Verdict(422, "bundle_refused", "The bundle failed its trial"),
    Overloaded: Verdict(503, "overloaded", "Too busy to answer in time"),
    DeadlineExceeded: Verdict(503, "deadline_exceeded", "The deadline passed in the queue"),
    Draining: Verdict(503, "draining", "Shutting down"),
    NoModel: Verdict(503, "no_model", "No model is loaded"),
    StoreUnavailable: Verdict(503, "store_unavailable", "The behaviour store is unavailable"),
    StoreFull: Verdict(507, "store_full", "The behaviour store is full"),
    MemoryError: Verdict(503, "overloaded", "Out of memory"),
    SchemaError: _INTERNAL,
    BundleError: _INTERNAL,
    ModelFailed: _INTERNAL,
}

CODES: frozenset[str] = frozenset(verdict.code for verdict in _VERDICTS.values()) | {_INTERNAL.code}


def verdict_of(error: BaseException) -> Verdict:
    """The verdict of the nearest class in the error's family; a bug (anything we do not know) is 500 `internal`."""
    for family in type(error).__mro__:
        if family in _VERDICTS:
            return _VERDICTS[family]
    return _INTERNAL


def retry_after_ms_of(error: BaseException) -> int | None:
    """How long the caller should wait, for errors that are worth a second try; None for all others."""
    if isinstance(error, Busy):
        return error.retry_after_ms
    return 1000 if verdict_of(error).status in (429, 503, 507) else None


def problem_of(error: BaseException, instance: str, request_id: str) -> dict[str, object]:
    """The RFC 9457 body of an error. `instance` is the route's path, never the query string.

    An internal error says nothing but its request id: its message was written for us and may hold anything.
    """
    verdict = verdict_of(error)
    problem: dict[str, object] = {
        "type": PROBLEM_BASE + verdict.code,
        "title": verdict.title,
        "status": verdict.status,
        "code": verdict.code,
        "instance": instance,
        "request_id": request_id,
    }
    if isinstance(error, ServiceError) and verdict is not _INTERNAL:
        problem["detail"] = error.detail
        if error.pointers:
            problem["errors"] = [dict(pointer) for pointer in error.pointers]
    wait_ms = retry_after_ms_of(error)
    if wait_ms is not None:
        problem["retry_after_ms"] = wait_ms
    return problem
