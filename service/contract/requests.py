"""RequestBatch: raw requests in columns, the only thing that Encoder.encode takes.

A row of a request file, a row of the service's log and a live request are the same record. Labels are not in it.
Times are whole milliseconds since the epoch. Nothing here looks at a value's meaning.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from service.contract.errors import RequestError

_ROW_KEYS = {"request_id", "requested_at", "user", "context", "trigger", "behaviours", "candidates"}


@dataclass(frozen=True)
class RequestBatch:
    """R requests, their B behaviours and N candidates. Strings sit in object arrays.

    `user` and `context` hold one column a field (None = missing); the user's id is `user["user"]`, None for an
    anonymous one. Behaviours of request r are rows behaviour_offsets[r]:behaviour_offsets[r+1], in any order;
    candidates likewise, in the caller's order.
    """

    request_id: Shaped[np.ndarray, " R"]
    requested_at: Int64[np.ndarray, " R"]
    user: Mapping[str, Shaped[np.ndarray, " R"]]
    context: Mapping[str, Shaped[np.ndarray, " R"]]
    trigger: Shaped[np.ndarray, " R"]
    behaviour_item: Shaped[np.ndarray, " B"]
    behaviour_at: Int64[np.ndarray, " B"]
    behaviour_type: Shaped[np.ndarray, " B"]
    behaviour_offsets: Int64[np.ndarray, " R1"]
    candidate: Shaped[np.ndarray, " N"]
    candidate_offsets: Int64[np.ndarray, " R1"]

    def __post_init__(self) -> None:
        own = {"requested_at": self.requested_at, "trigger": self.trigger}
        for side, columns in (("", own), ("user.", self.user), ("context.", self.context)):
            for name, column in columns.items():
                if len(column) != len(self.request_id):
                    raise RequestError(f"column {side}{name} has {len(column)} rows, request_id {len(self.request_id)}")
        if "user" not in self.user:
            raise RequestError("no column user.user: give None for anonymous requests")
        if not len(self.behaviour_item) == len(self.behaviour_at) == len(self.behaviour_type):
            raise RequestError("behaviour_item, behaviour_at and behaviour_type differ in length")
        _check_offsets("behaviour_offsets", self.behaviour_offsets, self.n_requests, len(self.behaviour_item))
        _check_offsets("candidate_offsets", self.candidate_offsets, self.n_requests, len(self.candidate))

    @property
    def n_requests(self) -> int:
        """R."""
        return len(self.request_id)

    @property
    def n_candidates(self) -> int:
        """N, of all requests together."""
        return len(self.candidate)

    @cached_property
    def candidate_request(self) -> Int64[np.ndarray, " N"]:
        """The row of each candidate's request."""
        return _owners(self.candidate_offsets)

    @cached_property
    def behaviour_request(self) -> Int64[np.ndarray, " B"]:
        """The row of each behaviour's request."""
        return _owners(self.behaviour_offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> "RequestBatch":
        """Reads rows as to_rows writes them. Raises RequestError naming the row and the field."""
        records: list[dict[str, Any]] = [_checked(position, row) for position, row in enumerate(rows)]
        behaviours = [record["behaviours"] for record in records]
        candidates = [record["candidates"] for record in records]
        flat = [behaviour for part in behaviours for behaviour in part]
        return cls(
            request_id=objects([record["request_id"] for record in records]),
            requested_at=np.array([record["requested_at"] for record in records], np.int64),
            user=_columns([record["user"] for record in records], always="user"),
            context=_columns([record["context"] for record in records]),
            trigger=objects([record["trigger"] for record in records]),
            behaviour_item=objects([behaviour["item"] for behaviour in flat]),
            behaviour_at=np.array([behaviour["at"] for behaviour in flat], np.int64),
            behaviour_type=objects([behaviour.get("type", "click") for behaviour in flat]),
            behaviour_offsets=_offsets(behaviours),
            candidate=objects([candidate for part in candidates for candidate in part]),
            candidate_offsets=_offsets(candidates),
        )

    @classmethod
    def of_one(
        cls,
        request_id: str,
        requested_at: int,
        user: Mapping[str, object],
        context: Mapping[str, object],
        trigger: str,
        behaviours: Sequence[tuple[str, int, str]],
    ) -> "RequestBatch":
        """What from_rows makes of one row without candidates, for values that were checked where they came in.

        `behaviours` are (item, at, type): no dict a behaviour, to be taken apart at once.
        """
        items, times, types = zip(*behaviours, strict=True) if behaviours else ((), (), ())
        values = objects([request_id, trigger, *user.values(), *context.values()])
        columns = [values[place : place + 1] for place in range(len(values))]
        of_user, of_context = columns[2 : 2 + len(user)], columns[2 + len(user) :]
        return cls(
            request_id=columns[0],
            requested_at=np.array([requested_at], np.int64),
            user=dict(zip(user, of_user, strict=True)),
            context=dict(zip(context, of_context, strict=True)),
            trigger=columns[1],
            behaviour_item=objects(items),
            behaviour_at=np.array(times, np.int64),
            behaviour_type=objects(types),
            behaviour_offsets=np.array([0, len(items)], np.int64),
            candidate=objects(()),
            candidate_offsets=np.zeros(2, np.int64),
        )

    def to_rows(self) -> list[dict[str, object]]:
        """One plain dict a request, for JSON lines. Fields whose value is missing are left out, the user's id never."""
        return [self._row(r) for r in range(self.n_requests)]

    def _row(self, r: int) -> dict[str, object]:
        behaviours = range(self.behaviour_offsets[r], self.behaviour_offsets[r + 1])
        user = {name: column[r] for name, column in self.user.items() if name == "user" or column[r] is not None}
        return {
            "request_id": self.request_id[r],
            "requested_at": int(self.requested_at[r]),
            "user": user,
            "context": {name: column[r] for name, column in self.context.items() if column[r] is not None},
            "trigger": self.trigger[r],
            "behaviours": [
                {"item": self.behaviour_item[b], "at": int(self.behaviour_at[b]), "type": self.behaviour_type[b]}
                for b in behaviours
            ],
            "candidates": list(self.candidate[self.candidate_offsets[r] : self.candidate_offsets[r + 1]]),
        }

    def with_candidates(self, candidates: Sequence[str]) -> "RequestBatch":
        """This one request with other candidates: recall comes after the request side has been encoded."""
        if self.n_requests != 1:
            raise RequestError(f"candidates can be exchanged in a batch of one request, this one has {self.n_requests}")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"candidate": objects(candidates), "candidate_offsets": np.array([0, len(candidates)], np.int64)}
        return RequestBatch(**values)

    def take(self, requests: Int64[np.ndarray, " Q"]) -> "RequestBatch":
        """The named requests, in the order given."""
        behaviours, behaviour_offsets = _spans(self.behaviour_offsets, requests)
        candidates, candidate_offsets = _spans(self.candidate_offsets, requests)
        return RequestBatch(
            request_id=self.request_id[requests],
            requested_at=self.requested_at[requests],
            user={name: column[requests] for name, column in self.user.items()},
            context={name: column[requests] for name, column in self.context.items()},
            trigger=self.trigger[requests],
            behaviour_item=self.behaviour_item[behaviours],
            behaviour_at=self.behaviour_at[behaviours],
            behaviour_type=self.behaviour_type[behaviours],
            behaviour_offsets=behaviour_offsets,
            candidate=self.candidate[candidates],
            candidate_offsets=candidate_offsets,
        )

    @staticmethod
    def concat(batches: Sequence["RequestBatch"]) -> "RequestBatch":
        """All requests of the batches, in order. A field that some batch lacks is missing (None) there."""
        if not batches:
            return RequestBatch.from_rows([])

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(batch, name) for batch in batches])

        return RequestBatch(
            request_id=joined("request_id"),
            requested_at=joined("requested_at"),
            user=_joined_columns([batch.user for batch in batches], [batch.n_requests for batch in batches]),
            context=_joined_columns([batch.context for batch in batches], [batch.n_requests for batch in batches]),
            trigger=joined("trigger"),
            behaviour_item=joined("behaviour_item"),
            behaviour_at=joined("behaviour_at"),
            behaviour_type=joined("behaviour_type"),
            behaviour_offsets=_joined_offsets([batch.behaviour_offsets for batch in batches]),
            candidate=joined("candidate"),
            candidate_offsets=_joined_offsets([batch.candidate_offsets for batch in batches]),
        )


