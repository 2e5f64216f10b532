"""The shapes of bodies and answers over HTTP, and nothing of their meaning.

Read by `bodies.py` (validation from bytes) and `openapi.py` (the document); answers are written as plain dicts by
orjson, their models here serve the document alone. An unknown field is refused: a silently ignored `topk` costs money.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_ID_BYTES = 128
MAX_BEHAVIOURS = 500
MAX_EVENTS = 1000
MAX_CONTEXT = 64
MIN_DEADLINE_MS = 5


def _within_bytes(found: str) -> str:
    if not found.isascii() and len(found.encode()) > MAX_ID_BYTES:
        raise ValueError(f"ids are at most {MAX_ID_BYTES} bytes of UTF-8")
    return found


def _all_within_bytes(found: list[str]) -> list[str]:
    if not "".join(found).isascii():  # one look at all of them: the usual list costs nothing more
        for one in found:
            _within_bytes(one)
    return found


def _epoch_ms(found: object) -> object:
    """RFC 3339 text to epoch milliseconds; whole numbers are epoch milliseconds already."""
    if not isinstance(found, str):
        return found
    try:
        moment = datetime.fromisoformat(found)
    except ValueError:
        raise ValueError("times are RFC 3339 (2026-11-21T10:00:04Z) or epoch milliseconds") from None
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: end it with Z or +00:00")
    return int(moment.timestamp() * 1000)


# No control characters; lone surrogates do not survive the parser. In the list form the check of bytes is done once.
_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
_Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_ID_BYTES, pattern=_PATTERN)]
Id = Annotated[_Text, AfterValidator(_within_bytes)]
Ids = Annotated[list[_Text], AfterValidator(_all_within_bytes)]
Time = Annotated[int, BeforeValidator(_epoch_ms), Field(ge=0, le=32_503_680_000_000, strict=True)]
ContextValue = Annotated[str, StringConstraints(strict=True, max_length=1024)] | int | float | None


class _Body(BaseModel):
    # Not `all`, the default: remembering every id of every page costs four times as much as reading it does, since the
    # memory it is looked up in is cold by then, and it would keep the ids of erased users.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, cache_strings="keys")


class GivenBehaviour(_Body):
    """One behaviour that the caller brings in place of the stored ones."""

    item: Id
    type: Id = "click"
    time: Time


class RankRequest(_Body):
    """What to rank: a user, the trigger just clicked, and candidates (or none, for recall)."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        json_schema_extra={
            "examples": [
                {"user": "u_42", "trigger": "i_1001"},
                {
                    "user": "u_42",
                    "trigger": "i_1001",
                    "candidates": ["i_7", "i_9"],
                    "context": {"surface": "item_detail"},
                    "deadline_ms": 80,
                },
            ]
        },
    )

    request_id: Id | None = Field(None, description="yours; else X-Request-Id; else made here")
    user: Id | None = Field(None, description="null is an anonymous visitor: no history")
    trigger: Id = Field(description="the item just clicked; unknown ones are fine")
    candidates: Ids | None = Field(None, description="items to rank; absent: recalled from the catalogue")
    top_k: int | None = Field(None, ge=1, strict=True, description="items wanted; default all given, or 20 recalled")
    context: dict[_Text, ContextValue] = Field(
        default_factory=dict,
        max_length=MAX_CONTEXT,
        description="surface, device, position, and the model's own fields",
    )
    deadline_ms: int | None = Field(None, ge=MIN_DEADLINE_MS, strict=True, description="time you will wait")
    exclude: Ids = Field(default_factory=list, max_length=10_000, description="never answered, never recalled")
    behaviours: list[GivenBehaviour] | None = Field(
        None, max_length=MAX_BEHAVIOURS, description="used in place of the stored behaviours"
    )


class BehaviourEvent(_Body):
    """One event. click, favourite, cart, purchase and dislike are behaviours."""

    event_id: Id
    type: Id
    user: Id
    item: Id
    time: Time
    surface: Id | None = None
    trigger: Id | None = None
    position: int | None = Field(None, ge=0, le=1_000_000, strict=True)
    value: float | None = Field(None, strict=True)
    impression_token: Annotated[str, StringConstraints(strict=True, max_length=4096)] | None = None


