"""The page: from scores to ranked items, with level, reason and the ladder of what to order by when scores are missing.

Called by the ranker in a worker thread. Pure functions over the columns of one request. Nothing here fails: NaN means
"the network did not say", and such candidates stand after all that were scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

Rung = Literal["network", "similarity", "popularity", "given"]


@dataclass(frozen=True)
class Scored:
    """The candidates of one request in the caller's order, with what is known of each."""

    ids: Sequence[str]
    logits: Float32[np.ndarray, " N"]  # NaN or infinite: not scored by the network
    similarity: Float32[np.ndarray, " N"]  # to the trigger
    levels: Int64[np.ndarray, " N"]  # 0: no vector to compare
    popularity: Float32[np.ndarray, " N"]
    known: Bool[np.ndarray, " N"]

    @cached_property
    def is_scored(self) -> Bool[np.ndarray, " N"]:
        """True where the network gave a finite logit."""
        scored: Bool[np.ndarray, " N"] = np.isfinite(self.logits)
        return scored

    @cached_property
    def n_scored(self) -> int:
        """How many the network scored."""
        return int(np.count_nonzero(self.is_scored))

    @property
    def coverage(self) -> float:
        """Share that the network scored; 1 when there was nothing to score."""
        return self.n_scored / len(self.ids) if len(self.ids) else 1.0


@dataclass(frozen=True)
class History:
    """What the request graph saw of the user: counts, and the similarity from which a behaviour is related."""

    n_used: int
    n_similar: int
    related_threshold: float


def rung_of(scored: Scored) -> Rung:
    """The best rung of the ladder that has anything to say about these candidates."""
    if scored.n_scored or not len(scored.ids):
        return "network"
    if (scored.levels > 0).any():
        return "similarity"
    return "popularity" if (scored.popularity > 0).any() else "given"


def order(scored: Scored) -> Int64[np.ndarray, " N"]:
    """Positions in the order of the page: best first, ties and everything unscored in the caller's order."""
    rung = rung_of(scored)
    if rung == "network":
        all_scored = scored.n_scored == len(scored.ids)
        value = scored.logits if all_scored else np.where(scored.is_scored, scored.logits, -np.inf)
    elif rung == "similarity":
        value = np.where(scored.levels > 0, scored.similarity, -np.inf)
    elif rung == "popularity":
        value = scored.popularity
    else:
        value = np.zeros(len(scored.ids), np.float32)
    return (-value).argsort(kind="stable").astype(np.int64, copy=False)


def items(scored: Scored, top_k: int, history: History, prior: float) -> list[dict[str, object]]:
    """The first `top_k` places of the page as plain values for JSON; `prior` is the click rate of what was not
    scored.
    """
    places = order(scored)[:top_k]
    logits, is_scored = scored.logits.take(places), scored.is_scored.take(places)
    similarity, levels = scored.similarity.take(places), scored.levels.take(places)
    near = (levels > 0) & (similarity >= history.related_threshold)
    columns = zip(
        map(scored.ids.__getitem__, places.tolist()),
        np.where(is_scored, _sigmoid(logits), prior).tolist(),
        _or_none(logits, is_scored),
        _or_none(similarity, levels > 0),
        levels.tolist(),
        range(1, len(places) + 1),
        _reasons(rung_of(scored), is_scored, near, history),
        (~scored.known.take(places)).tolist(),
        strict=True,
    )
    return [
        {
            "id": id_,
            "ctr": ctr,
            "score": score,
            "similarity": similarity,
            "level": level,
            "rank": rank,
            "reason": reason,
            "cold": cold,
        }
        for id_, ctr, score, similarity, level, rank, reason, cold in columns
    ]


def _or_none(values: Float32[np.ndarray, " K"], there: Bool[np.ndarray, " K"]) -> list[float | None]:
    """Plain numbers where there are any."""
    found: list[float | None] = values.tolist()
    if not there.all():
        for place in np.flatnonzero(~there).tolist():
            found[place] = None
    return found


def _reasons(
    rung: Rung, is_scored: Bool[np.ndarray, " K"], near: Bool[np.ndarray, " K"], history: History
) -> list[str]:
    """Why each item stands where it stands (api.md, `reason`); `near`: it is like the trigger."""
    if rung == "network":
        when_near = "explicit_intent" if history.n_similar else "similar"
        when_far = "implicit_intent" if history.n_used else "popular"
        names = ("prior", when_far, when_near)  # one string for all: an array of texts would make each anew
        codes = np.where(is_scored, 1 + near, 0)
        return [names[code] for code in codes.tolist()]
    if rung == "similarity":
        return ["similar" if is_near else "prior" for is_near in near]
    return ["popular" if rung == "popularity" else "prior"] * len(near)


def _sigmoid(logits: Float32[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """Click probabilities in [0, 1]; written so that neither end overflows. NaN stays NaN."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    probability: Float64[np.ndarray, " K"] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return probability
