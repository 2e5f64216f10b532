"""Whether predicted probabilities are click rates: reliability curve, ECE, COPC. Called by `training.measures`.

Bins hold equal numbers of candidates, not equal widths: click probabilities crowd near zero, where equal widths would
put nearly all of them into one bin. Equal predictions always share a bin, so bins may be fewer than asked for.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from training.metrics import Clicks, Scores

N_BINS = 20


class Reliability(NamedTuple):
    """The bins that hold something, by ascending prediction: candidates, mean prediction, click rate."""

    n: Int64[np.ndarray, " B"]
    predicted: Float[np.ndarray, " B"]
    click_rate: Float[np.ndarray, " B"]


def probabilities(logits: Scores) -> Float[np.ndarray, " N"]:
    """The sigmoid in double precision, without overflow."""
    half = np.asarray(logits, dtype=np.float64) / 2
    chances: Float[np.ndarray, " N"] = (1.0 + np.tanh(half)) / 2
    return chances


def equal_mass_bins(predicted: Float[np.ndarray, " N"], n_bins: int = N_BINS) -> Int64[np.ndarray, " N"]:
    """The bin of every prediction, 0..n_bins-1, between the quantiles of all of them."""
    edges = np.quantile(predicted, np.linspace(0.0, 1.0, n_bins + 1)[1:-1]) if len(predicted) else np.empty(0)
    bins: Int64[np.ndarray, " N"] = np.searchsorted(edges, predicted, side="left").astype(np.int64)
    return bins


def reliability(predicted: Float[np.ndarray, " N"], clicks: Clicks, n_bins: int = N_BINS) -> Reliability:
    """Mean prediction and click rate of each bin."""
    bins = equal_mass_bins(predicted, n_bins)
    n = np.bincount(bins, minlength=n_bins)
    there = n > 0
    mean = np.bincount(bins, predicted, n_bins)[there] / n[there]
    rate = np.bincount(bins, np.asarray(clicks, dtype=np.float64), n_bins)[there] / n[there]
    return Reliability(n[there], mean, rate)


def ece(predicted: Float[np.ndarray, " N"], clicks: Clicks, n_bins: int = N_BINS) -> float:
    """Expected calibration error: mean over candidates of |click rate − mean prediction| of their bin.

    Naeini et al. 2015 with equal-mass bins (Nixon et al. 2019). NaN without candidates. Chance alone makes it
    positive: about sqrt(2 p (1−p) / (π n)) a bin of n candidates.
    """
    found = reliability(predicted, clicks, n_bins)
    if not len(found.n):
        return float("nan")
    return float(np.average(np.abs(found.click_rate - found.predicted), weights=found.n))


def copc(predicted: Float[np.ndarray, " N"], clicks: Clicks) -> float:
    """Clicks over predicted clicks: above 1 the model promises too little. NaN when it promises nothing at all."""
    promised = float(np.sum(predicted, dtype=np.float64))
    return float(np.sum(clicks)) / promised if promised else float("nan")
