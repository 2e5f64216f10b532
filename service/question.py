"""Question: one ranking request as plain values, and its row of the contract.

Made by the routes from a validated body, by tests directly. `row_of` is the one place where a question, a stored user
and the candidates become a request row, `batch_of` the same in columns: what is encoded now is the row that is logged
and trained on later.
Never here: tensors, HTTP, stores.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.behaviour_codec import MAIN_TENANT, StoredBehaviour
from service.contract.requests import RequestBatch
from service.contract.schema import FeatureSchema, Field

Value = str | float | int | None


@dataclass(frozen=True)
class Question:
    """`candidates` None asks for recall; `behaviours` given replace the store's; `user` None is anonymous."""

    request_id: str
    requested_at: int  # epoch milliseconds
    user: str | None
    trigger: str
    candidates: Sequence[str] | None = None
    top_k: int | None = None
    context: Mapping[str, Value] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    behaviours: Sequence[StoredBehaviour] | None = None
    tenant: str = MAIN_TENANT  # whose users are meant


def _same_id(found: str) -> str:
    """Two spellings of one id become one, as the contract's hashes have it."""
    return found if found.isascii() else unicodedata.normalize("NFC", found)


def distinct_ids(ids: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Ids at their first mention in the caller's spelling, without the excluded ones."""
    ids, banned = list(ids), {_same_id(found) for found in exclude}
    if "".join(ids).isascii():  # nearly every page: no Python per id
        return [found for found in dict.fromkeys(ids) if found not in banned] if banned else list(dict.fromkeys(ids))
    first: dict[str, str] = {}
    for found in ids:
        first.setdefault(_same_id(found), found)
    return [spelling for key, spelling in first.items() if key not in banned]


def row_of(
    question: Question,
    schema: FeatureSchema,
    attributes: Mapping[str, object],
    behaviours: Sequence[StoredBehaviour],
    candidates: Sequence[str],
) -> dict[str, object]:
    """The request as a row of the contract (service/contract/requests.py)."""
    return {
        "request_id": question.request_id,
        "requested_at": question.requested_at,
        "user": _user_of(question, schema, attributes),
        "context": _fitting(schema.context, question.context),
        "trigger": question.trigger,
        "behaviours": [{"item": one.item, "at": one.at, "type": one.type} for one in behaviours],
        "candidates": list(candidates),
    }


def batch_of(
    question: Question, schema: FeatureSchema, attributes: Mapping[str, object], behaviours: Sequence[StoredBehaviour]
) -> RequestBatch:
    """The same row without candidates, in the columns that are encoded."""
    return RequestBatch.of_one(
        question.request_id,
        question.requested_at,
        _user_of(question, schema, attributes),
        _fitting(schema.context, question.context),
        question.trigger,
        behaviours,
    )


def _user_of(question: Question, schema: FeatureSchema, attributes: Mapping[str, object]) -> dict[str, Value]:
    return {**_fitting(schema.user, attributes), "user": question.user}


def _fitting(fields: Iterable[Field], values: Mapping[str, object]) -> dict[str, Value]:
    """The values that the schema has a field for, as the kind it asks for; what does not fit is missing."""
    return {found.name: _as_kind(found.kind, values[found.name]) for found in fields if found.name in values}


def _as_kind(kind: str, value: object) -> Value:
    if value is None or not isinstance(value, str | int | float):
        return None
    if kind != "number":
        return value if isinstance(value, str) else str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None  # JSON has no infinity: the log would keep another row
