"""One bucket of users: impressions, behaviours and users joined into requests with point-in-time correct histories.

Called by `prepare_logs` for each bucket. All arrays are numpy over one bucket; requests leave in time order, a chunk at
a time, because histories written out are much larger than the logs they come from.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from jaxtyping import Int8, Int64, UInt64

from service.contract.requests import RequestBatch
from training.data.errors import DataError
from training.data.mapping import LogMapping, Table
from training.data.request_files import as_objects

CHUNK_REQUESTS = 2048
MAX_SPREAD_MS = 3_600_000  # impressions of one page come within this time; a longer span means reused request ids
_AT_BITS = 42  # epoch ms fit until the year 2109


class Joined(NamedTuple):
    """Requests with their histories and clicks; `request_hashes` to find ids that occur in two buckets."""

    batch: RequestBatch
    clicks: Int8[np.ndarray, " N"]
    request_hashes: UInt64[np.ndarray, " R"]


class _Requests(NamedTuple):
    """The impressions of a bucket, sorted by request time, then request, then position on the page."""

    rows: pa.Table  # one row per impression
    offsets: Int64[np.ndarray, " R1"]
    at: Int64[np.ndarray, " R"]
    first: pa.Table  # one row per request


class _Behaviours(NamedTuple):
    """The behaviours of a bucket, sorted by user and time: `keys` are both in one number."""

    keys: Int64[np.ndarray, " B"]
    item: np.ndarray
    at: Int64[np.ndarray, " B"]
    kind: np.ndarray


def join_bucket(
    impressions: pa.Table, behaviours: pa.Table | None, users: pa.Table | None, mapping: LogMapping, notes: Counter[str]
) -> Iterator[Joined]:
    """The requests of a bucket. Raises DataError naming file and row for contradictory impressions.

    `notes` counts what was put right: repeated behaviours, requests whose impressions have several times.
    """
    requests = _group(impressions, mapping, notes)
    request_users = requests.first.column("user").combine_chunks()
    distinct = request_users.drop_null().unique()
    past = _sorted_behaviours(behaviours, distinct, notes)
    codes = pc.index_in(request_users, value_set=distinct).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    starts, ends = _spans(past, codes, requests.at, mapping)
    profile = _profiles(request_users, users, mapping, notes)
    for first in range(0, len(requests.at), CHUNK_REQUESTS):
        part = slice(first, min(first + CHUNK_REQUESTS, len(requests.at)))
        yield _chunk(requests, past, starts[part], ends[part], profile, part, mapping)


def _group(impressions: pa.Table, mapping: LogMapping, notes: Counter[str]) -> _Requests:
    impressions = impressions.combine_chunks()
    codes = impressions.column("request").combine_chunks().dictionary_encode().indices.to_numpy()
    at = impressions.column("time").to_numpy()
    n_requests = int(codes.max()) + 1
    requested_at = np.full(n_requests, np.iinfo(np.int64).max)
    np.minimum.at(requested_at, codes, at)
    latest = np.zeros(n_requests, np.int64)
    np.maximum.at(latest, codes, at)
    place = np.arange(len(codes), dtype=np.float64)
    if "position" in impressions.column_names:
        place = impressions.column("position").fill_null(np.inf).to_numpy()
    order = np.lexsort((place, codes, requested_at[codes]))
    rows, codes = impressions.take(pa.array(order)), codes[order]
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    request_of = np.cumsum(np.diff(codes, prepend=-1) != 0) - 1
    _refuse_contradictions(rows, begins, request_of, mapping)
    spread = latest - requested_at
    if (spread > MAX_SPREAD_MS).any():
        row = int(np.flatnonzero((spread > MAX_SPREAD_MS)[codes])[0])
        raise _refuse(
            rows,
            row,
            mapping.impressions,
            "request",
            "impressions of this request lie more than an hour apart; ids are reused.",
        )
    notes["requests_with_several_times"] += int((spread > 0).sum())
    offsets = np.append(begins, len(codes)).astype(np.int64)
    return _Requests(rows, offsets, requested_at[codes[begins]], rows.take(pa.array(begins)))


def _refuse_contradictions(
    rows: pa.Table, begins: Int64[np.ndarray, " R"], request_of: Int64[np.ndarray, " N"], mapping: LogMapping
) -> None:
    for role in ("user", "trigger"):
        values = (
            rows.column(role).combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        )
        other = np.flatnonzero(values != values[begins][request_of])
        if len(other):
            raise _refuse(rows, int(other[0]), mapping.impressions, role, "is not that of the request's other rows.")
    items = rows.column("item").combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((items, request_of))
    again = np.flatnonzero((np.diff(request_of[order]) == 0) & (np.diff(items[order]) == 0))
    if len(again):
        row = int(order[again + 1].min())
        raise _refuse(
            rows, row, mapping.impressions, "item", "stands twice in its request; each shown item must have one row."
        )


def _refuse(rows: pa.Table, row: int, table: Table, role: str, problem: str) -> DataError:
    """The error for a row of a bucket, with the file and row that it came from."""
    path, number = table.files[rows.column("file")[row].as_py()], rows.column("row")[row].as_py()
    value = rows.column(role)[row].as_py()
    return DataError(f"{path}, row {number}, column {table.roles[role]}: {value!r:.80} {problem}")


def _sorted_behaviours(behaviours: pa.Table | None, users: pa.Array, notes: Counter[str]) -> _Behaviours:
    if behaviours is None:
        return _Behaviours(np.zeros(0, np.int64), np.empty(0, object), np.zeros(0, np.int64), np.empty(0, object))
    behaviours = behaviours.combine_chunks()
    owner = pc.index_in(behaviours.column("user").combine_chunks(), value_set=users)
    behaviours = behaviours.filter(owner.is_valid())  # whoever never opened a page needs no history
    codes = owner.drop_null().to_numpy().astype(np.int64)
    at = behaviours.column("time").to_numpy()
    item = behaviours.column("item").combine_chunks().dictionary_encode()
    kind = behaviours.column("type").combine_chunks().fill_null("click").dictionary_encode()
    order = np.lexsort((kind.indices.to_numpy(), item.indices.to_numpy(), at, codes))
    columns = np.stack([codes, at, item.indices.to_numpy(), kind.indices.to_numpy()])[:, order]
    again = np.zeros(len(order), bool)
    again[1:] = (columns[:, 1:] == columns[:, :-1]).all(axis=0)
    notes["repeated_behaviours"] += int(again.sum())
    codes, at, items, kinds = columns[:, ~again]
    return _Behaviours(
        (codes << _AT_BITS) + at, as_objects(item.dictionary)[items], at, as_objects(kind.dictionary)[kinds]
    )


def _spans(
    past: _Behaviours, users: Int64[np.ndarray, " R"], at: Int64[np.ndarray, " R"], mapping: LogMapping
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Which behaviours each request may show: strictly before it, within the longest window, the newest of them."""
    rules = mapping.rules
    window_ms = max(rules.window_s, rules.related_window_s) * 1000
    base = users << _AT_BITS
    ends = np.searchsorted(
        past.keys, base + at, side="left"
    )  # left: a behaviour at the request's own time is not before it
    starts = np.searchsorted(past.keys, base + np.maximum(at - window_ms, 0), side="left")
    starts = np.maximum(starts, ends - rules.kept)
    unknown = users < 0
    return np.where(unknown, 0, starts).astype(np.int64), np.where(unknown, 0, ends).astype(np.int64)


