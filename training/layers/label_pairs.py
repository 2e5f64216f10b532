"""Pairs of labelled candidates, for losses that compare: pairs of one page, and pairs of one user at different times.

Called by the `own_loss` of models with contrastive or pairwise terms. Chance comes from torch's global generator. Never
used when scoring.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def page_pairs(there: Bool[Tensor, "R C"], at_most: int) -> Bool[Tensor, "R C C"]:
    """Pairs i < j of candidates of the same page, each at most once; `at_most` of a page's, drawn evenly."""
    n_requests, width = there.shape
    upper = torch.ones(width, width, dtype=torch.bool, device=there.device).triu(1)
    pairs = (there.unsqueeze(2) & there.unsqueeze(1) & upper).reshape(n_requests, -1)
    if pairs.shape[1] <= at_most:
        return pairs.reshape(n_requests, width, width)
    lots = torch.where(pairs, torch.rand(pairs.shape, device=there.device), -1.0)
    least = lots.topk(at_most, dim=1).values[:, -1:]
    return (pairs & (lots >= least)).reshape(n_requests, width, width)


def pairs_over_time(
    user: Int64[Tensor, " R"], request: Int64[Tensor, " N"], clicks: Float[Tensor, " N"], at_most: int
) -> Int64[Tensor, "P 2"]:
    """Rows (clicked, not clicked) of the same user's candidates in two different requests; at most so many, drawn.

    `user` is the code of each request's user, as `LabelledInputs.user_group` has it: a request of nobody known has a
    code of its own, and makes no pair.
    """
    clicked, other = (clicks > 0).nonzero().squeeze(1), (clicks <= 0).nonzero().squeeze(1)
    users, others = user[request[clicked]], user[request[other]]
    # Candidates are too many to compare all with all: each clicked one draws a few partners among its user's others.
    order = torch.argsort(others, stable=True)
    other, others = other[order], others[order]
    first, last = torch.searchsorted(others, users), torch.searchsorted(others, users, right=True)
    n_partners = last - first
    draws = max(1, -(-at_most // max(1, len(clicked))))
    lots = torch.rand(len(clicked), draws, device=clicks.device)
    drawn = (first.unsqueeze(1) + (lots * n_partners.unsqueeze(1)).long()).clamp_max(max(0, len(other) - 1))
    left = clicked.unsqueeze(1).expand_as(drawn)
    if not len(other) or not len(clicked):
        return torch.zeros(0, 2, dtype=torch.int64, device=clicks.device)
    right = other[drawn]
    fits = (n_partners > 0).unsqueeze(1) & (request[left] != request[right])
    return torch.stack([left[fits], right[fits]], dim=1)[:at_most]
