"""Where `Batches` gets encoded requests from: read and encoded at each use, or kept in memory once encoded.

`training.train` uses `FreshPools`, one run and bounded memory. `training.compare_worker` hands all runs of its process
one `KeptPools`: what fits is encoded once, the rest as ever. Both give the same arrays bit for bit, for encoding a
request does not depend on those beside it. Kept requests are ragged, without padding, and never leave the memory.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from service.contract.encoder import Encoder, ModelInputs
from service.contract.requests import RequestBatch
from service.contract.rules import MISSING
from training.data.labels import Labels, make_labels
from training.data.report import clicked_requests
from training.data.request_files import read_row_group

Group = tuple[Path, int]  # a request file and one of its row groups
KEPT_BYTES = 1 << 30


class Encoded(NamedTuple):
    """Some requests as a model sees them, in numpy arrays, and their labels."""

    inputs: ModelInputs
    labels: Labels


@runtime_checkable
class Pool(Protocol):
    """Requests that batches are cut from."""

    @property
    def n_behaviours(self) -> Int64[np.ndarray, " R"]:
        """As many as the file holds, not as the encoder keeps."""
        ...

    @property
    def n_candidates(self) -> Int64[np.ndarray, " R"]:
        """Candidates of each request."""
        ...

    @property
    def has_click(self) -> Bool[np.ndarray, " R"]:
        """Whether a candidate was clicked."""
        ...

    def take(self, indices: Int64[np.ndarray, " r"]) -> Encoded:
        """Some requests, in the given order."""
        ...


@runtime_checkable
class PoolSource(Protocol):
    """Reads row groups. Raises DataError for a file that cannot be read."""

    @property
    def encoder(self) -> Encoder:
        """What the requests are encoded with."""
        ...

    def read(self, groups: Sequence[Group]) -> Pool:
        """The requests of these row groups, one after the other."""
        ...


class FreshPools:
    """Reads at each call and encodes only what is taken."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def read(self, groups: Sequence[Group]) -> "RawPool":
        """The raw requests; encoded when they are taken."""
        parts = [read_row_group(path, row_group) for path, row_group in groups]
        requests = RequestBatch.concat([batch for batch, _ in parts])
        return RawPool(requests, np.concatenate([clicks for _, clicks in parts]), self.encoder)


class RawPool:
    """Requests as they lie in the file."""

    def __init__(self, requests: RequestBatch, clicks: Int8[np.ndarray, " N"], encoder: Encoder) -> None:
        self._requests = requests
        self._clicks = clicks
        self._encoder = encoder
        self.n_behaviours = np.diff(requests.behaviour_offsets)
        self.n_candidates = np.diff(requests.candidate_offsets)
        self.has_click = clicked_requests(requests, clicks)

    def take(self, indices: Int64[np.ndarray, " r"]) -> Encoded:
        """Encodes some requests, in the given order."""
        return encode_labelled(*take_requests(self._requests, self._clicks, indices), self._encoder)


class KeptPools:
    """Encodes every row group once and keeps it, as long as all that is kept stays below `max_bytes`.

    What came first stays: epochs go through all groups in turn, and throwing out the oldest would keep none.
    """

    def __init__(self, encoder: Encoder, max_bytes: int = KEPT_BYTES) -> None:
        self.encoder = encoder
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: dict[Group, KeptPool] = {}
        self._lock = threading.Lock()  # training and validation read ahead in threads of their own

    def read(self, groups: Sequence[Group]) -> "KeptPool":
        """The encoded requests."""
        return KeptPool.joined([self._group(group) for group in groups])

    def _group(self, group: Group) -> "KeptPool":
        found = self._kept.get(group)
        if found is not None:
            return found
        requests, clicks = read_row_group(*group)
        made = KeptPool.of(encode_labelled(requests, clicks, self.encoder), requests, clicks)
        with self._lock:
            if group not in self._kept and self.n_bytes + made.n_bytes <= self.max_bytes:
                self._kept[group] = made
                self.n_bytes += made.n_bytes
        return made


@dataclass(frozen=True)
class Ragged:
    """Rows of items with their similarity and one more number (age bin, click); those of request r lie between two
    offsets."""

    offsets: Int64[np.ndarray, " R1"]
    fields: Int32[np.ndarray, "B I"]
    similarity: Float32[np.ndarray, " B"]
    number: Int32[np.ndarray, " B"]

    @classmethod
    def of_padded(cls, padded: np.ndarray, similarity: np.ndarray, age: np.ndarray) -> "Ragged":
        """Drops the padding, which is where the age is 0."""
        valid = age > 0
        offsets = np.concatenate([[0], np.cumsum(valid.sum(axis=1))])
        return cls(offsets, padded[valid].astype(np.int32), similarity[valid], age[valid].astype(np.int32))

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The requests of several, one after the other."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        rest = ([getattr(part, name) for part in parts] for name in ("fields", "similarity", "number"))
        return cls(np.concatenate([[0], np.cumsum(lengths)]), *(np.concatenate(column) for column in rest))

    def rows_of(self, indices: Int64[np.ndarray, " r"]) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " r"]]:
        """Which rows belong to these requests, in their order, and how many to each."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        before = np.cumsum(lengths) - lengths
        return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum())), lengths

    def padded(self, indices: Int64[np.ndarray, " r"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fields [r L I], similarity [r L] and age [r L], as `Encoder.encode` pads them."""
        rows, lengths = self.rows_of(indices)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        at = np.repeat(np.arange(len(indices)), lengths), place
        shape = len(indices), max(1, int(lengths.max(initial=0)))
        padded = np.zeros((*shape, self.fields.shape[1]), np.int64)
        similarity, age = np.full(shape, MISSING, np.float32), np.zeros(shape, np.int64)
        padded[at], similarity[at], age[at] = self.fields[rows], self.similarity[rows], self.number[rows]
        return padded, similarity, age


