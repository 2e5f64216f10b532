"""A small shop world with known intents: what `daian data simulate` writes, and what tests and the demo train on.

It follows the behaviour that the papers describe, not any model's form. Items live in a tree (top category, leaf,
topic) and have vectors; users have lasting tastes, a short-term interest that moves with each click, a price they like,
and are more or less *specific*: after opening a trigger a specific user looks for items like it, a broad one roams
(DAIAN section 1). Each visit draws an intent over similarity levels around that; clicks are independent coin flips per
candidate whose odds combine intent, taste, interest, quality and price. Popularity is skewed, some items appear late
(cold), some have no vector, some visitors are anonymous. Every draw comes from one seeded generator; requests are made
in time order and written as they are made.

Beside the request files lies `truth.parquet`, what no model may see: the true click probability of every candidate and
the true intent of every request.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int8, Int64

from service.contract.catalogue import Catalogue
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from training.data.dataset import Dataset, Items, PreparedWriter, Split

DAY_MS = 86_400_000
FIRST_DAY_MS = 20_454 * DAY_MS  # 2026-01-01
N_DAYS = 8
DIMENSIONS = 64
N_LEVELS = 6
CLICK_RATE = 0.08
_CHUNK = 512  # requests made at once; hidden interests move between chunks
_DRAWN = 30  # candidates drawn before repeats, the trigger and unlaunched items fall out
_SHOWN = 20  # candidates on a page, at most

SCHEMA = FeatureSchema(
    user=(
        Field("user", "user", "id", min_count=2),
        Field("age_band", "user", "category"),
        Field("orders", "user", "number", n_bins=8),
    ),
    context=(Field("hour", "context", "category"), Field("device", "context", "category")),
    item=(
        Field("item", "item", "id", min_count=2),
        Field("leaf", "item", "category"),
        Field("top", "item", "category"),
        Field("brand", "item", "id", min_count=2),
        Field("price", "item", "number", n_bins=16),
    ),
    leaf_category="leaf",
)


@dataclass(frozen=True)
class World:
    """How large the world is."""

    n_requests: int = 20_000
    n_users: int = 3_000
    n_items: int = 2_000
    seed: int = 0


class Shop(NamedTuple):
    """The items, hidden properties included. They are numbered topic by topic, so a topic, leaf or top is a range."""

    ids: np.ndarray
    topic: Int64[np.ndarray, " M"]
    leaf: Int64[np.ndarray, " M"]
    top: Int64[np.ndarray, " M"]
    brand: Int64[np.ndarray, " M"]
    log_price: Float64[np.ndarray, " M"]
    quality: Float64[np.ndarray, " M"]
    demand: Float64[np.ndarray, " M1"]  # running sum of popularity, from 0
    launched_at: Int64[np.ndarray, " M"]
    vectors: Float32[np.ndarray, "M D"]  # unit length, what the shop's encoder saw of the item
    has_vector: Bool[np.ndarray, " M"]
    top_specific: Float64[np.ndarray, " T"]  # in some categories people compare, in others they browse


class Users(NamedTuple):
    """The users, hidden properties included. `interest` moves while the world runs."""

    ids: np.ndarray
    favourite_leaves: Int64[np.ndarray, "V 3"]
    taste: Float32[np.ndarray, "V D"]
    interest: Float32[np.ndarray, "V D"]
    last_clicked: Int64[np.ndarray, " V"]
    specific: Float64[np.ndarray, " V"]
    log_price: Float64[np.ndarray, " V"]
    activity: Float64[np.ndarray, " V"]
    age_band: np.ndarray
    orders: Int64[np.ndarray, " V"]


class Visits(NamedTuple):
    """A chunk of page views in time order: shown candidates (padded with -1), their true odds, what was clicked."""

    at: Int64[np.ndarray, " C"]
    user: Int64[np.ndarray, " C"]
    trigger: Int64[np.ndarray, " C"]
    shown: Int64[np.ndarray, "C P"]
    probability: Float64[np.ndarray, "C P"]
    level: Int64[np.ndarray, "C P"]
    intent: Float64[np.ndarray, "C S"]
    clicked: Bool[np.ndarray, "C P"]


def simulate(
    out: Path, world: World, overwrite: bool = False, progress: Callable[[int], None] | None = None
) -> Dataset:
    """Makes the world and writes it as a prepared folder: days 1-6 train, day 7 validation, day 8 test.

    `progress` is told the number of requests made with each chunk. The same world gives the same files, byte for byte.
    """
    random = np.random.default_rng(world.seed)
    shop = _make_shop(random, world.n_items)
    users = _make_users(random, world.n_users, shop)
    dataset = Dataset("simulated", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0), n_levels=N_LEVELS)
    items = Items(shop.ids.tolist(), _item_fields(shop), shop.vectors, has_vector=shop.has_vector)
    with PreparedWriter(out, dataset, items, overwrite) as writer:
        writer.note("world", {"users": world.n_users, "items": world.n_items, "seed": world.seed})
        with pq.ParquetWriter(writer.extra_file("truth.parquet"), _TRUTH, write_page_checksum=True) as truth:
            journal = _Journal(random, shop, users)
            for visits in _run(random, world, shop, users, writer.catalogue):
                pages = journal.record(visits)
                writer.write(pages.split, pages.batch, pages.clicks)
                truth.write_table(_truth(visits, pages.batch))
                if progress is not None:
                    progress(len(visits.at))
    return writer.dataset


# ---- the shop -------------------------------------------------------------------------------------------------------


def _make_shop(random: np.random.Generator, n_items: int) -> Shop:
    n_topics = max(8, round(np.sqrt(n_items) * 2.5))
    leaf_of_topic = np.sort(np.arange(n_topics) % max(4, n_topics // 4))
    top_of_leaf = np.sort(np.arange(leaf_of_topic.max() + 1) % max(2, (leaf_of_topic.max() + 1) // 5))
    topic = np.sort(random.integers(0, n_topics, n_items))
    leaf = leaf_of_topic[topic]
    top = top_of_leaf[leaf]
    popularity = np.exp(1.3 * random.standard_normal(n_items))
    is_late = random.random(n_items) < 0.08
    n_brands = max(5, n_items // 40)
    return Shop(
        ids=random.permutation(_names("i", n_items)),  # a name must not tell the topic
        topic=topic,
        leaf=leaf,
        top=top,
        brand=np.minimum(random.geometric(3 / n_brands, n_items), n_brands),
        log_price=3 + 0.8 * random.standard_normal(leaf.max() + 1)[leaf] + 0.4 * random.standard_normal(n_items),
        quality=0.3 * np.log(popularity) + 0.4 * random.standard_normal(n_items),
        demand=np.concatenate([[0.0], np.cumsum(popularity)]),
        launched_at=np.where(is_late, FIRST_DAY_MS + random.integers(1, N_DAYS * DAY_MS, n_items), 0),
        vectors=_item_vectors(random, topic, leaf, top),
        has_vector=random.random(n_items) >= 0.02,
        top_specific=random.normal(0, 0.8, int(top.max()) + 1),
    )


def _item_vectors(
    random: np.random.Generator,
    topic: Int64[np.ndarray, " M"],
    leaf: Int64[np.ndarray, " M"],
    top: Int64[np.ndarray, " M"],
) -> Float32[np.ndarray, "M D"]:
    """Unit vectors. Expected cosine: same topic about 0.6-0.95, same leaf 0.65 of that, same top 0.35, else near 0."""
    base = (
        np.sqrt(0.35) * _unit(random.standard_normal((int(top.max()) + 1, DIMENSIONS)))[top]
        + np.sqrt(0.30) * _unit(random.standard_normal((int(leaf.max()) + 1, DIMENSIONS)))[leaf]
        + np.sqrt(0.35) * _unit(random.standard_normal((int(topic.max()) + 1, DIMENSIONS)))[topic]
    )
    typical = random.uniform(0.6, 0.98, (len(topic), 1))
    noise = _unit(random.standard_normal((len(topic), DIMENSIONS)))
    return _unit(np.sqrt(typical) * _unit(base) + np.sqrt(1 - typical) * noise).astype(np.float32)


def _item_fields(shop: Shop) -> dict[str, list[str | float | None]]:
    return {
        "leaf": [f"leaf{number}" for number in shop.leaf],
        "top": [f"top{number}" for number in shop.top],
        "brand": [f"brand{number}" for number in shop.brand],
        "price": np.exp(shop.log_price).round(2).tolist(),
    }


def _make_users(random: np.random.Generator, n_users: int, shop: Shop) -> Users:
    n_leaves = int(shop.leaf.max()) + 1
    centres = np.stack([shop.vectors[shop.leaf == leaf].sum(axis=0) for leaf in range(n_leaves)])
    favourites = random.integers(0, n_leaves, (n_users, 3))
    taste = _unit(
        _unit(centres + 1e-6)[favourites].sum(axis=1) + 0.4 * _unit(random.standard_normal((n_users, DIMENSIONS)))
    )
    age = random.integers(0, 6, n_users)
    spends = random.standard_normal(n_users)
    return Users(
        ids=_names("u", n_users),
        favourite_leaves=favourites,
        taste=taste.astype(np.float32),
        interest=np.zeros((n_users, DIMENSIONS), np.float32),
        last_clicked=np.full(n_users, -1),
        specific=random.beta(0.9, 0.9, n_users),  # many at the ends: some always compare, some always roam
        log_price=3 + 0.15 * (age - 2.5) + 0.6 * spends,
        activity=np.cumsum(np.exp(1.1 * random.standard_normal(n_users))),
        age_band=np.array([f"{10 * band + 15}-{10 * band + 24}" for band in age], dtype=object),
        orders=random.poisson(np.exp(1.2 + 0.5 * spends)),
    )


# ---- page views -----------------------------------------------------------------------------------------------------


def _run(random: np.random.Generator, world: World, shop: Shop, users: Users, catalogue: Catalogue) -> Iterator[Visits]:
    """The page views of all days in time order. No chunk crosses a day."""
    bias: float | None = None
    for day in range(N_DAYS):
        n_requests = world.n_requests // N_DAYS + (day < world.n_requests % N_DAYS)
        # two waves a day, noon and evening; a third of the visits come at any hour
        hour = np.where(
            random.random(n_requests) < 0.33, random.uniform(0, 24, n_requests), random.normal(20, 2, n_requests)
        )
        times = FIRST_DAY_MS + day * DAY_MS + (np.sort(hour % 24) * 3_600_000).astype(np.int64)
        for start in range(0, n_requests, _CHUNK):
            drawn = _draw_pages(random, times[start : start + _CHUNK], shop, users)
            visits, bias = _decide(random, drawn, shop, users, catalogue, bias)
            _remember(visits, shop, users)
            yield visits


def _draw_pages(random: np.random.Generator, at: Int64[np.ndarray, " C"], shop: Shop, users: Users) -> Visits:
    """Who comes, which item was opened, what the shop's present recommender shows below it."""
    n = len(at)
    user = np.searchsorted(users.activity, random.random(n) * users.activity[-1])
    trigger = _draw_triggers(random, at, user, shop, users)
    drawn = np.concatenate(
        [
            _draw_in(random, shop, shop.topic, shop.topic[trigger], 8),
            _draw_in(random, shop, shop.leaf, shop.leaf[trigger], 7),
            _draw_in(random, shop, shop.top, shop.top[trigger], 6),
            _draw_any(random, shop, (n, _DRAWN - 21)),
        ],
        axis=1,
    )
    drawn = random.permuted(drawn, axis=1)
    usable = ~_repeats(drawn) & (drawn != trigger[:, None]) & (shop.launched_at[drawn] <= at[:, None])
    place = np.cumsum(usable, axis=1)
    usable &= place <= _SHOWN
    shown = np.full((n, _SHOWN), -1)
    row, column = np.nonzero(usable)
    shown[row, place[row, column] - 1] = drawn[row, column]
    empty = np.zeros((n, 0))
    return Visits(at, user, trigger, shown, empty, empty.astype(np.int64), empty, empty.astype(bool))


