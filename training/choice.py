"""The conditional logit: which of the candidates of a request is clicked, from a few numbers of each.

Called by `training.baselines`, which mixes counts and cosines by it.
"""

import numpy as np
from jaxtyping import Float64, Int8, Int64

NEWTON_STEPS = 25
RIDGE = 1e-3  # keeps the weight of a number that never differs within a request finite: it stays 0
_HALVINGS = 30


def fit_choice(
    features: Float64[np.ndarray, "N F"], clicks: Int8[np.ndarray, " N"], request: Int64[np.ndarray, " N"]
) -> Float64[np.ndarray, " F"]:
    """Weights of a conditional logit (McFadden 1974): a click is a choice among the candidates of its request.

    Newton's method with a trace of ridge; a step that would make it worse is halved. Each of several clicks of a
    request is a choice of its own; requests without a click say nothing. Candidates of a request lie side by side.
    Raises ValueError when there is no click at all.
    """
    if not (clicks > 0).any():
        raise ValueError("no request has a click, so there is no choice to learn from: use a split with clicks")
    pages = _Pages(features, clicks, request)
    weights = np.zeros(features.shape[1])
    reached = pages.likelihood(weights)
    for _ in range(NEWTON_STEPS):
        step = pages.newton_step(weights)
        for _ in range(_HALVINGS):
            likelihood = pages.likelihood(weights + step)
            if likelihood >= reached:
                break
            step = step / 2
        else:
            break  # no better point in this direction: rounding is all that is left
        weights, reached = weights + step, likelihood
        if np.abs(step).max() < 1e-8:
            break
    return weights


class _Pages:
    """The requests that have a click: their candidates' numbers, where each starts, how often it was clicked."""

    def __init__(
        self, features: Float64[np.ndarray, "N F"], clicks: Int8[np.ndarray, " N"], request: Int64[np.ndarray, " N"]
    ) -> None:
        starts, owner = _requests(request)
        kept = np.add.reduceat(clicks > 0, starts, dtype=np.int64)[owner] > 0
        self._x, self._clicked = features[kept], (clicks[kept] > 0).astype(np.float64)
        self._starts, self._owner = _requests(request[kept])
        self._n_clicks = np.add.reduceat(self._clicked, self._starts)

    def likelihood(self, weights: Float64[np.ndarray, " F"]) -> float:
        """The log-likelihood of the clicks, less the ridge."""
        score = self._x @ weights
        top = np.maximum.reduceat(score, self._starts)
        total = top + np.log(np.add.reduceat(np.exp(score - top[self._owner]), self._starts))
        return float(self._clicked @ score - self._n_clicks @ total - RIDGE / 2 * weights @ weights)

    def newton_step(self, weights: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " F"]:
        """From the gradient and the curvature at `weights`."""
        score = self._x @ weights
        likely = np.exp(score - np.maximum.reduceat(score, self._starts)[self._owner])
        expected = likely * (self._n_clicks / np.add.reduceat(likely, self._starts))[self._owner]
        weighted = self._x * expected[:, None]
        sums = np.add.reduceat(weighted, self._starts)
        spread = weighted.T @ self._x - (sums / self._n_clicks[:, None]).T @ sums
        gradient = self._x.T @ (self._clicked - expected) - RIDGE * weights
        step: Float64[np.ndarray, " F"] = np.linalg.solve(spread + RIDGE * np.eye(len(weights)), gradient)
        return step


def _requests(request: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " N"]]:
    """Where each run of equal codes starts, and the number of the run that each candidate is in."""
    changes = np.concatenate([[True], request[1:] != request[:-1]])
    return np.flatnonzero(changes), np.cumsum(changes) - 1
