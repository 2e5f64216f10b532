"""ModelInputs and Encoder.encode: THE function that turns raw requests into tensors.

The trainer calls it with thousands of requests at a time, the service with one; there is no second way. Knows nothing
of clocks, chance, torch, Redis or HTTP: time comes in the request.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt64

from service.contract.catalogue import Catalogue, NumberColumn, TextColumn
from service.contract.errors import SchemaError
from service.contract.history import (
    N_AGE_BINS,
    Kept,
    age_bin,
    first_of_newest,
    is_visible,
    newest,
    sort_by_time,
    whole_seconds,
)
from service.contract.mapped_array import content_of, open_array
from service.contract.requests import RequestBatch
from service.contract.rules import MISSING, HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.similarity import most_similar, search_related, similarity_to_trigger
from service.contract.vocabulary import OOV, PAD, NumberBins, Vocabulary

CONTRACT_VERSION = 1
ITEM_FIELDS = "item_fields.npy"  # beside encoder.json: the whole catalogue encoded, for workers to share

_Padded: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


class ModelInputs(NamedTuple):
    """What every model sees; the field names are the names of the ONNX inputs. Ids int64, similarities float32.

    R requests, N candidates of all requests, L behaviours, K related behaviours, U I C fields. In `history_*` and
    `related_*` the valid ones come first, oldest first; an age of 0 marks the padding. L and K are those of the longest
    row of the batch, at least 1. The arrays are numpy's as they come from encode, torch's after map(torch.from_numpy).
    """

    user_fields: Any  # R U
    context_fields: Any  # R C
    trigger_fields: Any  # R I
    history_fields: Any  # R L I
    history_similarity: Any  # R L, to the trigger
    history_age: Any  # R L, bin of minutes ago
    related_fields: Any  # R K I
    related_similarity: Any  # R K
    related_age: Any  # R K
    candidate_fields: Any  # N I
    candidate_similarity: Any  # N, to the trigger
    candidate_request: Any  # N, row of its request

    def map(self, function: Callable[[Any], Any]) -> "ModelInputs":
        """The same inputs with every array replaced by function(array)."""
        return ModelInputs(*(function(array) for array in self))


CANDIDATE_SIDE = ("candidate_fields", "candidate_similarity", "candidate_request")
REQUEST_SIDE = tuple(name for name in ModelInputs._fields if name not in CANDIDATE_SIDE)


@dataclass(frozen=True)
class EncoderSizes:
    """All that a model must know of the encoder to build itself: table heights, kinds, levels."""

    user: tuple[int, ...]
    context: tuple[int, ...]
    item: tuple[int, ...]
    user_kinds: tuple[str, ...]
    context_kinds: tuple[str, ...]
    item_kinds: tuple[str, ...]
    n_age_bins: int
    n_levels: int
    level_edges: tuple[float, ...]
    related_threshold: float
    leaf_category: int | None


class Encoder:
    """Schema, vocabularies and rules, bound to a catalogue. Immutable once made; safe to share between threads."""

    def __init__(
        self,
        schema: FeatureSchema,
        vocabularies: Mapping[str, Vocabulary | NumberBins],
        rules: HistoryRules,
        scale: SimilarityScale,
        catalogue: Catalogue,
        item_fields: Int32[np.ndarray, "M1 I"] | None = None,
    ) -> None:
        """`vocabularies` is keyed `<side>.<field>`. Raises SchemaError when one, or a catalogue field, is missing.

        `item_fields` is what encoding the catalogue would give, where somebody has done it before.
        """
        wanted = {_key(field) for field in schema.fields}
        if wanted != set(vocabularies):
            raise SchemaError(f"vocabularies {sorted(vocabularies)} do not match the schema's {sorted(wanted)}")
        self.schema = schema
        self.rules = rules
        self.scale = scale
        self.catalogue = catalogue
        self._vocabularies = dict(vocabularies)
        self._raw = {
            side: [(field.name, self._vocabularies[_key(field)]) for field in schema.of(side)]
            for side in ("user", "context")
        }
        self._types = frozenset(rules.types)
        self._item_fields = self._encode_catalogue() if item_fields is None else item_fields
        self.fingerprint = self._fingerprint()

    @property
    def sizes(self) -> EncoderSizes:
        """The numbers that a model is built from."""
        leaf = self.schema.leaf_category

        def heights(side: str) -> tuple[int, ...]:
            return tuple(self._vocabularies[_key(field)].n_ids for field in self.schema.of(side))

        def kinds(side: str) -> tuple[str, ...]:
            return tuple(field.kind for field in self.schema.of(side))

        return EncoderSizes(
            user=heights("user"),
            context=heights("context"),
            item=heights("item"),
            user_kinds=kinds("user"),
            context_kinds=kinds("context"),
            item_kinds=kinds("item"),
            n_age_bins=N_AGE_BINS,
            n_levels=self.scale.n_levels,
            level_edges=tuple(float(edge) for edge in self.scale.edges),
            related_threshold=self.rules.related_threshold,
            leaf_category=None if leaf is None else self.schema.index("item", leaf),
        )

    def encode(self, batch: RequestBatch) -> ModelInputs:
        """Raw requests to ModelInputs. Unknown ids become OOV; nothing in a well-formed batch raises."""
        return self.encode_candidates(self.encode_request(batch), batch)

    def encode_request(self, batch: RequestBatch) -> ModelInputs:
        """The first half: all that sees no candidate. The candidate arrays are empty."""
        hashes = self.catalogue.hashes(batch.trigger.tolist() + batch.behaviour_item.tolist())
        rows, n = self.catalogue.rows_of_hashes(hashes), batch.n_requests
        trigger_rows = rows[:n]
        behaviours = self._behaviours(batch, hashes[:n], hashes[n:], rows[n:])
        if batch.n_requests == 1:
            history, related = self._both_of_one(behaviours, int(trigger_rows[0]))
        else:
            history, related = self._history(behaviours, trigger_rows), self._related(behaviours, trigger_rows)
        return ModelInputs(
            self._raw_fields("user", batch.user, batch.n_requests),
            self._raw_fields("context", batch.context, batch.n_requests),
            self._fields_of(trigger_rows),
            *history,
            *related,
            np.zeros((0, len(self.schema.item)), np.int64),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
        )

    def encode_candidates(self, inputs: ModelInputs, batch: RequestBatch) -> ModelInputs:
        """The second half: `inputs` of encode_request with the batch's candidates filled in."""
        rows = self.catalogue.rows(batch.candidate.tolist())
        trigger_rows = self.catalogue.rows(batch.trigger.tolist())
        return self.encode_candidate_rows(inputs, trigger_rows, rows, batch.candidate_request)

    def encode_candidate_rows(
        self,
        inputs: ModelInputs,
        trigger_rows: Int64[np.ndarray, " R"],
        rows: Int64[np.ndarray, " N"],
        owners: Int64[np.ndarray, " N"],
    ) -> ModelInputs:
        """The same where the ids were looked up before; `owners` are the rows of the candidates' requests."""
        left = trigger_rows if len(trigger_rows) == 1 else trigger_rows[owners]
        return inputs._replace(
            candidate_fields=self._fields_of(rows),
            candidate_similarity=self.catalogue.similarity(left, rows) if len(rows) else np.zeros(0, np.float32),
            candidate_request=owners,
        )

    def _behaviours(
        self,
        batch: RequestBatch,
        trigger_hashes: UInt64[np.ndarray, " R"],
        hashes: UInt64[np.ndarray, " B"],
        rows: Int64[np.ndarray, " B"],
    ) -> "_Behaviours":
        """Behaviours that count and are visible in the longer window, sorted by request and time."""
        owner, requested_at, opening = batch.behaviour_request, batch.requested_at, trigger_hashes
        if batch.n_requests > 1:  # one is broadcast
            requested_at, opening = requested_at[owner], opening[owner]
        at = whole_seconds(batch.behaviour_at)
        age = requested_at - at
        window = max(self.rules.window_s, self.rules.related_window_s)
        visible = is_visible(self.rules, batch.behaviour_at < requested_at, age, hashes == opening, window)
        types = batch.behaviour_type.tolist()
        if not self._types.issuperset(types):  # nearly every live request's count: no Python per behaviour
            visible &= np.fromiter(map(self._types.__contains__, types), np.bool_, len(types))
        kept = np.flatnonzero(visible)
        order = kept[sort_by_time(owner[kept], at[kept], rows[kept])]
        return _Behaviours(rows[order], age[order], owner[order], batch.n_requests)

    def _both_of_one(self, behaviours: "_Behaviours", trigger: int) -> tuple[_Padded, _Padded]:
        """_history and _related of a live request. In a batch of one every cut is a slice and nothing is padded, and
        both are parts of the same behaviours: each is gathered, compared and put into its bin once.
        """
        rules, codes, norms = self.rules, self.catalogue.codes, self.catalogue.norms
        similarity = similarity_to_trigger(codes, norms, trigger, behaviours.row)
        columns = self._fields_of(behaviours.row), similarity, age_bin(behaviours.age)
        recent = first_of_newest(behaviours.age, rules.window_s, rules.max_length)
        searched = first_of_newest(behaviours.age, rules.related_window_s, rules.related_searched)
        at_most = rules.related_max if norms[trigger] > 0 else 0
        related = searched + most_similar(similarity[searched:], rules.related_threshold, at_most)
        return _row_of(*(one[recent:] for one in columns)), _row_of(*(one.take(related, axis=0) for one in columns))

    def _history(self, behaviours: "_Behaviours", trigger_rows: Int64[np.ndarray, " R"]) -> _Padded:
        recent = np.flatnonzero(behaviours.age <= self.rules.window_s * 1_000)
        kept = newest(recent, behaviours.owner[recent], behaviours.n_requests, self.rules.max_length)
        rows = behaviours.row[kept.behaviour]
        left = trigger_rows[kept.request] if behaviours.n_requests > 1 else trigger_rows
        similarity = self.catalogue.similarity(left, rows) if len(rows) else np.zeros(0, np.float32)
        return self._padded(kept, rows, similarity, behaviours)

    def _related(self, behaviours: "_Behaviours", trigger_rows: Int64[np.ndarray, " R"]) -> _Padded:
        inside = np.flatnonzero(behaviours.age <= self.rules.related_window_s * 1_000)
        searched = newest(
            inside, behaviours.owner[inside], behaviours.n_requests, self.rules.related_searched
        ).behaviour
        bounds = np.searchsorted(behaviours.owner[searched], np.arange(behaviours.n_requests + 1))
        index, request, position, similarity = [], [], [], []
        for r in np.flatnonzero(np.diff(bounds)):
            own = searched[bounds[r] : bounds[r + 1]]
            found, values = search_related(
                self.catalogue.codes,
                self.catalogue.norms,
                int(trigger_rows[r]),
                behaviours.row[own],
                self.rules.related_threshold,
                self.rules.related_max,
            )
            index.append(own[found])
            request.append(np.full(len(found), r, np.int64))
            position.append(np.arange(len(found), dtype=np.int64))
            similarity.append(values)
        kept = Kept(_joined(index), _joined(request), _joined(position))
        values = np.concatenate(similarity) if similarity else np.zeros(0, np.float32)
        return self._padded(kept, behaviours.row[kept.behaviour], values, behaviours)

    def _padded(
        self, kept: Kept, rows: Int64[np.ndarray, " B"], similarity: np.ndarray, behaviours: "_Behaviours"
    ) -> _Padded:
        """[fields R L I, similarity R L, age R L] with zeros (similarity: MISSING) where there is no behaviour."""
        shape = behaviours.n_requests, int(kept.position.max(initial=0)) + 1
        fields = np.zeros((*shape, len(self.schema.item)), np.int64)
        similarities = np.full(shape, MISSING, np.float32)
        ages = np.zeros(shape, np.int64)
        fields[kept.request, kept.position] = self._item_fields[rows]
        similarities[kept.request, kept.position] = similarity
        ages[kept.request, kept.position] = age_bin(behaviours.age[kept.behaviour])
        return fields, similarities, ages

    def _raw_fields(self, side: str, columns: Mapping[str, np.ndarray], n_requests: int) -> Int64[np.ndarray, "R F"]:
        """User or context columns to ids; a column that is not given is missing everywhere. R is n_requests."""
        fields = self._raw[side]
        if n_requests == 1:
            one = [known.encode_one(columns[name][0]) if name in columns else PAD for name, known in fields]
            return np.array([one], np.int64)
        ids = np.full((n_requests, len(fields)), PAD, np.int64)
        for place, (name, known) in enumerate(fields):
            if name in columns:
                ids[:, place] = known.encode(columns[name].tolist())
        return ids

    def _fields_of(self, rows: Int64[np.ndarray, " Q"]) -> Int64[np.ndarray, "Q I"]:
        """The ids of some items."""
        ids: Int64[np.ndarray, "Q I"] = self._item_fields.take(rows, axis=0).astype(np.int64)
        return ids

    def _encode_catalogue(self) -> Int32[np.ndarray, "M1 I"]:
        """Every item's ids, once: requests then gather rows. The unknown item is OOV in every field."""
        fields = np.empty((self.catalogue.n_items + 1, len(self.schema.item)), np.int32)
        for place, field in enumerate(self.schema.item):
            fields[:, place] = self._encode_column(field)
        fields[0] = OOV
        return fields

    def _encode_column(self, field: Field) -> Int64[np.ndarray, " M1"]:
        vocabulary = self._vocabularies[_key(field)]
        if field.name == "item":
            assert isinstance(vocabulary, Vocabulary)
            return vocabulary.encode_hashes(self.catalogue.id_hashes)
        column = self.catalogue.columns.get(field.name)
        if column is None:
            raise SchemaError(
                f"the catalogue has no item field {field.name!r}; it has {sorted(self.catalogue.columns)}"
            )
        if isinstance(column, TextColumn):
            ids: Int64[np.ndarray, " M1"] = vocabulary.encode(column.values)[column.codes]
            return ids
        assert isinstance(column, NumberColumn)
        return vocabulary.encode(column.numbers.tolist())

    def _fingerprint(self) -> str:
        content = {
            "contract_version": CONTRACT_VERSION,
            **self._description(),
            "vocabularies": {name: vocabulary.digest() for name, vocabulary in sorted(self._vocabularies.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _description(self) -> dict[str, object]:
        return {"schema": self.schema.to_dict(), "rules": asdict(self.rules), "scale": asdict(self.scale)}

    def save(self, folder: Path) -> None:
        """Writes encoder.json, the vocabularies and the encoded items. The catalogue is saved beside it, not in it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, vocabulary in self._vocabularies.items():
            vocabulary.save(folder / name)
        np.save(folder / ITEM_FIELDS, self._item_fields)
        description = {
            "contract_version": CONTRACT_VERSION,
            **self._description(),
            "kinds": {name: type(vocabulary).__name__ for name, vocabulary in self._vocabularies.items()},
            "fingerprint": self.fingerprint,
            "items": {
                "catalogue": _items_digest(self.schema, self.catalogue),
                "sha256": hashlib.sha256(content_of(self._item_fields)).hexdigest(),
            },
        }
        (folder / "encoder.json").write_text(json.dumps(description, indent=2), "utf-8")

    @classmethod
    def open(cls, folder: Path, catalogue: Catalogue) -> "Encoder":
        """Reads what save wrote. Raises SchemaError for another contract version or altered content."""
        try:
            description = json.loads((folder / "encoder.json").read_text("utf-8"))
            found = description["contract_version"]
            if found != CONTRACT_VERSION:
                raise SchemaError(
                    f"{folder}: contract version {found}, this version reads {CONTRACT_VERSION}: export again"
                )
            readers: dict[str, type[Vocabulary] | type[NumberBins]] = {
                "Vocabulary": Vocabulary,
                "NumberBins": NumberBins,
            }
            rules = {**description["rules"], "types": tuple(description["rules"]["types"])}
            schema = FeatureSchema.from_dict(description["schema"])
            vocabularies = {name: readers[kind].open(folder / name) for name, kind in description["kinds"].items()}
            encoder = cls(
                schema,
                vocabularies,
                HistoryRules(**rules),
                SimilarityScale(**description["scale"]),
                catalogue,
                _open_items(folder, description.get("items"), schema, vocabularies, catalogue),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"{folder} holds no readable encoder ({error}): write one with Encoder.save") from error
        if encoder.fingerprint != description["fingerprint"]:
            raise SchemaError(
                f"{folder}: content has fingerprint {encoder.fingerprint[:12]}, encoder.json says "
                f"{description['fingerprint'][:12]}: a file was altered, export again"
            )
        return encoder


def _items_digest(schema: FeatureSchema, catalogue: Catalogue) -> str:
    """What the encoded items depend on beside the encoder's own vocabularies, which its fingerprint has."""
    return catalogue.digest(field.name for field in schema.item)


def _open_items(
    folder: Path,
    saved: Mapping[str, str] | None,
    schema: FeatureSchema,
    vocabularies: Mapping[str, Vocabulary | NumberBins],
    catalogue: Catalogue,
) -> Int32[np.ndarray, "M1 I"] | None:
    """The encoded items, mapped; None where they are of another catalogue, or nobody saved them.

    Raises SchemaError for a file that is not the one that was saved, or that no encoder can have saved.
    """
    if saved is None or saved["catalogue"] != _items_digest(schema, catalogue):
        return None
    items = open_array(folder / ITEM_FIELDS)
    heights = [vocabularies[_key(field)].n_ids for field in schema.item]
    is_saved = hashlib.sha256(content_of(items)).hexdigest() == saved["sha256"]
    fits = items.dtype == np.int32 and items.shape == (catalogue.n_items + 1, len(heights))
    if not is_saved or not fits or items.min() < 0 or (items.max(axis=0) >= heights).any():
        raise SchemaError(f"{folder / ITEM_FIELDS} is not what was saved with encoder.json: export again")
    return items


class _Behaviours(NamedTuple):
    """Visible behaviours of a batch, sorted by request and time."""

    row: Int64[np.ndarray, " B"]
    age: Int64[np.ndarray, " B"]
    owner: Int64[np.ndarray, " B"]
    n_requests: int


def _row_of(
    fields: Int64[np.ndarray, "L I"], similarity: Float32[np.ndarray, " L"], age: Int64[np.ndarray, " L"]
) -> _Padded:
    """What Encoder._padded gives for one request: these behaviours, or one place of padding where there is none."""
    if len(age) == 0:
        fields, age = np.zeros((1, fields.shape[1]), np.int64), np.zeros(1, np.int64)
        similarity = np.full(1, MISSING, np.float32)
    return fields[None], similarity[None], age[None]


def _key(field: Field) -> str:
    return f"{field.side}.{field.name}"


def _joined(parts: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " W"]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