def _draw_triggers(
    random: np.random.Generator, at: Int64[np.ndarray, " C"], user: Int64[np.ndarray, " C"], shop: Shop, users: Users
) -> Int64[np.ndarray, " C"]:
    """Half from a favourite leaf, a third near the last click, the rest from what everybody opens."""
    n = len(at)
    favourite = users.favourite_leaves[user, random.integers(0, 3, n)]
    last = users.last_clicked[user]
    choice = random.random(n)
    popular = _draw_any(random, shop, (n, 1))[:, 0]
    trigger = np.where(choice < 0.5, _draw_in(random, shop, shop.leaf, favourite, 1)[:, 0], popular)
    near = _draw_in(random, shop, shop.topic, shop.topic[last], 1)[:, 0]
    trigger = np.where((choice > 0.67) & (last >= 0), near, trigger)
    return np.where(shop.launched_at[trigger] <= at, trigger, _oldest(shop))


def _decide(
    random: np.random.Generator, pages: Visits, shop: Shop, users: Users, catalogue: Catalogue, bias: float | None
) -> tuple[Visits, float]:
    """Fills in intent, odds and clicks. The first pages set `bias`, so that about CLICK_RATE of all are clicked."""
    is_shown = pages.shown >= 0
    triggers = np.repeat(pages.trigger + 1, pages.shown.shape[1])  # catalogue rows start at 1
    similarity = catalogue.similarity(triggers, np.where(is_shown, pages.shown + 1, 0).ravel()).reshape(
        pages.shown.shape
    )
    level = SimilarityScale(0.0, 1.0, N_LEVELS).level(similarity)
    intent = _intents(random, pages, shop, users)
    # no vector to compare is not the same as not similar: such an item is liked as the average level is
    wanted = np.where(level > 0, np.take_along_axis(intent, np.maximum(level - 1, 0), axis=1), 1 / N_LEVELS)
    vectors = shop.vectors[pages.shown]
    odds = (
        1.2 * np.log(N_LEVELS * wanted + 0.1)
        + 2.0 * np.einsum("cd,cpd->cp", users.taste[pages.user], vectors)
        + 1.5 * np.einsum("cd,cpd->cp", users.interest[pages.user], vectors)
        + shop.quality[pages.shown]
        - 0.5 * np.abs(shop.log_price[pages.shown] - users.log_price[pages.user][:, None])
    )
    if bias is None:
        bias = _bias_for(odds[is_shown])
    probability = np.where(is_shown, 1 / (1 + np.exp(-(odds + bias))), 0.0)
    clicked = random.random(probability.shape) < probability
    return pages._replace(probability=probability, level=level, intent=intent, clicked=clicked), bias


