"""fit_encoder: one streaming pass over the training requests -> Encoder.

Called by `training/train.py` before a run, and by `check_requests`. Counts values, cuts numbers into quantile bins,
chooses the similarity range and the threshold of the related history: all from the training days, nothing from later
ones (models trap T7). It never looks at a click; the encoded arrays themselves are the contract's business.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.contract.catalogue import Catalogue, NumberColumn, TextColumn
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import NumberBins, Vocabulary
from training.data.dataset import Dataset, open_catalogue, open_dataset, split_files
from training.data.errors import DataError
from training.data.report import SimilarityCounts
from training.data.request_files import read_requests

SAMPLED_NUMBERS = 200_000  # values kept per user or context number to cut its bins from
RANGE_QUANTILES = (0.01, 0.99)
_LEAST_RANGE = 0.05  # a narrower range would cut levels out of rounding


def fit_encoder(folder: Path, n_levels: int | None = None) -> Encoder:
    """The encoder of a prepared folder, fitted on its training split.

    An item is in the vocabulary when it was seen at least `min_count` times in training requests as trigger, candidate
    or behaviour; its fields' values are counted as often as it was seen. Most frequent values come first, ties in the
    order of the catalogue (items) or of the text. The related threshold is the data set's, or the lower edge of the
    second-highest level. `n_levels` cuts the same range into so many levels in the place of the data set's; all else
    stays. Raises DataError for unreadable files.
    """
    dataset, catalogue = open_dataset(folder), open_catalogue(folder)
    counts = TrainingCounts(dataset.schema, catalogue)
    for path in split_files(folder, "train"):
        for batch, _ in read_requests(path):
            counts.add(batch)
    scale = fit_scale(dataset, counts.similarity)
    threshold = float(scale.edges[-3]) if dataset.related_threshold is None else dataset.related_threshold
    rules = dataset.rules_with(threshold)
    if n_levels is not None:
        scale = replace(scale, n_levels=n_levels)
    return Encoder(dataset.schema, counts.vocabularies(), rules, scale, catalogue)


class TrainingCounts:
    """What the training days hold: how often each item was seen, each value of the request fields, each similarity."""

    def __init__(self, schema: FeatureSchema, catalogue: Catalogue) -> None:
        self.similarity = SimilarityCounts()
        self.items_seen = np.zeros(catalogue.n_items + 1, dtype=np.int64)
        self._schema = schema
        self._catalogue = catalogue
        request_fields = (*schema.user, *schema.context)
        self._texts: dict[str, Counter[str]] = {_key(f): Counter() for f in request_fields if f.kind != "number"}
        self._numbers = {_key(f): NumberSample(SAMPLED_NUMBERS) for f in request_fields if f.kind == "number"}

    def add(self, batch: RequestBatch) -> None:
        """Counts the requests of one batch."""
        triggers = self._catalogue.rows(batch.trigger.tolist())
        candidates = self._catalogue.rows(batch.candidate.tolist())
        for rows in (triggers, candidates, self._catalogue.rows(batch.behaviour_item.tolist())):
            self.items_seen += np.bincount(rows, minlength=len(self.items_seen))
        similarity = self._catalogue.similarity(triggers[batch.candidate_request], candidates)
        self.similarity.add(similarity, np.zeros(len(similarity), np.int8))
        for side, columns in (("user", batch.user), ("context", batch.context)):
            for name, column in columns.items():
                self._add_column(f"{side}.{name}", column)

    def vocabularies(self) -> dict[str, Vocabulary | NumberBins]:
        """One vocabulary or set of bins per field of the schema, by the encoder's keys `<side>.<field>`."""
        self.items_seen[0] = 0  # the unknown item is OOV, never a value
        request_fields = (*self._schema.user, *self._schema.context)
        fitted = {_key(field): self._of_requests(field) for field in request_fields}
        return fitted | {_key(field): self._of_items(field) for field in self._schema.item}

    def _add_column(self, key: str, column: np.ndarray) -> None:
        if key in self._texts:
            self._texts[key].update(value for value in column.tolist() if value is not None)
        elif key in self._numbers:
            self._numbers[key].add(np.array([value for value in column if value is not None], np.float64))

    def _of_requests(self, field: Field) -> Vocabulary | NumberBins:
        if field.kind == "number":
            return number_bins(self._numbers[_key(field)].values, field.n_bins)
        return vocabulary(self._texts[_key(field)], field.min_count)

    def _of_items(self, field: Field) -> Vocabulary | NumberBins:
        if field.name == "item":
            often = np.flatnonzero(self.items_seen >= max(1, field.min_count))
            often = often[np.argsort(-self.items_seen[often], kind="stable")]
            return Vocabulary.from_values(self._catalogue.ids(often))
        column = self._catalogue.columns.get(field.name)
        if field.kind == "number":
            return number_bins(self._seen_numbers(field, column), field.n_bins)
        if not isinstance(column, TextColumn):
            raise DataError(
                f"item field {field.name}: the schema says {field.kind}, but the catalogue holds no texts for it."
            )
        seen = np.bincount(column.codes, self.items_seen, len(column.values)).astype(np.int64)
        values = {value: int(n) for value, n in zip(column.values, seen, strict=True) if value is not None and n}
        return vocabulary(Counter(values), field.min_count)

    def _seen_numbers(self, field: Field, column: TextColumn | NumberColumn | None) -> np.ndarray:
        if isinstance(column, NumberColumn):
            return np.asarray(column.numbers[self.items_seen > 0], np.float64)
        if isinstance(column, TextColumn) and set(column.values) == {None}:
            return np.zeros(0)  # no item has this number
        raise DataError(f"item field {field.name}: the schema says number, but the catalogue holds no numbers for it.")


