"""The simulated visitors: lasting tastes, how specifically they look, what they like to pay, and what they do now.

Called by `training.data.synthetic`; docs/world.md states every distribution. Nothing here draws a page.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from training.data.world_shop import DIMENSIONS, Shop, names, unit

POPULATIONS = ("specific", "broad", "mixed")
_SHARES = (0.35, 0.35, 0.30)
_SPECIFIC = ((2.0, 0.6), (-2.0, 0.6), (0.0, 0.8))  # mean and spread of how specific the users of a population are
_ACTIVITY_SPREAD = 1.1
_NO_AGE = 0.03
_AGE_BANDS = 6


class Users(NamedTuple):
    """The users, hidden properties included. `interest` and `last_clicked` move while the world runs."""

    ids: np.ndarray
    population: Int64[np.ndarray, " V"]  # of POPULATIONS
    specific: Float64[np.ndarray, " V"]
    favourite_leaves: Int64[np.ndarray, "V 3"]
    taste: Float32[np.ndarray, "V D"]
    interest: Float32[np.ndarray, "V D"]
    last_clicked: Int64[np.ndarray, " V"]  # -1: nothing yet
    log_price: Float64[np.ndarray, " V"]
    activity: Float64[np.ndarray, " V"]  # running sum of how often each comes
    age_band: np.ndarray
    has_age: Bool[np.ndarray, " V"]
    orders: Int64[np.ndarray, " V"]

    def forgetting(self) -> "Users":
        """The same users before they did anything."""
        return self._replace(interest=np.zeros_like(self.interest), last_clicked=np.full_like(self.last_clicked, -1))


def make_users(random: np.random.Generator, n_users: int, shop: Shop) -> Users:
    """Draws users of three populations; tastes are directions among the shop's vectors."""
    n_leaves = len(shop.goes_with)
    centres = np.zeros((n_leaves, DIMENSIONS))
    np.add.at(centres, shop.leaf, shop.vectors)
    favourites = random.integers(0, n_leaves, (n_users, 3))
    own = unit(random.standard_normal((n_users, DIMENSIONS)))
    population = random.choice(len(POPULATIONS), n_users, p=_SHARES)
    mean, spread = np.array(_SPECIFIC)[population].T
    age = random.integers(0, _AGE_BANDS, n_users)
    spends = random.standard_normal(n_users)
    return Users(
        ids=names("u", n_users),
        population=population,
        specific=mean + spread * random.standard_normal(n_users) + 0.1 * (age - 2.5),
        favourite_leaves=favourites,
        taste=unit(unit(centres)[favourites].sum(axis=1) + 0.6 * own).astype(np.float32),
        interest=np.zeros((n_users, DIMENSIONS), np.float32),
        last_clicked=np.full(n_users, -1),
        log_price=3 + 0.15 * (age - 2.5) + 0.6 * spends,
        activity=np.cumsum(np.exp(_ACTIVITY_SPREAD * random.standard_normal(n_users))),
        age_band=np.array([f"{10 * band + 15}-{10 * band + 24}" for band in age], dtype=object),
        has_age=random.random(n_users) >= _NO_AGE,
        orders=random.poisson(np.exp(1.2 + 0.5 * spends)),
    )


def remember(
    users: Users,
    shop: Shop,
    user: Int64[np.ndarray, " C"],
    trigger: Int64[np.ndarray, " C"],
    shown: Int64[np.ndarray, "C P"],
    clicked: Bool[np.ndarray, "C P"],
) -> None:
    """Interests move towards what was opened and clicked. No user may be in `user` twice."""
    vectors = shop.vectors[trigger] + np.einsum("cp,cpd->cd", clicked.astype(np.float32), shop.vectors[shown])
    mean = vectors / (1 + clicked.sum(axis=1, keepdims=True)).astype(np.float32)
    users.interest[user] = np.float32(0.7) * users.interest[user] + np.float32(0.3) * mean
    place = clicked.shape[1] - 1 - np.argmax(clicked[:, ::-1], axis=1)  # the lowest click is the last one
    last = np.take_along_axis(shown, place[:, None], axis=1)[:, 0]
    users.last_clicked[user] = np.where(clicked.any(axis=1), last, trigger)