def _intents(random: np.random.Generator, pages: Visits, shop: Shop, users: Users) -> Float64[np.ndarray, "C S"]:
    """What each visitor looks for: weights over levels, peaked near the top when specific, wide and low when not."""
    last = users.last_clicked[pages.user]
    comparing = np.where(last >= 0, shop.leaf[last] == shop.leaf[pages.trigger], False)
    drive = (
        5.0 * (users.specific[pages.user] - 0.5)
        + shop.top_specific[shop.top[pages.trigger]]
        + 1.5 * (comparing - 0.4)
        + 0.5 * random.standard_normal(len(pages.at))
    )
    specific = 1 / (1 + np.exp(-drive))
    middle = 0.4 + (N_LEVELS - 1.2) * specific
    width = 0.9 + 0.9 * (1 - specific)
    distance = (np.arange(N_LEVELS) - middle[:, None]) / width[:, None]
    weights = np.exp(-0.5 * distance**2) + 0.02
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _bias_for(odds: Float64[np.ndarray, " X"]) -> float:
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if (1 / (1 + np.exp(-(odds + middle)))).mean() > CLICK_RATE else (middle, high)
    return (low + high) / 2


def _remember(visits: Visits, shop: Shop, users: Users) -> None:
    """Interests move towards what was opened and clicked, in time order."""
    for row in range(len(visits.at)):
        user = visits.user[row]
        seen = np.append(visits.trigger[row], visits.shown[row][visits.clicked[row]])
        users.interest[user] = 0.7 * users.interest[user] + 0.3 * shop.vectors[seen].mean(axis=0)
        users.last_clicked[user] = seen[-1]