def objects(values: Iterable[object]) -> Shaped[np.ndarray, " V"]:
    """An object array of the values as they are; numpy would make fixed-width strings, or look into sequences."""
    listed = values if isinstance(values, list | tuple) else list(values)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _check_offsets(name: str, offsets: Int64[np.ndarray, " R1"], n_requests: int, n_values: int) -> None:
    fits = len(offsets) == n_requests + 1 and offsets[0] == 0 and offsets[-1] == n_values
    if not fits or (offsets[1:] < offsets[:-1]).any():
        raise RequestError(
            f"{name} must rise from 0 to {n_values} in {n_requests + 1} steps, found {len(offsets)} from "
            f"{offsets[:1].tolist()} to {offsets[-1:].tolist()}"
        )


def _owners(offsets: Int64[np.ndarray, " R1"]) -> Int64[np.ndarray, " V"]:
    if len(offsets) == 2:
        return np.zeros(offsets[1], np.int64)
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def _offsets(parts: Sequence[Sequence[object]]) -> Int64[np.ndarray, " R1"]:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int64)


def _joined_offsets(parts: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " Q1"]:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part) for part in parts]))]).astype(np.int64)


def _spans(
    offsets: Int64[np.ndarray, " R1"], requests: Int64[np.ndarray, " Q"]
) -> tuple[Int64[np.ndarray, " V"], Int64[np.ndarray, " Q1"]]:
    lengths = np.diff(offsets)[requests]
    taken = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index = np.arange(taken[-1]) - np.repeat(taken[:-1], lengths) + np.repeat(offsets[requests], lengths)
    return index.astype(np.int64), taken


