"""The mapping file of `daian data prepare logs`: which of a shop's own tables and columns mean what.

Read by `prepare_logs` (and printed as an example by `daian data prepare logs --example`). It only reads and checks the
JSON; the tables themselves are `log_tables`' business. All that is wrong with a mapping is said in one error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from service.contract.errors import SchemaError
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field, Kind, Side
from training.data.errors import DataError

TimeUnit = Literal["ms", "s", "iso"]

EXAMPLE = """\
{
  "name": "my shop",
  "time_unit": "ms",
  "impressions": {
    "files": "impressions/*.parquet",
    "request": "request_id", "user": "user_id", "time": "shown_at", "trigger": "trigger_item",
    "item": "item_id", "clicked": "is_click", "position": "slot",
    "context": {"device": "category", "hour": "category"}
  },
  "behaviours": {"files": "events.csv", "user": "user_id", "item": "item_id", "time": "at", "type": "kind"},
  "items": {
    "files": "items.parquet", "item": "item_id", "fields": {"leaf": "category", "brand": {"kind": "id", "min_count": 2},
    "price": {"kind": "number", "column": "eur"}}, "leaf_category": "leaf", "text": ["title"], "image": "picture"
  },
  "users": {"files": "users.csv", "user": "user_id", "fields": {"age_band": "category", "orders": "number"}},
  "split": {"validation_share": 0.1, "test_share": 0.1},
  "history": {"window_s": 1209600, "max_length": 50}
}
"""
# Optional: behaviours (without it the clicks of the impressions), users, position, type, context, text, image, history,
# split, similarity_range, n_levels, related_threshold. Vectors: "text" and "image" columns are encoded on the way;
# "vector": a column of number lists; "vectors": a folder that `daian embed` wrote. Splits also by time:
# {"validation_from": "2026-01-07", "test_from": "2026-01-08"}. File names are relative to the mapping file; * works.


@dataclass(frozen=True)
class MappedField:
    """A feature and the column that holds it."""

    field: Field
    column: str


@dataclass(frozen=True)
class Table:
    """The files of one table, and its columns by role: `roles["time"]` is the column that holds the time."""

    name: str
    files: tuple[Path, ...]
    roles: Mapping[str, str]
    fields: tuple[MappedField, ...] = ()


@dataclass(frozen=True)
class SplitRule:
    """Where validation and test begin: shares of all impressions at the end of the time, or times (ISO text)."""

    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None


@dataclass(frozen=True)
class LogMapping:
    """A checked mapping file."""

    name: str
    time_unit: TimeUnit
    impressions: Table
    items: Table
    behaviours: Table | None
    users: Table | None
    texts: tuple[str, ...]
    image: str | None
    vectors: Path | None
    leaf_category: str | None
    split: SplitRule
    rules: HistoryRules
    similarity_range: tuple[float, float] | None
    n_levels: int
    related_threshold: float | None

    @property
    def schema(self) -> FeatureSchema:
        """The features of the data set, ids first."""
        user_fields = self.users.fields if self.users else ()
        return FeatureSchema(
            user=(Field("user", "user", "id", min_count=2), *(mapped.field for mapped in user_fields)),
            context=tuple(mapped.field for mapped in self.impressions.fields),
            item=(Field("item", "item", "id", min_count=2), *(mapped.field for mapped in self.items.fields)),
            leaf_category=self.leaf_category,
        )


_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # table -> (needed, optional) roles
    "impressions": (("request", "user", "time", "trigger", "item", "clicked"), ("position",)),
    "behaviours": (("user", "item", "time"), ("type",)),
    "items": (("item",), ("vector",)),
    "users": (("user",), ()),
}
_OTHER_KEYS = {
    "impressions": {"files", "context"},
    "behaviours": {"files"},
    "items": {"files", "fields", "leaf_category", "text", "image", "vectors"},
    "users": {"files", "fields"},
}
_FIELD_KEYS: dict[str, tuple[str, Side]] = {
    "impressions": ("context", "context"),
    "items": ("fields", "item"),
    "users": ("fields", "user"),
}
_TOP_KEYS = {
    *("name", "time_unit", "impressions", "behaviours", "items", "users", "split", "history"),
    *("similarity_range", "n_levels", "related_threshold"),
}


def _is_like(value: object, example: object) -> bool:
    """Whether a value of a mapping has the type of `example`; whole numbers are numbers too, None stands for a text."""
    if isinstance(value, bool):
        return False
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if isinstance(example, float):
        return isinstance(value, int | float)
    return isinstance(value, int if isinstance(example, int) else str)


def read_mapping(path: Path) -> LogMapping:
    """Reads and checks a mapping file. Raises DataError with everything that is wrong with it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; `daian data prepare logs --example` prints one to start from."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: a {type(raw).__name__}, expected an object.")
    reader = _Reader(raw, path.parent)
    mapping = reader.read()
    if mapping is None:
        raise DataError(f"{path}: " + "; ".join(reader.problems) + ".")
    return mapping