def _draw_in(
    random: np.random.Generator, shop: Shop, group: Int64[np.ndarray, " M"], wanted: Int64[np.ndarray, " C"], n: int
) -> Int64[np.ndarray, "C n"]:
    """Items of one group (a topic, leaf or top: a range of items) in proportion to popularity; of all if empty."""
    first, last = np.searchsorted(group, wanted, "left"), np.searchsorted(group, wanted, "right")
    empty = last == first
    first, last = np.where(empty, 0, first), np.where(empty, len(group), last)
    low, high = shop.demand[first][:, None], shop.demand[last][:, None]
    drawn = np.searchsorted(shop.demand, low + (high - low) * random.random((len(wanted), n)), "right") - 1
    return np.asarray(np.clip(drawn, 0, len(group) - 1))


def _draw_any(random: np.random.Generator, shop: Shop, shape: tuple[int, int]) -> Int64[np.ndarray, "C n"]:
    drawn = np.searchsorted(shop.demand, random.random(shape) * shop.demand[-1], "right") - 1
    return np.asarray(np.clip(drawn, 0, len(shop.topic) - 1))


def _oldest(shop: Shop) -> int:
    return int(np.argmin(shop.launched_at))


def _repeats(drawn: Int64[np.ndarray, "C n"]) -> Bool[np.ndarray, "C n"]:
    """True where the same item stands earlier in the row."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, axis=1)
    again = np.zeros(drawn.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeats = np.empty_like(again)
    np.put_along_axis(repeats, order, again, axis=1)
    return repeats


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _where(known: Bool[np.ndarray, " C"], values: np.ndarray) -> np.ndarray:
    """The values where they are known, None elsewhere."""
    masked = values.astype(object)
    masked[~known] = None
    return masked


def _names(letter: str, n: int, first: int = 0) -> np.ndarray:
    return np.array([f"{letter}{number:06d}" for number in range(first, first + n)], dtype=object)


# ---- what the logs show ---------------------------------------------------------------------------------------------

_TRUTH = pa.schema(
    [
        ("request_id", pa.string()),
        ("intent", pa.list_(pa.float64())),  # the drawn intent over levels
        (
            "click_share",
            pa.list_(pa.float64()),
        ),  # expected share of this page's clicks by level: what eq. (1) estimates
        ("candidate", pa.list_(pa.string())),
        ("probability", pa.list_(pa.float64())),
    ]
)
_ANONYMOUS, _NO_AGE, _CART, _PURCHASE = 0.02, 0.03, 0.08, 0.03  # shares of visits, users, clicks, clicks
_READING_MS = 9_000  # mean time from one click of a page to the next
_OPENED_MS = 1_500  # the trigger was clicked this long before its page was requested


class _Pages(NamedTuple):
    split: Split
    batch: RequestBatch
    clicks: Int8[np.ndarray, " N"]


class _Journal:
    """Everybody's events so far. A request shows those strictly before it, so reading times decide what it shows."""

    def __init__(self, random: np.random.Generator, shop: Shop, users: Users) -> None:
        self._random = random
        self._shop = shop
        self._users = users
        self._events: dict[int, list[tuple[int, int, str]]] = {}
        self._no_age = random.random(len(users.ids)) < _NO_AGE
        self._n_requests = 0

    def record(self, visits: Visits) -> _Pages:
        """The request-file form of a chunk of page views; their clicks become events."""
        is_known = self._random.random(len(visits.at)) >= _ANONYMOUS
        histories = [self._visit(visits, row) if known else [] for row, known in enumerate(is_known)]
        flat = [event for history in histories for event in history]
        is_shown = visits.shown >= 0
        hour = visits.at // 3_600_000 % 24
        user = _where(is_known, self._users.ids[visits.user])
        age_band = _where(is_known & ~self._no_age[visits.user], self._users.age_band[visits.user])
        orders = _where(is_known, self._users.orders[visits.user].astype(object))
        device = np.array(["phone", "tablet", "desktop"], object)[
            self._random.choice(3, len(user), p=[0.75, 0.1, 0.15])
        ]
        batch = RequestBatch(
            request_id=_names("r", len(user), self._n_requests),
            requested_at=visits.at,
            user={"user": user, "age_band": age_band, "orders": orders},
            context={"hour": np.array([str(h) for h in hour], object), "device": device},
            trigger=self._shop.ids[visits.trigger],
            behaviour_item=self._shop.ids[np.array([item for _, item, _ in flat], dtype=np.int64)],
            behaviour_at=np.array([at for at, _, _ in flat], dtype=np.int64),
            behaviour_type=np.array([kind for _, _, kind in flat], dtype=object),
            behaviour_offsets=np.cumsum([0] + [len(history) for history in histories]),
            candidate=self._shop.ids[visits.shown[is_shown]],
            candidate_offsets=np.concatenate([[0], np.cumsum(is_shown.sum(axis=1))]),
        )
        self._n_requests += len(user)
        return _Pages(_split_of(visits.at), batch, visits.clicked[is_shown].astype(np.int8))

    def _visit(self, visits: Visits, row: int) -> list[tuple[int, int, str]]:
        """The history that this page's request shows; then the page's own events happen."""
        at, trigger = int(visits.at[row]), int(visits.trigger[row])
        events = self._events.setdefault(int(visits.user[row]), [])
        insort(events, (at - _OPENED_MS, trigger, "click"))
        history = events[: bisect_left(events, (at,))][-HistoryRules().kept :]
        clicked_at = at
        for item in visits.shown[row][visits.clicked[row]].tolist():
            clicked_at += 1_000 + int(self._random.exponential(_READING_MS))
            insort(events, (clicked_at, item, "click"))
            for kind, share, later in (("cart", _CART, 20_000), ("purchase", _PURCHASE, 60_000)):
                if self._random.random() < share:
                    insort(events, (clicked_at + later, item, kind))
        return history


def _split_of(at: Int64[np.ndarray, " C"]) -> Split:
    day = int(at[0] - FIRST_DAY_MS) // DAY_MS
    return "train" if day < N_DAYS - 2 else "validation" if day == N_DAYS - 2 else "test"


def _truth(visits: Visits, batch: RequestBatch) -> pa.Table:
    expected = np.stack([(visits.probability * (visits.level == j + 1)).sum(axis=1) for j in range(N_LEVELS)], axis=1)
    share = expected / np.maximum(expected.sum(axis=1, keepdims=True), 1e-12)
    shown = visits.shown >= 0
    columns = [
        pa.array(batch.request_id, pa.string()),
        pa.array(visits.intent.tolist()),
        pa.array(share.tolist()),
        pa.ListArray.from_arrays(pa.array(batch.candidate_offsets, pa.int32()), pa.array(batch.candidate, pa.string())),
        pa.ListArray.from_arrays(pa.array(batch.candidate_offsets, pa.int32()), pa.array(visits.probability[shown])),
    ]
    return pa.table(columns, schema=_TRUTH)
