"""The first k of every page: NDCG, and what is in it. Called by `training.measures`; knows no model.

Within a page equal scores have no order of their own. NDCG takes the mean over all orders of a tie; who must name the
first k (`first_k`) keeps tied candidates in the order in which they came, as the service does.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from training.metrics import Clicks, Groups, Scores, starts_of_runs


class GroupValues(NamedTuple):
    """One number for each group that has one, by ascending code."""

    values: Float[np.ndarray, " G"]
    groups: Int64[np.ndarray, " G"]


def ndcg(scores: Scores, clicks: Clicks, groups: Groups, k: int) -> GroupValues:
    """NDCG@k of every group with a click: gain 1 for a click, discount 1/log2(1 + rank) (Järvelin & Kekäläinen 2002).

    A tie's candidates share the mean discount of its ranks: the expectation over all its orders (McSherry & Najork
    2008). The ideal page has all clicks first.
    """
    if not len(scores):
        return GroupValues(np.empty(0), np.empty(0, dtype=np.int64))
    order = np.lexsort((-scores, groups))
    group, score, clicked = groups[order], scores[order], (np.asarray(clicks)[order] > 0).astype(np.float64)
    starts = starts_of_runs(group[1:] != group[:-1])
    sizes = np.diff(np.append(starts, len(group)))
    rank = np.arange(len(group)) - np.repeat(starts, sizes)
    discount = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
    ties = starts_of_runs((group[1:] != group[:-1]) | (score[1:] != score[:-1]))
    n_tied = np.diff(np.append(ties, len(group)))
    shared = np.repeat(np.add.reduceat(discount, ties) / n_tied, n_tied)
    found = np.add.reduceat(shared * clicked, starts)
    n_clicked = np.add.reduceat(clicked, starts).astype(np.int64)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])[np.minimum(n_clicked, k)]
    has_click = n_clicked > 0
    return GroupValues(found[has_click] / ideal[has_click], group[starts][has_click])


def first_k(scores: Scores, groups: Groups, k: int) -> Int64[np.ndarray, " T"]:
    """Rows of the k highest of every group that has more than k, group by group, best first.

    Smaller groups are left out: all of them is their first k whatever the scores. Returns T = k times the groups.
    """
    order = np.lexsort((-scores, groups))
    group = groups[order]
    starts = starts_of_runs(group[1:] != group[:-1]) if len(group) else np.empty(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(group)))
    rank = np.arange(len(group)) - np.repeat(starts, sizes)
    chosen: Int64[np.ndarray, " T"] = order[(rank < k) & (np.repeat(sizes, sizes) > k)]
    return chosen


def n_distinct(values: Int64[np.ndarray, "P k"], counted: Bool[np.ndarray, "P k"]) -> Int64[np.ndarray, " P"]:
    """How many different values each page has among those that are counted."""
    lowest = np.iinfo(np.int64).min
    ordered = np.sort(np.where(counted, values, lowest), axis=1)
    is_new = np.concatenate([np.ones((len(ordered), 1), dtype=bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    distinct: Int64[np.ndarray, " P"] = (is_new & (ordered != lowest)).sum(axis=1)
    return distinct


def mean_cosine(vectors: Float[np.ndarray, "P k D"]) -> Float[np.ndarray, " P"]:
    """Mean cosine of all pairs of a page's vectors; zero vectors stay out of it. NaN with fewer than two vectors.

    Ziegler et al. 2005 (intra-list similarity). Σ_{i≠j} u_i·u_j = |Σ u|² − Σ |u_i|²: no pair is formed.
    """
    lengths = np.linalg.norm(vectors, axis=2)
    there = lengths > 0
    units = vectors / np.where(there, lengths, 1.0)[:, :, None]
    n = there.sum(axis=1)
    of_pairs = (units.sum(axis=1) ** 2).sum(axis=1) - n
    n_pairs = n * (n - 1)
    means: Float[np.ndarray, " P"] = np.where(n > 1, of_pairs / np.maximum(n_pairs, 1), np.nan)
    return means
