"""Leaving out some of a page's unclicked candidates in training, for long pages. Called by `training.data.batches`.

All clicked candidates stay. A page then holds more clicks than it should: its odds are those of the whole page divided
by the share of unclicked ones that was kept, so the loss takes the logarithm of that share off the logit, and the logit
itself stays that of the whole page (King & Zeng 2001, prior correction). Validation and test pages are never thinned.
"""

import numpy as np
from jaxtyping import Float32

from training.data.pools import Encoded


def thin(encoded: Encoded, at_most: int, random: np.random.Generator) -> tuple[Encoded, Float32[np.ndarray, " N"]]:
    """At most this many candidates a request, or all clicked ones if they are more, drawn evenly, in their order.

    Beside it, per candidate left, the logarithm of the share of its page's unclicked candidates that was kept.
    """
    inputs, labels = encoded
    request, clicked = inputs.candidate_request, labels.clicks > 0
    n_requests = len(labels.has_intent)
    n_clicked = np.bincount(request, weights=clicked, minlength=n_requests).astype(np.int64)
    n_others = np.bincount(request, minlength=n_requests) - n_clicked
    kept_others = np.minimum(n_others, np.maximum(at_most - n_clicked, 0))
    chosen = clicked | (_rank_of_others(request, clicked, random) < kept_others[request])
    share = np.where(n_others > 0, np.maximum(kept_others, 1) / np.maximum(n_others, 1), 1.0)
    thinned = inputs._replace(
        candidate_fields=inputs.candidate_fields[chosen],
        candidate_similarity=inputs.candidate_similarity[chosen],
        candidate_request=request[chosen],
    )
    log_share = np.log(share)[request[chosen]].astype(np.float32)
    return Encoded(thinned, labels._replace(clicks=labels.clicks[chosen])), log_share


def _rank_of_others(request: np.ndarray, clicked: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each candidate's place in a random order of its own page, clicked ones behind all others."""
    order = np.lexsort((random.random(len(request)), clicked, request))
    first = np.searchsorted(request, request)  # where each candidate's page begins: pages lie together, in order
    rank = np.empty(len(request), dtype=np.int64)
    rank[order] = np.arange(len(request))
    return np.asarray(rank - first)
