"""The page: from scores to ranked items, with level, reason and the ladder of what to order by when scores are missing.

Called by the ranker in a worker thread. Pure functions over the columns of one request. Nothing here fails: NaN means
"the network did not say", and such candidates stand after all that were scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64

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

    @property
    def is_scored(self) -> Bool[np.ndarray, " N"]:
        """True where the network gave a finite logit."""
        scored: Bool[np.ndarray, " N"] = np.isfinite(self.logits)
        return scored

    @property
    def coverage(self) -> float:
        """Share that the network scored; 1 when there was nothing to score."""
        return float(self.is_scored.mean()) if len(self.ids) else 1.0


@dataclass(frozen=True)
class History:
    """What the request graph saw of the user: counts, and the similarity from which a behaviour is related."""

    n_used: int
    n_similar: int
    related_threshold: float


def rung_of(scored: Scored) -> Rung:
    """The best rung of the ladder that has anything to say about these candidates."""
    if not len(scored.ids) or scored.is_scored.any():
        return "network"
    if (scored.levels > 0).any():
        return "similarity"
    return "popularity" if (scored.popularity > 0).any() else "given"


def order(scored: Scored) -> Int64[np.ndarray, " N"]:
    """Positions in the order of the page: best first, ties and everything unscored in the caller's order."""
    rung = rung_of(scored)
    if rung == "network":
        value = np.where(scored.is_scored, scored.logits, -np.inf)
    elif rung == "similarity":
        value = np.where(scored.levels > 0, scored.similarity, -np.inf)
    elif rung == "popularity":
        value = scored.popularity
    else:
        value = np.zeros(len(scored.ids), np.float32)
    return np.argsort(-value, kind="stable").astype(np.int64)


def items(scored: Scored, top_k: int, history: History, prior: float) -> list[dict[str, object]]:
    """The first `top_k` places of the page as plain values for JSON; `prior` is the click rate of what was not
    scored.
    """
    places = order(scored)[:top_k]
    columns = zip(
        places.tolist(),
        scored.logits[places].tolist(),
        scored.similarity[places].tolist(),
        scored.levels[places].tolist(),
        scored.known[places].tolist(),
        _reasons(scored, places, history),
        strict=True,
    )
    page = []
    for rank, (place, logit, similarity, level, known, reason) in enumerate(columns, start=1):
        is_scored = math.isfinite(logit)
        page.append(
            {
                "id": scored.ids[place],
                "ctr": _sigmoid(logit) if is_scored else prior,
                "score": logit if is_scored else None,
                "similarity": similarity if level else None,
                "level": level,
                "rank": rank,
                "reason": reason,
                "cold": not known,
            }
        )
    return page


def _reasons(scored: Scored, places: Int64[np.ndarray, " K"], history: History) -> list[str]:
    """Why each item stands where it stands (api.md, `reason`)."""
    near = (scored.levels[places] > 0) & (scored.similarity[places] >= history.related_threshold)
    rung = rung_of(scored)
    if rung == "network":
        when_near = "explicit_intent" if history.n_similar else "similar"
        when_far = "implicit_intent" if history.n_used else "popular"
        reasons = np.where(near, when_near, when_far)
        return [str(reason) for reason in np.where(scored.is_scored[places], reasons, "prior")]
    if rung == "similarity":
        return ["similar" if is_near else "prior" for is_near in near]
    return ["popular" if rung == "popularity" else "prior"] * len(places)


def _sigmoid(logit: float) -> float:
    """Click probability of a logit, in (0, 1); written so that neither end overflows."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    raised = math.exp(logit)
    return raised / (1.0 + raised)
