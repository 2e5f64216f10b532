"""Embedding tables by the kind of a field. Every model takes its vectors from here.

Tables start at N(0, 0.01²) with a zero row for "nothing": torch's own N(0, 1) would make untrained ids look stronger
than trained ones, and with that turn DAIAN's norm ratio around.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

INITIAL_SPREAD = 0.01
# From this many rows on, a step touches too small a part of a table for dense gradients to pay.
SPARSE_FROM_ROWS = 50_000


@dataclass(frozen=True)
class EmbeddingWidths:
    """Width of a field's vector by its kind; `age` is the width of a behaviour's age bin."""

    id: int = 32
    category: int = 16
    number: int = 8
    age: int = 8

    def of(self, kind: str) -> int:
        """The width of a field of this kind. Raises ValueError for an unknown kind."""
        widths = {"id": self.id, "category": self.category, "number": self.number}
        if kind not in widths:
            raise ValueError(f"unknown kind of field {kind!r}; kinds are {', '.join(widths)}")
        return widths[kind]


DEFAULT_WIDTHS = EmbeddingWidths()


def table(n_ids: int, width: int) -> nn.Embedding:
    """An embedding table with N(0, 0.01²) rows and a zero row 0 that never trains."""
    embedding = nn.Embedding(n_ids, width, padding_idx=0, sparse=n_ids >= SPARSE_FROM_ROWS)
    with torch.no_grad():
        embedding.weight.normal_(0.0, INITIAL_SPREAD)
        embedding.weight[0].zero_()
    return embedding


class FieldTables(nn.Module):
    """One table per field; the vectors of an entity's fields, side by side. `width` is 0 without fields."""

    def __init__(self, sizes: Sequence[int], kinds: Sequence[str], widths: EmbeddingWidths) -> None:
        super().__init__()
        self.tables = nn.ModuleList(table(size, widths.of(kind)) for size, kind in zip(sizes, kinds, strict=True))
        self.width = sum(widths.of(kind) for kind in kinds)

    def forward(self, fields: Int64[Tensor, "*B F"]) -> Float[Tensor, "*B D"]:
        """Ids of the fields to one vector; [*B 0] when the entity has no fields."""
        if not len(self.tables):
            return torch.zeros(*fields.shape[:-1], 0, device=fields.device)
        return torch.cat([lookup(fields[..., i]) for i, lookup in enumerate(self.tables)], dim=-1)


class BehaviourTables(nn.Module):
    """Items, and behaviours as item plus age, over the same tables: history, trigger, candidate share one space."""

    def __init__(self, sizes: Sequence[int], kinds: Sequence[str], n_age_bins: int, widths: EmbeddingWidths) -> None:
        super().__init__()
        self.items = FieldTables(sizes, kinds, widths)
        self.age = table(n_age_bins, widths.age)
        self.item_width = self.items.width
        self.behaviour_width = self.items.width + widths.age
        self.id_width = widths.id

    @property
    def item_ids(self) -> nn.Embedding:
        """The table of the items' ids: field 0 of an item is always its id."""
        first = self.items.tables[0]
        assert isinstance(first, nn.Embedding)
        return first

    def item(self, fields: Int64[Tensor, "*B I"]) -> Float[Tensor, "*B D"]:
        """e(x): the id's vector first, then the other fields'."""
        vectors: Tensor = self.items(fields)
        return vectors

    def behaviours(self, fields: Int64[Tensor, "R L I"], age: Int64[Tensor, "R L"]) -> Float[Tensor, "R L D"]:
        """Items of a sequence with their age bins; zero where there is nothing."""
        return torch.cat([self.items(fields), self.age(age)], dim=-1)
