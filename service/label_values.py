"""The words that the labels of our series may hold, where their number is known.

`metrics.py` exposes each at 0 from the start, so that a rule sees the first hit too; mypy holds whoever counts to
them; tests/architecture/test_alerts.py holds deploy/alerts.yml to them. Nothing here counts.
"""

from typing import Final, Literal, TypeAlias, get_args

DegradedReason: TypeAlias = Literal[
    "behaviours",
    "behaviours_corrupt",
    "trigger_unknown",
    "candidates_unknown",
    "recall",
    "prerank",
    "deadline",
    "scores",
    "model",
]
DEGRADED_REASONS: Final[tuple[DegradedReason, ...]] = get_args(DegradedReason)

ShedReason: TypeAlias = Literal["overload", "expired", "priority", "gone", "share"]
SHED_REASONS: Final[tuple[ShedReason, ...]] = get_args(ShedReason)

ColdKind: TypeAlias = Literal["candidate", "trigger"]
COLD_KINDS: Final[tuple[ColdKind, ...]] = get_args(ColdKind)

BundleOutcome: TypeAlias = Literal["loaded", "refused"]
BUNDLE_OUTCOMES: Final[tuple[BundleOutcome, ...]] = get_args(BundleOutcome)

BundleFailure: TypeAlias = Literal["went_back", "stayed"]
BUNDLE_FAILURES: Final[tuple[BundleFailure, ...]] = get_args(BundleFailure)

CorruptValue: TypeAlias = Literal["member", "profile", "erased_at"]
CORRUPT_VALUES: Final[tuple[CorruptValue, ...]] = get_args(CorruptValue)

# look: at a server's memory, before a write.
StoreOperation: TypeAlias = Literal["read", "write", "erase", "look"]
STORE_OPERATIONS: Final[tuple[StoreOperation, ...]] = get_args(StoreOperation)

RejectionCode: TypeAlias = Literal["malformed", "not_stored", "unknown_type", "future_event", "too_old"]
EventOutcome: TypeAlias = Literal["accepted", "erased"] | RejectionCode
EVENT_OUTCOMES: Final[tuple[EventOutcome, ...]] = ("accepted", "erased", *get_args(RejectionCode))

Variant: TypeAlias = Literal["none", "live"]  # none: an answer that no bundle had a part in
VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)
LIVE: Final = "live"

RequestLogName: TypeAlias = Literal["rank"]
LOGS: Final[tuple[RequestLogName, ...]] = get_args(RequestLogName)

OUR_FAULTS: Final = ("500", "503", "507")  # every status from 500 on that errors.py gives