def _profiles(
    request_users: pa.Array, users: pa.Table | None, mapping: LogMapping, notes: Counter[str]
) -> dict[str, np.ndarray]:
    """The user columns of all requests; None for users that the users table does not have."""
    columns = {"user": as_objects(request_users)}
    if mapping.users is None:
        return columns
    found = pa.nulls(len(request_users), pa.int32())
    if users is not None:
        known = users.column("user").combine_chunks()
        if len(known.unique()) != len(known):
            raise _repeated_user(users, mapping)
        found = pc.index_in(request_users, value_set=known, skip_nulls=True)
    notes["requests_of_users_without_a_row"] += found.null_count - request_users.null_count
    for mapped in mapping.users.fields:
        name = mapped.field.name
        empty = pa.nulls(len(request_users), pa.float64() if mapped.field.kind == "number" else pa.string())
        column = empty if users is None else users.column(f"field.{name}").combine_chunks().take(found)
        columns[name] = as_objects(column)
    return columns


def _repeated_user(users: pa.Table, mapping: LogMapping) -> DataError:
    assert mapping.users is not None
    codes = users.column("user").combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    row = int(np.setdiff1d(np.arange(len(codes)), first)[0])
    return _refuse(users, row, mapping.users, "user", "came before; give each user once.")


def _chunk(
    requests: _Requests,
    past: _Behaviours,
    starts: Int64[np.ndarray, " r"],
    ends: Int64[np.ndarray, " r"],
    profile: dict[str, np.ndarray],
    part: slice,
    mapping: LogMapping,
) -> Joined:
    offsets = requests.offsets[part.start : part.stop + 1]
    shown = requests.rows.slice(offsets[0], offsets[-1] - offsets[0])
    first = requests.first.slice(part.start, part.stop - part.start)
    lengths = ends - starts
    taken = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
    request_id = as_objects(first.column("request").combine_chunks())
    batch = RequestBatch(
        request_id=request_id,
        requested_at=requests.at[part],
        user={name: column[part] for name, column in profile.items()},
        context={
            mapped.field.name: as_objects(first.column(f"field.{mapped.field.name}").combine_chunks())
            for mapped in mapping.impressions.fields
        },
        trigger=as_objects(first.column("trigger").combine_chunks()),
        behaviour_item=past.item[taken],
        behaviour_at=past.at[taken],
        behaviour_type=past.kind[taken],
        behaviour_offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        candidate=as_objects(shown.column("item").combine_chunks()),
        candidate_offsets=offsets - offsets[0],
    )
    clicks = shown.column("clicked").to_numpy().astype(np.int8)
    hashes = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in request_id], dtype=np.uint64)
    return Joined(batch, clicks, hashes)