@dataclass
class _Reader:
    """Reads one mapping, collecting what is wrong instead of stopping at the first."""

    raw: dict[str, Any]
    folder: Path
    problems: list[str] = field(default_factory=list)

    def read(self) -> LogMapping | None:
        unknown = sorted(self.raw.keys() - _TOP_KEYS)
        if unknown:
            self.problems.append(f"unknown keys {unknown}, known are {sorted(_TOP_KEYS)}")
        tables = {name: self._table(name) for name in _ROLES if name in self.raw}
        self.problems += [f"no table {name!r}" for name in ("impressions", "items") if name not in self.raw]
        if self.raw.get("time_unit", "ms") not in get_args(TimeUnit):
            self.problems.append(f"time_unit {self.raw['time_unit']!r}, use one of {get_args(TimeUnit)}")
        split = self._part("split", SplitRule())
        if (split.validation_from is None) != (split.test_from is None):
            self.problems.append("split: give both validation_from and test_from, or neither")
        if not 0 < split.validation_share + split.test_share < 1:
            self.problems.append("split: validation_share + test_share must lie between 0 and 1")
        rules = self._part("history", HistoryRules())
        numbers = self._range(), self._number("n_levels", 6), self._number("related_threshold", None)
        return None if self.problems else self._mapping(tables, split, rules, *numbers)

    def _mapping(
        self,
        tables: dict[str, Table],
        split: SplitRule,
        rules: HistoryRules,
        similarity_range: tuple[float, float] | None,
        n_levels: int,
        related_threshold: float | None,
    ) -> LogMapping | None:
        items = self.raw["items"]
        text = items.get("text", [])
        mapping = LogMapping(
            name=str(self.raw.get("name", "logs")),
            time_unit=self.raw.get("time_unit", "ms"),
            impressions=tables["impressions"],
            items=tables["items"],
            behaviours=tables.get("behaviours"),
            users=tables.get("users"),
            texts=(text,) if isinstance(text, str) else tuple(text),
            image=items.get("image"),
            vectors=self.folder / items["vectors"] if "vectors" in items else None,
            leaf_category=items.get("leaf_category"),
            split=split,
            rules=rules,
            similarity_range=similarity_range,
            n_levels=n_levels,
            related_threshold=related_threshold,
        )
        try:
            _ = mapping.schema
        except SchemaError as error:
            self.problems.append(str(error))
            return None
        return mapping

    def _part(self, name: str, default: Any) -> Any:
        """A dataclass of plain values from the object under `name`."""
        given = self.raw.get(name, {})
        known = {f.name: getattr(default, f.name) for f in fields(default)}
        if not isinstance(given, dict) or given.keys() - known:
            self.problems.append(f"{name}: expected an object with keys of {sorted(known)}, found {given!r:.80}")
            return default
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        wrong = [key for key, value in values.items() if not _is_like(value, known[key])]
        self.problems += [f"{name}.{key}: {given[key]!r:.80}, expected one like {known[key]!r}" for key in wrong]
        return default if wrong else replace(default, **values)

    def _number(self, name: str, default: float | None) -> Any:
        value = self.raw.get(name, default)
        if value is not None and not _is_like(value, 0.0 if default is None else default):
            self.problems.append(
                f"{name}: {value!r:.80}, expected a number{'' if default is None else f' like {default}'}"
            )
        return value

    def _range(self) -> tuple[float, float] | None:
        value = self.raw.get("similarity_range")
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(_is_like(edge, 0.0) for edge in value):
            self.problems.append(f"similarity_range: {value!r:.80}, expected two numbers such as [0.1, 0.9]")
            return None
        return value[0], value[1]

    def _table(self, name: str) -> Table:
        raw = self.raw[name]
        if not isinstance(raw, dict):
            self.problems.append(f"{name}: expected an object, found {raw!r:.80}")
            return Table(name, (), {})
        needed, optional = _ROLES[name]
        unknown = raw.keys() - {*needed, *optional} - _OTHER_KEYS[name]
        self.problems += [f"{name}: unknown key {key!r}" for key in sorted(unknown)]
        self.problems += [
            f"{name}: no column given for {role!r}" for role in needed if not isinstance(raw.get(role), str)
        ]
        roles = {role: raw[role] for role in (*needed, *optional) if isinstance(raw.get(role), str)}
        return Table(name, self._files(name, raw.get("files")), roles, self._fields(name, raw))

    def _files(self, name: str, patterns: Any) -> tuple[Path, ...]:
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(listed, list) or not listed:
            self.problems.append(f"{name}: no files given")
            return ()
        found: list[Path] = []
        for pattern in listed:
            whole = Path(str(pattern))
            files = (
                sorted(self.folder.glob(str(pattern)))
                if not whole.is_absolute()
                else [whole]
                if whole.is_file()
                else []
            )
            if not files:
                self.problems.append(f"{name}: no file matches {pattern!r} (from {self.folder})")
            found += files
        return tuple(found)

    def _fields(self, name: str, raw: dict[str, Any]) -> tuple[MappedField, ...]:
        if name not in _FIELD_KEYS:
            return ()
        key, side = _FIELD_KEYS[name]
        given = raw.get(key, {})
        if not isinstance(given, dict):
            self.problems.append(f"{name}.{key}: expected an object of field: kind, found {given!r:.80}")
            return ()
        return tuple(
            mapped for field_name, what in given.items() if (mapped := self._field(name, side, field_name, what))
        )

    def _field(self, table: str, side: Side, name: str, what: Any) -> MappedField | None:
        options = {"kind": what} if isinstance(what, str) else what
        known = {"kind", "column", "min_count", "n_bins"}
        if not isinstance(options, dict) or options.keys() - known or options.get("kind") not in get_args(Kind):
            self.problems.append(
                f"{table}, field {name!r}: give a kind of {get_args(Kind)}, or an object of {sorted(known)}"
            )
            return None
        column = str(options.get("column", name))
        numbers = {key: options[key] for key in ("min_count", "n_bins") if key in options}
        if not all(_is_like(value, 1) for value in numbers.values()):
            self.problems.append(f"{table}, field {name!r}: {numbers} must be whole numbers")
            return None
        try:
            return MappedField(Field(name, side, options["kind"], **numbers), column)
        except SchemaError as error:
            self.problems.append(f"{table}: {error}")
            return None
