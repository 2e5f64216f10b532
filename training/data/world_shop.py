"""The simulated shop: a category tree, what is written about each item, vectors of that, which leaves go together.

Called by `training.data.synthetic`; docs/world.md states every distribution. Nothing here knows a visitor.

An item's vector is what a text encoder of the shop would make of its words: each word has a random direction, and the
vector is their sum weighted by tf-idf, so that every cosine comes from shared words and is as noisy as an encoder's.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

DIMENSIONS = 64
LATE, WITHOUT_VECTOR = 0.10, 0.02  # shares of the items
POPULARITY_SPREAD = 1.5  # of the log-normal popularity: a tenth of the items has more than half of it
_TOPIC_SPREAD = 0.5  # of the log-normal sizes of topics
_WORDS = 40  # written about an item at most; at least three quarters as many
_VOCABULARY = {"topic": 8, "leaf": 8, "top": 8, "general": 400}  # words of each topic, leaf, top; of all items
_SHARE = {"topic": 0.42, "leaf": 0.32, "top": 0.20}  # of a plainly written item's words; the rest are general
_PLAIN = (0.6, 1.0)  # how plainly an item is written: those shares are multiplied by a number from this range
_GOES_TOGETHER = 0.8  # of the leaves in each of the two matchings below
_REWRITTEN = (0.0, 0.25)  # share of a listing's words that are its own, not its product's
_PER_PRODUCT = 10  # listings of one product, on average
_CHUNK = 4_096  # items whose word directions are in memory at once


class Shop(NamedTuple):
    """The items, hidden properties included. Numbered product by product: a product, topic, leaf or top is a range."""

    ids: np.ndarray
    product: Int64[np.ndarray, " M"]
    topic: Int64[np.ndarray, " M"]
    leaf: Int64[np.ndarray, " M"]
    top: Int64[np.ndarray, " M"]
    brand: Int64[np.ndarray, " M"]
    log_price: Float64[np.ndarray, " M"]
    quality: Float64[np.ndarray, " M"]
    popularity: Float64[np.ndarray, " M"]
    demand: Float64[np.ndarray, " M1"]  # running sum of popularity, from 0
    launched_at: Int64[np.ndarray, " M"]  # ms after the first midnight; 0: was always there
    vectors: Float32[np.ndarray, "M D"]  # unit length, of all items; those without one are cut out of the catalogue
    has_vector: Bool[np.ndarray, " M"]
    goes_with: Int64[np.ndarray, "K 2"]  # leaves of other tops that a leaf goes together with, -1 for none
    top_specific: Float64[np.ndarray, " T"]  # in some categories people compare, in others they browse


def make_shop(random: np.random.Generator, n_items: int, days_ms: int) -> Shop:
    """Draws a shop whose late items appear during the first `days_ms` milliseconds."""
    n_topics = max(8, round(np.sqrt(n_items) * 2.5))
    leaf_of_topic = np.sort(np.arange(n_topics) % max(4, n_topics // 4))
    top_of_leaf = np.sort(np.arange(leaf_of_topic.max() + 1) % max(2, (leaf_of_topic.max() + 1) // 5))
    size = np.exp(_TOPIC_SPREAD * random.standard_normal(n_topics))
    topic_of_product = np.sort(random.choice(n_topics, max(n_topics, n_items // _PER_PRODUCT), p=size / size.sum()))
    product = np.sort(random.integers(0, len(topic_of_product), n_items))
    topic = topic_of_product[product]
    leaf, top = leaf_of_topic[topic], top_of_leaf[leaf_of_topic[topic]]
    popularity = np.exp(POPULARITY_SPREAD * random.standard_normal(n_items))
    is_late = random.random(n_items) < LATE
    n_brands = max(5, n_items // 40)
    brand = np.minimum(random.geometric(3 / n_brands, n_items), n_brands)
    return Shop(
        ids=random.permutation(names("i", n_items)),  # a name must not tell the topic
        product=product,
        topic=topic,
        leaf=leaf,
        top=top,
        brand=brand,
        log_price=3 + 0.8 * random.standard_normal(len(top_of_leaf))[leaf] + 0.4 * random.standard_normal(n_items),
        quality=(
            0.2 * np.log(popularity)
            + 0.3 * random.standard_normal(n_brands + 1)[brand]
            + 0.4 * random.standard_normal(n_items)
        ),
        popularity=popularity,
        demand=np.concatenate([[0.0], np.cumsum(popularity)]),
        launched_at=np.where(is_late, random.integers(1, days_ms, n_items), 0),
        vectors=_vectors_of(random, _texts(random, product, topic, leaf, top)),
        has_vector=random.random(n_items) >= WITHOUT_VECTOR,
        goes_with=_matchings(random, top_of_leaf),
        top_specific=random.normal(0, 0.6, int(top_of_leaf.max()) + 1),
    )


def item_fields(shop: Shop) -> dict[str, list[str | float | None]]:
    """The columns of the catalogue."""
    return {
        "leaf": [f"leaf{number}" for number in shop.leaf],
        "top": [f"top{number}" for number in shop.top],
        "brand": [f"brand{number}" for number in shop.brand],
        "price": np.exp(shop.log_price).round(2).tolist(),
    }


def names(letter: str, n: int, first: int = 0) -> np.ndarray:
    """Ids such as i000012."""
    return np.array([f"{letter}{number:06d}" for number in range(first, first + n)], dtype=object)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions at length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _texts(
    random: np.random.Generator,
    product: Int64[np.ndarray, " M"],
    topic: Int64[np.ndarray, " M"],
    leaf: Int64[np.ndarray, " M"],
    top: Int64[np.ndarray, " M"],
) -> Int64[np.ndarray, "M W"]:
    """The words of each item: mostly its product's (as many sellers list one thing), some of its own; -1: no more."""
    first = np.searchsorted(product, product)  # the first listing of each item's product
    written, own = _words(random, topic, leaf, top)[first], _words(random, topic, leaf, top)
    rewritten = random.random(own.shape) < random.uniform(*_REWRITTEN, (len(own), 1))
    length = random.integers(3 * _WORDS // 4, _WORDS + 1, (len(own), 1))
    return np.where(np.arange(_WORDS) < length, np.where(rewritten, own, written), -1)


def _words(
    random: np.random.Generator,
    topic: Int64[np.ndarray, " M"],
    leaf: Int64[np.ndarray, " M"],
    top: Int64[np.ndarray, " M"],
) -> Int64[np.ndarray, "M W"]:
    """Words for each item out of its vocabularies, as numbers. Within a vocabulary word k is drawn as 1/k."""
    n_items = len(topic)
    plain = random.uniform(*_PLAIN, (n_items, 1))
    choice = random.random((n_items, _WORDS)) / plain
    bounds = np.cumsum(list(_SHARE.values()))
    words = np.empty((n_items, _WORDS), dtype=np.int64)
    taken = 0
    for source, (kind, group) in enumerate({"topic": topic, "leaf": leaf, "top": top, "general": None}.items()):
        size = _VOCABULARY[kind]
        weights = 1 / np.arange(1, size + 1)
        drawn = random.choice(size, (n_items, _WORDS), p=weights / weights.sum())
        if group is not None:
            drawn += group[:, None] * size
        here = np.searchsorted(bounds, choice, "right") == source
        words[here] = taken + drawn[here]
        taken += size if group is None else (int(group.max()) + 1) * size
    return words


def _vectors_of(random: np.random.Generator, words: Int64[np.ndarray, "M W"]) -> Float32[np.ndarray, "M D"]:
    """A random projection of the items' tf-idf weights (root of tf · ln(M / df)), at unit length."""
    n_words = int(words.max()) + 1
    directions = (random.standard_normal((n_words, DIMENSIONS)) / np.sqrt(DIMENSIONS)).astype(np.float32)
    words = np.sort(words, axis=1)
    is_first = np.ones(words.shape, dtype=bool)
    is_first[:, 1:] = words[:, 1:] != words[:, :-1]
    is_first &= words >= 0
    times = (words[:, :, None] == words[:, None, :]).sum(axis=2)
    n_items_with = np.bincount(words[is_first], minlength=n_words)
    weight = np.where(is_first, np.sqrt(times * np.log((len(words) + 1) / n_items_with[words])), 0.0)
    vectors = np.empty((len(words), DIMENSIONS), dtype=np.float32)
    for start in range(0, len(words), _CHUNK):
        part = slice(start, start + _CHUNK)
        vectors[part] = np.einsum("mw,mwd->md", weight[part].astype(np.float32), directions[words[part]])
    return unit(vectors).astype(np.float32)


def _matchings(random: np.random.Generator, top_of_leaf: Int64[np.ndarray, " K"]) -> Int64[np.ndarray, "K 2"]:
    """Two random matchings of leaves: tents go with sleeping bags and sleeping bags with tents. Never within a top."""
    n_leaves = len(top_of_leaf)
    partner = np.full((n_leaves, 2), -1)
    for matching in range(2):
        order = random.permutation(n_leaves)
        left, right = order[: n_leaves // 2], order[n_leaves // 2 : n_leaves // 2 * 2]
        kept = (top_of_leaf[left] != top_of_leaf[right]) & (random.random(len(left)) < _GOES_TOGETHER)
        kept &= partner[left, 0] != right
        partner[left[kept], matching], partner[right[kept], matching] = right[kept], left[kept]
    return partner
