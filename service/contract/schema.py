"""Which raw fields exist, whose they are and how they become ids: Field and FeatureSchema.

Written by a data set, carried by the encoder into the bundle, read by every model through EncoderSizes.
Holds no fitted number: vocabularies and bin edges live in the encoder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from service.contract.errors import SchemaError

Side = Literal["user", "context", "item"]
Kind = Literal["id", "category", "number"]


@dataclass(frozen=True)
class Field:
    """One raw feature.

    `kind`: an *id* has a large vocabulary (user, item, brand), a *category* a small one, a *number* is cut into
    quantile bins. `min_count`: values seen fewer times in the training days share the id OOV. `n_bins`: numbers only.
    """

    name: str
    side: Side
    kind: Kind
    min_count: int = 1
    n_bins: int = 16

    def __post_init__(self) -> None:
        if self.side not in get_args(Side) or self.kind not in get_args(Kind):
            raise SchemaError(
                f"field {self.name!r}: side {self.side!r}, kind {self.kind!r}; "
                f"use a side of {get_args(Side)} and a kind of {get_args(Kind)}"
            )
        if not self.name or not self.name.replace("_", "").isalnum():
            raise SchemaError(f"field name {self.name!r}: use letters, digits and underscores")


@dataclass(frozen=True)
class FeatureSchema:
    """The fields of the three sides, in the order of the encoded columns.

    The first user field is the user's id (`user`), the first item field the item's id (`item`).
    `leaf_category` names the item field that is the finest category, for the models that need one.
    """

    user: tuple[Field, ...]
    context: tuple[Field, ...]
    item: tuple[Field, ...]
    leaf_category: str | None = None

    def __post_init__(self) -> None:
        for side, first in (("user", "user"), ("item", "item")):
            fields = self.of(side)
            if not fields or fields[0].name != first or fields[0].kind != "id":
                raise SchemaError(
                    f"the first {side} field must be Field({first!r}, {side!r}, 'id'), found {fields[:1]}"
                )
        for side in get_args(Side):
            names = [field.name for field in self.of(side)]
            if len(set(names)) != len(names) or any(field.side != side for field in self.of(side)):
                raise SchemaError(f"{side} fields {names}: names must differ and each must have side {side!r}")
        if self.leaf_category is not None:
            self.index("item", self.leaf_category)

    def of(self, side: str) -> tuple[Field, ...]:
        """The fields of one side, in column order."""
        return {"user": self.user, "context": self.context, "item": self.item}[side]

    @property
    def fields(self) -> Iterator[Field]:
        """All fields: user, context, item."""
        yield from self.user + self.context + self.item

    def index(self, side: str, name: str) -> int:
        """The column of a field within its side. Raises SchemaError when there is none."""
        names = [field.name for field in self.of(side)]
        if name not in names:
            raise SchemaError(f"no {side} field {name!r}; there are {names}")
        return names.index(name)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; the inverse of from_dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "FeatureSchema":
        """Reads what to_dict wrote. Raises SchemaError when a key is missing or unknown."""
        try:
            sides = {side: tuple(Field(**field) for field in values[side]) for side in get_args(Side)}  # type: ignore[attr-defined]
            leaf = values.get("leaf_category")
            return cls(**sides, leaf_category=None if leaf is None else str(leaf))
        except (KeyError, TypeError) as error:
            raise SchemaError(f"schema {sorted(values)} cannot be read ({error}); write it with to_dict") from error