class EventsRequest(_Body):
    """Up to 1000 events. Each is judged on its own, so a malformed one does not hold up the rest."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "event_id": "e-1",
                            "type": "click",
                            "user": "u_42",
                            "item": "i_9",
                            "time": "2026-11-21T10:00:04Z",
                            "surface": "item_detail",
                            "trigger": "i_1001",
                        }
                    ]
                }
            ]
        },
    )

    events: list[Any] = Field(max_length=MAX_EVENTS, description="BehaviourEvent objects")


class PromoteRequest(_Body):
    """Which version is to answer; `if_live` refuses the call when another one than you think does now."""

    version: Id
    if_live: Id | None = None


class RollbackRequest(_Body):
    """Back to the version before."""

    if_live: Id | None = None


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str
    variant: str


class IntentAnswer(BaseModel):
    """The visitor's intent: a distribution over levels of similarity to the trigger, lowest first."""

    edges: list[float]
    predicted: list[float]
    applied: list[float]


class BehavioursAnswer(BaseModel):
    """What of the history was used."""

    used: int
    similar: int
    newest_age_s: float | None


class RankedItem(BaseModel):
    """One place of the page."""

    id: str
    ctr: float = Field(description="predicted click probability")
    score: float | None = Field(description="the network's logit; null when it did not score this item")
    similarity: float | None = Field(description="cosine to the trigger; null without vectors")
    level: int = Field(description="bin of the similarity, 1..S; 0 without vectors")
    rank: int
    reason: Literal["explicit_intent", "similar", "implicit_intent", "popular", "prior"]
    cold: bool = Field(description="the catalogue does not know this item")


class RankResponse(BaseModel):
    """The ranked page, with everything that was missing named in `degraded`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0192f0c4-7a00-7000-8000-000000000000",
                    "model": {"name": "daian", "version": "20261120T0300Z-9f3c2a", "variant": "live"},
                    "degraded": [],
                    "coverage": 1.0,
                    "intent": {
                        "edges": [0.0, 0.25, 0.5, 0.75, 1.0],
                        "predicted": [0.1, 0.2, 0.3, 0.4],
                        "applied": [0.1, 0.2, 0.3, 0.4],
                    },
                    "behaviours": {"used": 37, "similar": 9, "newest_age_s": 4.1},
                    "items": [
                        {
                            "id": "i_9",
                            "ctr": 0.0831,
                            "score": -2.4,
                            "similarity": 0.87,
                            "level": 4,
                            "rank": 1,
                            "reason": "explicit_intent",
                            "cold": False,
                        }
                    ],
                    "timing_ms": {"total": 4.5, "encode": 1.0},
                }
            ]
        }
    )

    request_id: str
    model: ModelName
    degraded: list[str]
    coverage: float
    intent: IntentAnswer | None
    behaviours: BehavioursAnswer
    items: list[RankedItem]
    timing_ms: dict[str, float]


class RejectedAnswer(BaseModel):
    """One event that was not stored, and why."""

    index: int
    code: str
    detail: str


class EventsResponse(BaseModel):
    """200 means stored and visible to the next ranking; `erased` ones are older than their user's erasure: not kept."""

    accepted: int
    duplicates: int
    erased: int
    rejected: list[RejectedAnswer]
    took_ms: float


class ErasedCounts(BaseModel):
    """What was there and is no more."""

    behaviours: int
    profile: int
    other_keys: int
    log_rows: int


class ErasedResponse(BaseModel):
    """The receipt of an erasure. Holds no id of the user."""

    receipt: str
    erased_at: str
    erased: ErasedCounts
    sealed: bool
    took_ms: float


class Problem(BaseModel):
    """RFC 9457. Never repeats what was sent."""

    type: str
    title: str
    status: int
    code: str
    instance: str
    request_id: str
    detail: str | None = None
    errors: list[dict[str, str]] | None = None
    retry_after_ms: int | None = None


_ALL = (RankRequest, GivenBehaviour, BehaviourEvent, EventsRequest, PromoteRequest, RollbackRequest)
FIELD_NAMES: frozenset[str] = frozenset(name for model in _ALL for name in model.model_fields)
