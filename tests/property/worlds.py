"""A small world for the contract's properties: one encoder, and Hypothesis strategies for raw requests about it."""

from functools import cache

import numpy as np
from hypothesis import strategies as st

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import NumberBins, Vocabulary

NOW = 1_760_000_000_000
ITEMS = [f"item-{k}" for k in range(40)]
RULES = HistoryRules(
    max_length=5, related_max=3, related_searched=8, related_threshold=0.2, related_window_s=30 * 86_400
)


@cache
def catalogue() -> Catalogue:
    """40 items; every fifth has no vector, every seventh no price."""
    chance = np.random.default_rng(7)
    vectors = chance.normal(size=(len(ITEMS), 16)).astype(np.float32)
    vectors[::5] = 0
    fields = {
        "category": [f"c{k % 4}" for k in range(len(ITEMS))],
        "price": [None if k % 7 == 0 else float(k) for k in range(len(ITEMS))],
    }
    return Catalogue.build(ITEMS, fields, vectors=vectors)


@cache
def encoder() -> Encoder:
    """Knows the first 30 items, 10 users, 3 surfaces."""
    schema = FeatureSchema(
        user=(Field("user", "user", "id"), Field("age", "user", "number")),
        context=(Field("surface", "context", "category"),),
        item=(Field("item", "item", "id"), Field("category", "item", "category"), Field("price", "item", "number")),
        leaf_category="category",
    )
    vocabularies = {
        "user.user": Vocabulary.from_values([f"u{k}" for k in range(10)]),
        "user.age": NumberBins(np.array([20, 40], np.float32)),
        "context.surface": Vocabulary.from_values(["home", "detail", "cart"]),
        "item.item": Vocabulary.from_values(ITEMS[:30]),
        "item.category": Vocabulary.from_values(["c0", "c1", "c2"]),
        "item.price": NumberBins(np.array([5, 10, 20], np.float32)),
    }
    return Encoder(schema, vocabularies, RULES, SimilarityScale(-1.0, 1.0, 4), catalogue())


# known items mostly; else anything a client may send, lone surrogates and NUL included
item_ids = st.sampled_from(ITEMS) | st.text(st.characters(codec=None), max_size=6)
times = st.integers(NOW - 40 * 86_400_000, NOW + 3_600_000) | st.integers(NOW - 3_600_000, NOW + 1_000)
behaviours = st.fixed_dictionaries(
    {"item": item_ids, "at": times, "type": st.sampled_from(["click", "click", "cart", "impression", "?"])}
)
users = st.fixed_dictionaries(
    {"user": st.none() | st.text(max_size=4) | st.sampled_from([f"u{k}" for k in range(10)])},
    optional={"age": st.none() | st.floats() | st.text(max_size=3), "unheard": st.integers()},
)
few_rows = st.fixed_dictionaries(
    {
        "request_id": st.uuids().map(str),
        "requested_at": st.integers(NOW - 86_400_000, NOW),
        "user": users,
        "context": st.dictionaries(st.sampled_from(["surface", "other"]), st.none() | st.text(max_size=4)),
        "trigger": item_ids,
        "behaviours": st.lists(behaviours, max_size=14),
        "candidates": st.lists(item_ids, max_size=8),
    }
)

# Histories that are cut, as live ones are: more of everything than the rules keep, several in one second, some just in
# and just out of each window, of few items, so that times and similarities are equal as well.
_EDGES_S = [edge + k for edge in (RULES.window_s, RULES.related_window_s, RULES.opening_window_s) for k in (-1, 0, 1)]
long_behaviours = st.fixed_dictionaries(
    {
        "item": st.sampled_from([*ITEMS[1:5], *ITEMS[6:9], ITEMS[10], "item-unheard"]),
        "at": (st.integers(1, 40) | st.sampled_from(_EDGES_S)).map(lambda age_s: NOW - 1_000 * age_s),
        "type": st.sampled_from(["click", "cart"]),
    }
)
full_rows = st.fixed_dictionaries(
    {
        "request_id": st.uuids().map(str),
        "requested_at": st.just(NOW),
        "user": users,
        "context": st.just({"surface": "home"}),
        "trigger": st.sampled_from(ITEMS[1:9]),
        "behaviours": st.lists(long_behaviours, min_size=12, max_size=30),
        "candidates": st.lists(item_ids, max_size=3),
    }
)
rows = few_rows | full_rows


def batch(*given: dict[str, object]) -> RequestBatch:
    """The rows as one batch."""
    return RequestBatch.from_rows(given)
