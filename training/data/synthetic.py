"""A shop world whose truth is known: what `daian data simulate` writes, what tests, the demo and the tables train on.

It follows the behaviour that papers on trigger-induced recommendation describe, not any model's form; docs/world.md
says in words and numbers what is drawn how, what the world is not, and which choice could favour whom. The shop is
`world_shop`, its visitors `world_users`, a page view `world_visits`, the log of it `world_journal`. Here they meet:
sizes, days, the order in which things happen, the files.

The same World gives the same files, byte for byte, on one machine and set of libraries. Requests are made in time
order and written as they are made: memory grows with users and items (about 2 kB and 1 kB each), not with requests,
but for the times of day of one day's requests.

Beside the request files lies `truth.parquet`, what no model may see; `training.truth` reads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from service.contract.catalogue import Catalogue
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.dataset import Dataset, Items, PreparedWriter, Split
from training.data.world_journal import DAY_MS, HISTORY, Journal, TruthWriter, requests_of
from training.data.world_shop import DIMENSIONS, Shop, item_fields, make_shop
from training.data.world_users import Users, make_users, remember
from training.data.world_visits import (
    DEVICE_NAMES,
    N_CHANCES,
    N_LEVELS,
    SCALE,
    Chance,
    Page,
    Taste,
    Visits,
    attractiveness_of,
    constant_for,
    draw_triggers,
    draws,
    foreseeable,
    intent_of,
    judge,
    normal,
    show_page,
    similarities,
    utility,
    which_device,
    who_comes,
    who_is_known,
    wishes,
)

__all__ = ["DAY_MS", "DIMENSIONS", "FIRST_DAY_MS", "N_DAYS", "N_LEVELS", "PRESETS", "SCHEMA", "World", "simulate"]

FIRST_DAY_MS = 20_454 * DAY_MS  # 2026-01-01
N_DAYS = 8
_CHUNK = 2_048  # pages made at once; the files do not depend on it
_PILOT = 4_096  # pages, at most, of the rehearsal that finds the constant of the click rate
_AT_ANY_HOUR, _EVENING, _EVENING_SPREAD = 0.33, 20, 2  # share of visits; hours

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
    """How large the world is, which one it is, how often its visitors click, and how much less they look further down.

    A candidate at position p (from 1) is looked at with probability p to the power of -position_bias (on phones 1.25
    times as steep); 0 switches that off. Raises ValueError for a world that cannot be made.
    """

    n_requests: int = 20_000
    n_users: int = 3_000
    n_items: int = 2_000
    seed: int = 0
    click_rate: float = 0.08
    position_bias: float = 0.2

    def __post_init__(self) -> None:
        if self.n_requests < N_DAYS or self.n_users < 2 or self.n_items < 50:
            raise ValueError(
                f"a world of {self.n_requests} requests, {self.n_users} users, {self.n_items} items cannot be made: "
                f"give at least {N_DAYS}, 2 and 50"
            )
        if not (0 < self.click_rate <= 0.3 and 0 <= self.position_bias <= 2 and self.seed >= 0):
            raise ValueError(
                f"click rate {self.click_rate}, position bias {self.position_bias}, seed {self.seed}: need a rate in "
                "(0, 0.3], a bias in [0, 2], a seed from 0"
            )


PRESETS = {
    "small": World(n_requests=16_000, n_users=1_500, n_items=1_200),
    "demo": World(),
    "full": World(n_requests=400_000, n_users=50_000, n_items=30_000),
}


def simulate(
    out: Path, world: World, overwrite: bool = False, progress: Callable[[int], None] | None = None
) -> Dataset:
    """Makes the world and writes it as a prepared folder: days 1-6 train, day 7 validation, day 8 test.

    `progress` is told the number of requests made with each chunk. The same world gives the same files, byte for byte.
    """
    random = np.random.default_rng(world.seed)
    shop = make_shop(random, world.n_items, N_DAYS * DAY_MS)
    users = make_users(random, world.n_users, shop)
    dataset = Dataset("simulated", SCHEMA, HistoryRules(), similarity_range=(SCALE.low, SCALE.high), n_levels=N_LEVELS)
    items = Items(shop.ids.tolist(), item_fields(shop), shop.vectors, has_vector=shop.has_vector)
    with PreparedWriter(out, dataset, items, overwrite) as writer:
        writer.note("world", {"users": world.n_users, "items": world.n_items, "seed": world.seed})
        constant = _rehearse(random, world, _Scene(world, shop, users.forgetting(), writer.catalogue))
        scene = _Scene(world, shop, users, writer.catalogue, constant)
        n_made = 0
        with TruthWriter(writer.extra_file("truth.parquet")) as truth:
            for day, chance, at in _days(random, world):
                visits = scene.play(chance, at)
                batch = requests_of(visits, shop, users, n_made, FIRST_DAY_MS)
                writer.write(_split_of(day), batch, visits.clicked[visits.shown >= 0].astype(np.int8))
                truth.write(visits, batch, users)
                n_made += len(at)
                if progress is not None:
                    progress(len(at))
    return writer.dataset


def _days(random: np.random.Generator, world: World) -> Iterator[tuple[int, Chance, Int64[np.ndarray, " C"]]]:
    """Day, chances and times (world ms) of all page views in time order, in chunks that do not cross a day."""
    for day in range(N_DAYS):
        n_requests = world.n_requests // N_DAYS + (day < world.n_requests % N_DAYS)
        times = _times_of_day(random, n_requests) + day * DAY_MS
        for start in range(0, n_requests, _CHUNK):
            at = times[start : start + _CHUNK]
            yield day, random.random((len(at), N_CHANCES)), at


def _times_of_day(random: np.random.Generator, n: int) -> Int64[np.ndarray, " C"]:
    """A wave in the evening; a third of the visits come at any hour."""
    any_hour = random.random(n) < _AT_ANY_HOUR
    hour = np.where(any_hour, random.uniform(0, 24, n), random.normal(_EVENING, _EVENING_SPREAD, n)) % 24
    return np.asarray(np.sort((hour * 3_600_000).astype(np.int64)))


def _split_of(day: int) -> Split:
    return "train" if day < N_DAYS - 2 else "validation" if day == N_DAYS - 2 else "test"


def _rehearse(random: np.random.Generator, world: World, scene: "_Scene") -> float:
    """The constant in the log odds that gives the world's click rate, from pages that nobody will see.

    Interests move during the rehearsal as they will: its first quarter only warms up.
    """
    n_pilot = min(world.n_requests, _PILOT)
    odds, examined = [], []
    for start in range(0, n_pilot, n_pilot // 4):
        n = min(n_pilot // 4, n_pilot - start)
        at = _times_of_day(random, n) + N_DAYS // 2 * DAY_MS
        found, looked_at = scene.rehearse(random.random((n, N_CHANCES)), at)
        scene.constant = constant_for(world.click_rate, found, looked_at)
        odds.append(found)
        examined.append(looked_at)
    return constant_for(world.click_rate, np.concatenate(odds[1:]), np.concatenate(examined[1:]))


class _Scene:
    """Shop, visitors and journal while the world runs.

    The pages of a chunk are played in waves: the first visit of every user, then everybody's second, and so on. So a
    visit finds its user as the visit before left them, and how many pages a chunk has makes no difference.
    """

    def __init__(self, world: World, shop: Shop, users: Users, catalogue: Catalogue, constant: float = -2.0) -> None:
        self.constant = constant
        self._world = world
        self._shop = shop
        self._users = users
        self._catalogue = catalogue
        self._journal = Journal(len(users.ids))

    def play(self, chance: Chance, at: Int64[np.ndarray, " C"]) -> Visits:
        """The page views at these times, in their order."""
        user = who_comes(chance, self._users)
        waves = _waves(user)
        played = [self._wave(chance[rows], at[rows], user[rows]) for rows in waves]
        order = np.argsort(np.concatenate(waves))
        return Visits(*(np.concatenate(column)[order] for column in zip(*played, strict=True)))

    def rehearse(
        self, chance: Chance, at: Int64[np.ndarray, " C"]
    ) -> tuple[Float64[np.ndarray, " X"], Float64[np.ndarray, " X"]]:
        """The log odds (without the constant) and examination of all candidates of the page views at these times."""
        visits = self.play(chance, at)
        shown = visits.shown >= 0
        attracted = visits.attractiveness[shown]
        odds = np.log(attracted) - np.log1p(-attracted) - self.constant
        return odds, visits.probability[shown] / attracted

    def _wave(self, chance: Chance, at: Int64[np.ndarray, " C"], user: Int64[np.ndarray, " C"]) -> Visits:
        shop, users = self._shop, self._users
        device, is_known = which_device(chance), who_is_known(chance)
        trigger = draw_triggers(chance, at, user, shop, users)
        is_phone = DEVICE_NAMES[device] == "phone"
        page = show_page(chance, at, user, trigger, is_phone, shop, users, self._world.position_bias)
        similarity = similarities(self._catalogue, trigger, page.shown)
        taste = judge(at % DAY_MS // 3_600_000, user, trigger, page.shown, similarity, shop, users)
        liked = self._decide(chance, page, taste)
        remember(users, shop, user, trigger, page.shown, liked["clicked"])
        history = np.full((len(at), HISTORY), -1)
        history[is_known] = self._journal.record(
            at[is_known],
            user[is_known],
            trigger[is_known],
            page.shown[is_known],
            liked["clicked"][is_known],
            chance[is_known],
        )
        level = SCALE.level(similarity.astype(np.float32))
        return Visits(at, user, is_known, device, trigger, page.shown, level, history=history, **liked)

    def _decide(self, chance: Chance, page: Page, taste: Taste) -> dict[str, np.ndarray]:
        """The wish of each visit, what it makes of the candidates, and the clicks."""
        wish = wishes(taste, normal(draws(chance, "wish")))
        attracted = np.where(page.shown >= 0, attractiveness_of(utility(taste, wish), self.constant), 0.0)
        probability = page.examined * attracted
        return {
            "wish": wish,
            "intent": intent_of(wish),
            "attractiveness": attracted,
            "foreseeable": foreseeable(taste, self.constant),
            "probability": probability,
            "clicked": draws(chance, "click") < probability,
        }


def _waves(user: Int64[np.ndarray, " C"]) -> list[Int64[np.ndarray, " _"]]:
    """Rows of everybody's first visit, of everybody's second, ...; each in time order."""
    order = np.argsort(user, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(user[order])) + 1])
    sizes = np.diff(np.append(starts, len(user)))
    turn = np.empty(len(user), dtype=np.int64)
    turn[order] = np.arange(len(user)) - np.repeat(starts, sizes)
    return [np.flatnonzero(turn == k) for k in range(int(turn.max()) + 1)]
