"""One page view of the simulated shop: who comes, what was opened, what is shown where, what is wanted and clicked.

Called by `training.data.synthetic`; docs/world.md states every distribution and every weight below. All chance comes
in as numbers between 0 and 1, a fixed row of them for each page, so that a page does not depend on how many are made
at once. Nothing here knows a model.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from service.contract.catalogue import Catalogue
from service.contract.rules import MISSING, SimilarityScale
from training.data.world_shop import Shop
from training.data.world_users import Users

N_LEVELS = 6
SCALE = SimilarityScale(0.0, 1.0, N_LEVELS)
SHOWN = 20  # candidates on a page, at most
WISHES = ("alike", "variety", "together", "roam")
_DRAWN = {"product": 10, "topic": 8, "leaf": 6, "top": 3, "together": 4, "favourite": 3, "popular": 4}
_N_DRAWN = sum(_DRAWN.values())
_DEVICES, _DEVICE_SHARES = ("phone", "tablet", "desktop"), (0.75, 0.10, 0.15)
_ANONYMOUS = 0.02
_PHONE_BIAS = 1.25  # on a small screen the examination falls this much faster
_WISH_NOISE, _DRIVE_NOISE = 0.9, 0.6  # spread of what nothing in the log tells about a visit
_EVENING = 18
_FUZZY = 0.05  # what does not match the wish at all is still looked at
_N_FORESEEN = 16  # visits over which the foreseeable click probability is averaged

# how many numbers of its row each draw of a page takes
_DRAWS = {
    "user": 1,
    "anonymous": 1,
    "device": 1,
    "trigger": 3,
    "wish": 2 * (len(WISHES) + 1),
    "items": _N_DRAWN,
    "cut": _N_DRAWN,
    "order": _N_DRAWN,
    "click": SHOWN,
    "reading": SHOWN,
    "cart": SHOWN,
    "purchase": SHOWN,
}
N_CHANCES = sum(_DRAWS.values())
_SLICES = {
    name: slice(end - size, end)
    for (name, size), end in zip(_DRAWS.items(), np.cumsum([*_DRAWS.values()]), strict=True)
}

Chance = Float64[np.ndarray, "C _"]


class Visits(NamedTuple):
    """Page views, a row each: what was shown (padded with -1), how it was liked, what was clicked.

    `attractiveness`: the chance of a click on a candidate that is looked at. `probability`: the chance of a click where
    it stood. `foreseeable`: the attractiveness before this visit's wish was drawn. `history`: packed events, or -1.
    """

    at: Int64[np.ndarray, " C"]
    user: Int64[np.ndarray, " C"]
    is_known: Bool[np.ndarray, " C"]
    device: Int64[np.ndarray, " C"]
    trigger: Int64[np.ndarray, " C"]
    shown: Int64[np.ndarray, "C P"]
    level: Int64[np.ndarray, "C P"]
    wish: Float64[np.ndarray, "C W"]
    intent: Float64[np.ndarray, "C S"]
    attractiveness: Float64[np.ndarray, "C P"]
    foreseeable: Float64[np.ndarray, "C P"]
    probability: Float64[np.ndarray, "C P"]
    clicked: Bool[np.ndarray, "C P"]
    history: Int64[np.ndarray, "C H"]


class Taste(NamedTuple):
    """What makes a candidate liked on a page, in three parts that do not depend on each other.

    `drive` (log odds) chooses between wishes; `fits[w]` says how well each candidate fits wish w; `liking` is the rest.
    """

    drive: Float64[np.ndarray, " C"]
    has_partner: Bool[np.ndarray, " C"]
    fits: Float64[np.ndarray, "W C P"]
    liking: Float64[np.ndarray, "C P"]


class Page(NamedTuple):
    """What the shop shows: candidates in their order on the page (padded with -1), how closely each is looked at."""

    shown: Int64[np.ndarray, "C P"]
    examined: Float64[np.ndarray, "C P"]


def draws(chance: Chance, name: str) -> Chance:
    """The numbers of one draw."""
    return chance[:, _SLICES[name]]


def who_comes(chance: Chance, users: Users) -> Int64[np.ndarray, " C"]:
    """Users in proportion to their activity."""
    return np.asarray(np.searchsorted(users.activity, draws(chance, "user")[:, 0] * users.activity[-1], "right"))


def which_device(chance: Chance) -> Int64[np.ndarray, " C"]:
    """The device, of DEVICE_NAMES."""
    return np.searchsorted(np.cumsum(_DEVICE_SHARES[:-1]), draws(chance, "device")[:, 0], "right")


DEVICE_NAMES = np.array(_DEVICES, dtype=object)


def who_is_known(chance: Chance) -> Bool[np.ndarray, " C"]:
    """False for visitors that are not logged in."""
    return np.asarray(draws(chance, "anonymous")[:, 0] >= _ANONYMOUS)


def draw_triggers(
    chance: Chance, at: Int64[np.ndarray, " C"], user: Int64[np.ndarray, " C"], shop: Shop, users: Users
) -> Int64[np.ndarray, " C"]:
    """The opened item: of a favourite leaf, the last click, near it, or what everybody opens. `at` in world ms."""
    choice, which, place = draws(chance, "trigger").T
    last = users.last_clicked[user]
    one_of_three, afresh = np.divmod(3 * which, 1)  # the rest of `which` is uniform too, and nothing else knows it
    favourite = users.favourite_leaves[user, one_of_three.astype(np.int64)]
    trigger = draw_in(shop, shop.leaf, favourite, place[:, None])[:, 0]
    near = draw_in(shop, shop.topic, shop.topic[last], place[:, None])[:, 0]
    anything = draw_any(shop, place[:, None])[:, 0]
    trigger = np.where(choice >= 0.45, anything, trigger)
    trigger = np.where((choice >= 0.65) & (last >= 0), last, trigger)
    trigger = np.where((choice >= 0.80) & (last >= 0), near, trigger)
    return launched_instead(afresh, at, trigger, shop)


def launched_instead(
    chance: Float64[np.ndarray, " C"], at: Int64[np.ndarray, " C"], item: Int64[np.ndarray, " C"], shop: Shop
) -> Int64[np.ndarray, " C"]:
    """The items; for those not launched yet, one of the same leaf by popularity among what is, else of the same top.

    Of the whole shop where the top has nothing launched either. `chance` must not be what the items were drawn by: it
    would give each of them the same few neighbours.
    """
    found = item.copy()
    for group in (shop.leaf, shop.top, np.zeros_like(shop.leaf)):
        late = np.flatnonzero(shop.launched_at[found] > at)
        if not len(late):
            break
        found[late] = _draw_launched(shop, group, group[item[late]], at[late], chance[late])
    return found


def _draw_launched(
    shop: Shop,
    group: Int64[np.ndarray, " M"],
    wanted: Int64[np.ndarray, " C"],
    at: Int64[np.ndarray, " C"],
    chance: Float64[np.ndarray, " C"],
) -> Int64[np.ndarray, " C"]:
    """Items of a group, in proportion to popularity among those launched; where there are none, its earliest."""
    order = np.lexsort((shop.launched_at, group))  # within a group, what is launched at a moment comes first
    demand = np.concatenate([[0.0], np.cumsum(shop.popularity[order])])
    moment = int(max(shop.launched_at.max(), at.max())) + 1
    key = group[order] * moment + shop.launched_at[order]
    first = np.searchsorted(key, wanted * moment, "left")
    last = np.searchsorted(key, wanted * moment + at, "right")
    drawn = np.searchsorted(demand, demand[first] + (demand[last] - demand[first]) * chance, "right") - 1
    return np.asarray(order[np.clip(drawn, first, np.maximum(last - 1, first))])


def show_page(
    chance: Chance,
    at: Int64[np.ndarray, " C"],
    user: Int64[np.ndarray, " C"],
    trigger: Int64[np.ndarray, " C"],
    is_phone: Bool[np.ndarray, " C"],
    shop: Shop,
    users: Users,
    position_bias: float,
) -> Page:
    """The shop's present recommender: draws from several sources, keeps 20 of them, orders them by its own score."""
    drawn = _recalled(chance, user, trigger, shop, users)
    usable = ~repeats(drawn) & (drawn != trigger[:, None]) & (shop.launched_at[drawn] <= at[:, None])
    kept = np.argsort(np.where(usable, draws(chance, "cut"), 2.0), axis=1, kind="stable")[:, :SHOWN]
    drawn, usable = np.take_along_axis(drawn, kept, axis=1), np.take_along_axis(usable, kept, axis=1)
    score = np.where(usable, _shop_score(draws(chance, "order")[:, :SHOWN], drawn, trigger, shop), -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    shown = np.where(np.take_along_axis(usable, order, axis=1), np.take_along_axis(drawn, order, axis=1), -1)
    bias = np.where(is_phone, _PHONE_BIAS * position_bias, position_bias)
    examined = np.exp(-bias[:, None] * np.log(np.arange(1, SHOWN + 1)))
    return Page(shown, np.where(shown >= 0, examined, 0.0))


def judge(
    hour: Int64[np.ndarray, " C"],
    user: Int64[np.ndarray, " C"],
    trigger: Int64[np.ndarray, " C"],
    shown: Int64[np.ndarray, "C P"],
    similarity: Float64[np.ndarray, "C P"],
    shop: Shop,
    users: Users,
) -> Taste:
    """What these visitors think of what they see, before the wish of this visit is drawn."""
    last = users.last_clicked[user]
    comparing = np.where(last >= 0, shop.leaf[last] == shop.leaf[trigger], False)
    drive = users.specific[user] + shop.top_specific[shop.top[trigger]] + 0.8 * (comparing - 0.4)
    drive = drive - 0.3 * (hour >= _EVENING)
    partners = shop.goes_with[shop.leaf[trigger]]
    goes_together = (shop.leaf[shown][:, :, None] == partners[:, None, :]).any(axis=2)
    vectors = shop.vectors[shown]
    liking = (
        2.0 * np.einsum("cd,cpd->cp", users.taste[user], vectors).astype(np.float64)
        + 1.5 * np.einsum("cd,cpd->cp", users.interest[user], vectors).astype(np.float64)
        + shop.quality[shown]
        - 0.4 * np.abs(shop.log_price[shown] - users.log_price[user][:, None])
    )
    alike, variety, elsewhere, roam = level_shapes(similarity)
    return Taste(
        drive, (partners >= 0).any(axis=1), np.stack([alike, variety, goes_together + 0.1 * elsewhere, roam]), liking
    )


def level_shapes(similarity: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "4 *shape"]:
    """How well a similarity to the trigger fits what is alike, variety, what lies elsewhere, roaming; at most 1.

    What cannot be compared fits each as the average level does.
    """
    shapes = _shapes(similarity)
    average = _shapes((np.arange(N_LEVELS) + 0.5) / N_LEVELS).mean(axis=1)
    missing = similarity == MISSING
    return np.where(missing, average.reshape(4, *(1,) * similarity.ndim), shapes)


def _shapes(similarity: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "4 *shape"]:
    def bell(distance: np.ndarray, width: float) -> np.ndarray:
        return np.asarray(np.exp(-0.5 * (distance / width) ** 2))

    elsewhere = bell(np.maximum(similarity - 0.15, 0), 0.20)
    alike, variety = bell(np.minimum(similarity - 0.85, 0), 0.15), bell(similarity - 0.50, 0.15)
    return np.stack([alike, variety, elsewhere, 0.5 + 0.5 * elsewhere])


def wishes(taste: Taste, noise: Float64[np.ndarray, "C K"]) -> Float64[np.ndarray, "C W"]:
    """How much of each wish is in a visit, given standard normal noise; rows sum to 1, and often two wishes share."""
    specific = _sigmoid(taste.drive + _DRIVE_NOISE * noise[:, 0])
    base = np.stack(
        [
            0.05 + 0.85 * specific,
            np.full(len(specific), 0.15),
            np.where(taste.has_partner, 0.55 * (1 - specific), 1e-9),
            0.05 + 0.45 * (1 - specific),
        ],
        axis=1,
    )
    weights = base * np.exp(_WISH_NOISE * noise[:, 1:])
    return np.asarray(weights / np.einsum("cw->c", weights)[:, None])


def intent_of(wish: Float64[np.ndarray, "C W"]) -> Float64[np.ndarray, "C S"]:
    """The wish as weights over similarity levels. What goes together with the trigger is not like it: it lies low."""
    shapes = level_shapes((np.arange(N_LEVELS) + 0.5) / N_LEVELS)
    shapes = shapes / shapes.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("cw,ws->cs", wish, shapes))