def _columns(records: Sequence[Mapping[str, object]], always: str | None = None) -> dict[str, Shaped[np.ndarray, " R"]]:
    names = {} if always is None else {always: None}
    for record in records:
        names |= dict.fromkeys(record)
    return {name: objects(record.get(name) for record in records) for name in names}


def _joined_columns(
    parts: Sequence[Mapping[str, Shaped[np.ndarray, " _"]]], lengths: Sequence[int]
) -> dict[str, Shaped[np.ndarray, " Q"]]:
    names = dict.fromkeys(name for part in parts for name in part)
    missing = [np.full(length, None, object) for length in lengths]
    return {
        name: np.concatenate([part.get(name, none) for part, none in zip(parts, missing, strict=True)])
        for name in names
    }


def _checked(position: int, row: Mapping[str, object]) -> dict[str, Any]:
    """The row with every key present. Raises RequestError for a missing, unknown or mistyped one."""
    missing, unknown = {"request_id", "requested_at", "trigger"} - row.keys(), row.keys() - _ROW_KEYS
    if missing or unknown:
        raise RequestError(f"request {position}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    record: dict[str, Any] = {"user": {"user": None}, "context": {}, "behaviours": [], "candidates": [], **row}
    kinds = {"request_id": str, "requested_at": int, "user": Mapping, "context": Mapping, "trigger": str}
    for name, kind in kinds.items():
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            raise RequestError(f"request {position}: {name} must be {kind.__name__}, found {record[name]!r:.80}")
    _check_lists(position, record)
    return record


def _check_lists(position: int, record: Mapping[str, Any]) -> None:
    for name in ("behaviours", "candidates"):
        if not isinstance(record[name], list | tuple):
            raise RequestError(f"request {position}: {name} must be a list, found {record[name]!r:.80}")
    for place, candidate in enumerate(record["candidates"]):
        if not isinstance(candidate, str):
            raise RequestError(f"request {position}: candidates[{place}] must be a string, found {candidate!r:.80}")
    for place, behaviour in enumerate(record["behaviours"]):
        if not _is_behaviour(behaviour):
            raise RequestError(
                f"request {position}: behaviours[{place}] must be {{'item': str, 'at': ms, 'type': str}}, "
                f"found {behaviour!r:.80}"
            )


def _is_behaviour(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("item"), str)
        and isinstance(value.get("at"), int)
        and isinstance(value.get("type", "click"), str)
    )