class NumberSample:
    """An even sample of a stream of numbers in bounded memory: every 2^k-th one, k rises when the sample is full."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._step = 1
        self._n_seen = 0
        self._kept = np.zeros(0)

    @property
    def values(self) -> np.ndarray:
        """The kept numbers."""
        return self._kept

    def add(self, numbers: np.ndarray) -> None:
        """Takes the next numbers of the stream; NaN and infinity are left out."""
        numbers = numbers[np.isfinite(numbers)]
        self._kept = np.concatenate([self._kept, numbers[-self._n_seen % self._step :: self._step]])
        self._n_seen += len(numbers)
        while len(self._kept) > self._size:
            self._kept = self._kept[::2]
            self._step *= 2


def vocabulary(counts: Counter[str], min_count: int) -> Vocabulary:
    """The values seen at least `min_count` times, most frequent first."""
    often = [(value, count) for value, count in counts.items() if count >= min_count]
    return Vocabulary.from_values([value for value, _ in sorted(often, key=lambda pair: (-pair[1], pair[0]))])


def number_bins(values: np.ndarray, n_bins: int) -> NumberBins:
    """At most `n_bins` bins of about equal share. A value that is more frequent than a share gets a bin of its own.

    Plain quantiles would put all of a count that is mostly 0 into one bin, and its rare large values with it.
    """
    known = values[np.isfinite(values)].astype(np.float32)
    distinct, counts = np.unique(known, return_counts=True)
    edges: list[np.float32] = []
    in_bin, left = 0, len(known)
    for value, count in zip(distinct, counts.tolist(), strict=True):
        share = left / (n_bins - len(edges))
        if in_bin and len(edges) < n_bins - 1 and in_bin + count / 2 > share:
            edges.append(value)  # a value on an edge lies above it
            left -= in_bin
            in_bin = 0
        in_bin += count
    return NumberBins(np.array(edges, np.float32))


def fit_scale(dataset: Dataset, similarity: SimilarityCounts) -> SimilarityScale:
    """The data set's similarity range, or the 1 % and 99 % quantiles of the training candidates' similarities."""
    if dataset.similarity_range is not None:
        return SimilarityScale(*dataset.similarity_range, dataset.n_levels)
    if not similarity.n_known:
        return SimilarityScale(0.0, 1.0, dataset.n_levels)  # no vectors at all: every level stays 0
    low, high = (similarity.quantile(share) for share in RANGE_QUANTILES)
    if high - low < _LEAST_RANGE:
        raise DataError(
            f"{dataset.name}: 98 % of the similarities of candidate and trigger lie between {low:.3f} and {high:.3f}; "
            "levels over so narrow a range mean nothing. Check the item vectors, or set a similarity_range."
        )
    return SimilarityScale(round(low, 4), round(high, 4), dataset.n_levels)


def _key(field: Field) -> str:
    return f"{field.side}.{field.name}"