def utility(taste: Taste, wish: Float64[np.ndarray, "C W"]) -> Float64[np.ndarray, "C P"]:
    """The log odds of a click on a candidate that is looked at, up to the world's constant."""
    match = np.einsum("cw,wcp->cp", wish, taste.fits)
    return np.asarray(1.8 * np.log(match + _FUZZY) + taste.liking)


def foreseeable(taste: Taste, constant: float) -> Float64[np.ndarray, "C P"]:
    """The mean attractiveness over visits that differ in nothing but the wish: fixed draws, the same for every page."""
    half = np.random.default_rng(0).standard_normal((_N_FORESEEN // 2, len(WISHES) + 1))
    total = np.zeros_like(taste.liking)
    for noise in np.concatenate([half, -half]):
        wish = wishes(taste, np.broadcast_to(noise, (len(taste.drive), len(noise))))
        total += _sigmoid(utility(taste, wish) + constant)
    return total / _N_FORESEEN


def normal(chance: Chance) -> Chance:
    """Standard normal numbers, one for two uniform ones (Box and Muller)."""
    half = chance.shape[1] // 2
    return np.asarray(np.sqrt(-2 * np.log1p(-chance[:, :half])) * np.cos(2 * np.pi * chance[:, half:]))


def constant_for(click_rate: float, odds: Float64[np.ndarray, " X"], examined: Float64[np.ndarray, " X"]) -> float:
    """The constant that makes the mean click probability `click_rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if (examined * _sigmoid(odds + middle)).mean() > click_rate else (middle, high)
    return (low + high) / 2


def attractiveness_of(odds: Float64[np.ndarray, "C P"], constant: float) -> Float64[np.ndarray, "C P"]:
    """The chance of a click on a candidate that is looked at."""
    return _sigmoid(odds + constant)


def similarities(
    catalogue: Catalogue, trigger: Int64[np.ndarray, " C"], shown: Int64[np.ndarray, "C P"]
) -> Float64[np.ndarray, "C P"]:
    """The contract's similarity of each candidate to its trigger, as every model sees it; MISSING for padding."""
    rows = np.where(shown >= 0, shown + 1, 0).ravel()  # catalogue rows start at 1
    found = catalogue.similarity(np.repeat(trigger + 1, shown.shape[1]), rows)
    return found.reshape(shown.shape).astype(np.float64)


def draw_in(
    shop: Shop, group: Int64[np.ndarray, " M"], wanted: Int64[np.ndarray, " C"], chance: Chance
) -> Int64[np.ndarray, "C N"]:
    """Items of one group (a range of items) in proportion to popularity; of all items where the group is empty."""
    first, last = np.searchsorted(group, wanted, "left"), np.searchsorted(group, wanted, "right")
    empty = last == first
    first, last = np.where(empty, 0, first), np.where(empty, len(group), last)
    low, high = shop.demand[first][:, None], shop.demand[last][:, None]
    drawn = np.searchsorted(shop.demand, low + (high - low) * chance, "right") - 1
    return np.asarray(np.clip(drawn, first[:, None], last[:, None] - 1))


def draw_any(shop: Shop, chance: Chance) -> Int64[np.ndarray, "C N"]:
    """Items of the whole shop in proportion to popularity."""
    drawn = np.searchsorted(shop.demand, chance * shop.demand[-1], "right") - 1
    return np.asarray(np.clip(drawn, 0, len(shop.topic) - 1))


def repeats(drawn: Int64[np.ndarray, "C N"]) -> Bool[np.ndarray, "C N"]:
    """True where the same item stands earlier in the row."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, axis=1)
    again = np.zeros(drawn.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    found = np.empty_like(again)
    np.put_along_axis(found, order, again, axis=1)
    return found


def _recalled(
    chance: Chance, user: Int64[np.ndarray, " C"], trigger: Int64[np.ndarray, " C"], shop: Shop, users: Users
) -> Int64[np.ndarray, "C N"]:
    """Candidates from each source, repeats included."""
    parts = np.split(draws(chance, "items"), np.cumsum([*_DRAWN.values()])[:-1], axis=1)
    product, topic, leaf, top, together, favourite, popular = parts
    n_together = together.shape[1] // 2
    partners = shop.goes_with[shop.leaf[trigger]]
    return np.concatenate(
        [
            draw_in(shop, shop.product, shop.product[trigger], product),
            draw_in(shop, shop.topic, shop.topic[trigger], topic),
            draw_in(shop, shop.leaf, shop.leaf[trigger], leaf),
            draw_in(shop, shop.top, shop.top[trigger], top),
            draw_in(shop, shop.leaf, partners[:, 0], together[:, n_together:]),
            draw_in(shop, shop.leaf, partners[:, 1], together[:, :n_together]),
            *(
                draw_in(shop, shop.leaf, users.favourite_leaves[user, k], favourite[:, k : k + 1])
                for k in range(favourite.shape[1])
            ),
            draw_any(shop, popular),
        ],
        axis=1,
    )


def _shop_score(
    chance: Chance, drawn: Int64[np.ndarray, "C P"], trigger: Int64[np.ndarray, " C"], shop: Shop
) -> Float64[np.ndarray, "C P"]:
    """What the present recommender orders by: past demand (none for a late item), closeness in the tree, chance."""
    demand = np.where(shop.launched_at[drawn] > 0, -1.0, np.log(shop.popularity[drawn]))
    close = sum(0.3 * (group[drawn] == group[trigger][:, None]) for group in (shop.topic, shop.leaf, shop.top))
    return np.asarray(0.3 * demand + close + 0.5 * np.log((chance + 1e-12) / (1 - chance)))


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-odds)))
