"""A shop of any size, made on the spot: catalogue, encoder, users with behaviours, pages to rank.

Called by every part of `benchmarks`. Items lie around centres, so that a trigger has neighbours and a history has
behaviours like it; nothing was clicked and nothing is learnt from it. Fields are those of a shop: in the model an item
is 64 wide (id 32, category 16, brand 16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import Vocabulary

DIMENSIONS = 128
ITEMS_A_CENTRE = 200
NOISE = 0.05  # per dimension around a centre of length 1: cosine of about 0.75 between two items of a centre
OWN_SHARE = 0.5  # of behaviours and candidates, from the centre of the trigger
DAY_MS = 86_400_000

SCHEMA = FeatureSchema(
    user=(
        Field("user", "user", "id"),
        Field("gender", "user", "category"),
        Field("age", "user", "category"),
        Field("city", "user", "category"),
    ),
    context=(Field("device", "context", "category"), Field("hour", "context", "category")),
    item=(Field("item", "item", "id"), Field("category", "item", "category"), Field("brand", "item", "category")),
    leaf_category="category",
)


@dataclass(frozen=True)
class Scene:
    """One shop. `n_related` behaviours are searched for those like the trigger, over `window_days`."""

    n_items: int = 100_000
    n_users: int = 1_000
    n_behaviours: int = 50
    n_related: int = 50
    window_days: int = 14

    @property
    def n_centres(self) -> int:
        """Groups of items that are like each other."""
        return max(2, self.n_items // ITEMS_A_CENTRE)

    @cached_property
    def item_ids(self) -> list[str]:
        """Item i belongs to centre i modulo their number."""
        return [f"item-{number:08d}" for number in range(self.n_items)]

    @cached_property
    def encoder(self) -> Encoder:
        """Knows every item and user."""
        window_s = self.window_days * 86_400
        rules = HistoryRules(
            related_window_s=window_s, related_searched=self.n_related, related_max=50, related_threshold=0.667
        )
        vocabularies = {
            "user.user": Vocabulary.from_values([self.user(number) for number in range(self.n_users)]),
            "user.gender": Vocabulary.from_values(["f", "m"]),
            "user.age": Vocabulary.from_values([str(age) for age in range(8)]),
            "user.city": Vocabulary.from_values([f"city-{number}" for number in range(50)]),
            "context.device": Vocabulary.from_values(["phone", "tablet", "desktop"]),
            "context.hour": Vocabulary.from_values([str(hour) for hour in range(24)]),
            "item.item": Vocabulary.from_values(self.item_ids),
            "item.category": Vocabulary.from_values(sorted({self._category(i) for i in range(self.n_centres)})),
            "item.brand": Vocabulary.from_values(sorted({self._brand(i) for i in range(self.n_items)})),
        }
        return Encoder(SCHEMA, vocabularies, rules, SimilarityScale(0.0, 1.0, 6), self._catalogue())

    def _catalogue(self) -> Catalogue:
        fields = {
            "category": [self._category(number) for number in range(self.n_items)],
            "brand": [self._brand(number) for number in range(self.n_items)],
        }
        popularity = 1.0 / np.arange(1, self.n_items + 1, dtype=np.float32)
        return Catalogue.build(self.item_ids, fields, codes=self._codes(), popularity=popularity)

    def _codes(self) -> np.ndarray:
        """int8 [M D], made in pieces: a million items in float64 would be a gigabyte."""
        chance = np.random.default_rng(1)
        centres = chance.normal(size=(self.n_centres, DIMENSIONS)).astype(np.float32)
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        codes = np.empty((self.n_items, DIMENSIONS), np.int8)
        for start in range(0, self.n_items, 1 << 16):
            numbers = np.arange(start, min(start + (1 << 16), self.n_items))
            noise = chance.standard_normal((len(numbers), DIMENSIONS), np.float32) * NOISE
            codes[numbers] = np.clip(np.rint(256 * (centres[numbers % self.n_centres] + noise)), -127, 127)
        return codes

    def _category(self, item: int) -> str:
        return f"category-{item % self.n_centres % 500}"

    def _brand(self, item: int) -> str:
        return f"brand-{item * 7919 % 20_000 % max(2, self.n_items // 20)}"

    @staticmethod
    def user(number: int) -> str:
        """A user's id."""
        return f"user-{number:06d}"

    def trigger(self, number: int) -> int:
        """The item that opened page `number`."""
        return int(np.random.default_rng([2, number]).integers(self.n_items))

    def items_like(self, number: int, purpose: int, n: int) -> list[str]:
        """`n` different items for page `number`, half of them from its trigger's centre, in no order."""
        chance = np.random.default_rng([3, purpose, number])
        of_centre = np.arange(self.trigger(number) % self.n_centres, self.n_items, self.n_centres)
        own = chance.choice(of_centre, min(len(of_centre), int(n * OWN_SHARE)), replace=False)
        taken = dict.fromkeys(own.tolist())
        while len(taken) < min(n, self.n_items):
            taken.update(dict.fromkeys(chance.integers(0, self.n_items, n - len(taken)).tolist()))
        return [self.item_ids[item] for item in chance.permutation(list(taken))]

    def candidates(self, number: int, n: int) -> list[str]:
        """The candidates of page `number`."""
        return self.items_like(number, 1, n)

    def behaviours(self, number: int, now_ms: int, n: int | None = None) -> list[dict[str, Any]]:
        """What the visitor of page `number` did before, newest last, spread over the window's greater part."""
        items = self.items_like(number, 2, self.n_behaviours if n is None else n)
        step_ms = self.window_days * DAY_MS * 9 // 10 // max(1, len(items))
        times = [now_ms - DAY_MS // 24 - step_ms * place for place in range(len(items), 0, -1)]
        return [{"item": item, "at": at, "type": "click"} for item, at in zip(items, times, strict=True)]

    def row(
        self, number: int, n_candidates: int, now_ms: int, n_behaviours: int | None = None, user: int | None = None
    ) -> dict[str, Any]:
        """Page `number` as a row of the contract."""
        user = number % self.n_users if user is None else user
        return {
            "request_id": f"page-{number}",
            "requested_at": now_ms,
            "user": {"user": self.user(user), "gender": "f", "age": str(user % 8), "city": f"city-{user % 50}"},
            "context": {"device": "phone", "hour": "20"},
            "trigger": self.item_ids[self.trigger(number)],
            "behaviours": self.behaviours(number, now_ms, n_behaviours),
            "candidates": self.candidates(number, n_candidates),
        }

    def batch(
        self, numbers: Sequence[int], n_candidates: int, now_ms: int, n_behaviours: int | None = None
    ) -> RequestBatch:
        """Several pages."""
        return RequestBatch.from_rows([self.row(number, n_candidates, now_ms, n_behaviours) for number in numbers])