@dataclass(frozen=True)
class KeptPool:
    """Encoded requests without padding."""

    user: Int32[np.ndarray, "R U"]
    context: Int32[np.ndarray, "R C"]
    trigger: Int32[np.ndarray, "R I"]
    history: Ragged
    related: Ragged
    candidates: Ragged
    intent: Float32[np.ndarray, "R S"]
    has_intent: Bool[np.ndarray, " R"]
    user_group: Int64[np.ndarray, " R"]
    request_group: Int64[np.ndarray, " R"]
    n_behaviours: Int64[np.ndarray, " R"]
    has_click: Bool[np.ndarray, " R"]

    @classmethod
    def of(cls, encoded: Encoded, requests: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> "KeptPool":
        """Keeps what was encoded of these requests."""
        inputs, labels = encoded
        return cls(
            user=inputs.user_fields.astype(np.int32),
            context=inputs.context_fields.astype(np.int32),
            trigger=inputs.trigger_fields.astype(np.int32),
            history=Ragged.of_padded(inputs.history_fields, inputs.history_similarity, inputs.history_age),
            related=Ragged.of_padded(inputs.related_fields, inputs.related_similarity, inputs.related_age),
            candidates=Ragged(
                requests.candidate_offsets,
                inputs.candidate_fields.astype(np.int32),
                inputs.candidate_similarity,
                clicks.astype(np.int32),
            ),
            intent=labels.intent,
            has_intent=labels.has_intent,
            user_group=labels.user_group,
            request_group=labels.request_group,
            n_behaviours=np.diff(requests.behaviour_offsets),
            has_click=clicked_requests(requests, clicks),
        )

    @classmethod
    def joined(cls, parts: Sequence["KeptPool"]) -> "KeptPool":
        """The requests of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: _joined(column) for name, column in columns.items()})

    @property
    def n_candidates(self) -> Int64[np.ndarray, " R"]:
        """Candidates of each request."""
        return np.diff(self.candidates.offsets)

    @property
    def n_bytes(self) -> int:
        """Memory of all arrays."""
        ragged = [array for part in (self.history, self.related, self.candidates) for array in vars(part).values()]
        own = [array for array in vars(self).values() if isinstance(array, np.ndarray)]
        return sum(array.nbytes for array in (*own, *ragged))

    def take(self, indices: Int64[np.ndarray, " r"]) -> Encoded:
        """Some requests, in the given order, padded to the longest of them."""
        rows, lengths = self.candidates.rows_of(indices)
        inputs = ModelInputs(
            self.user[indices].astype(np.int64),
            self.context[indices].astype(np.int64),
            self.trigger[indices].astype(np.int64),
            *self.history.padded(indices),
            *self.related.padded(indices),
            self.candidates.fields[rows].astype(np.int64),
            self.candidates.similarity[rows],
            np.repeat(np.arange(len(indices)), lengths),
        )
        labels = Labels(
            clicks=self.candidates.number[rows].astype(np.float32),
            intent=self.intent[indices],
            has_intent=self.has_intent[indices],
            user_group=self.user_group[indices],
            request_group=self.request_group[indices],
        )
        return Encoded(inputs, labels)


def _joined(column: list[Any]) -> Any:
    return Ragged.joined(column) if isinstance(column[0], Ragged) else np.concatenate(column)


def encode_labelled(requests: RequestBatch, clicks: Int8[np.ndarray, " N"], encoder: Encoder) -> Encoded:
    """Requests through the contract's one function, and their labels."""
    inputs = encoder.encode(requests)
    return Encoded(inputs, make_labels(requests, clicks, inputs.candidate_similarity, encoder.scale))


def take_requests(
    requests: RequestBatch, clicks: Int8[np.ndarray, " N"], indices: Int64[np.ndarray, " r"]
) -> tuple[RequestBatch, Int8[np.ndarray, " n"]]:
    """Some requests of a batch, in the given order, and the clicks of their candidates."""
    starts, ends = requests.candidate_offsets[indices], requests.candidate_offsets[indices + 1]
    lengths = ends - starts
    shift = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) if len(indices) else starts
    return requests.take(indices), clicks[shift + np.arange(int(lengths.sum()))]
