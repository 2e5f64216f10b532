"""Preranker: the optional stage between recall and ranking, from many recalled items to those worth the ranker's time.

Made by the runtime from the bundle's part `prerank/`; called by the ranker in a worker thread. It has two graphs of the
same contract as the ranker's, and reads the same inputs: the first makes a request's table once, the second takes a few
rows of it per candidate. It only chooses: what it thinks of an item is in no answer and in no log. When it fails or
time is short, the ranker keeps the first of recall's own order and says so.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from service.contract.encoder import ModelInputs
from service.deadline import Deadline
from service.scorer import Scorer

FOLDER = "prerank/"  # of the bundle
SHARE_OF_TIME = 0.5  # of what is left when it begins; the rest is the ranker's


@dataclass(frozen=True)
class PrerankPlan:
    """How many items are recalled, and how many of them are ranked."""

    n_recalled: int = 2000
    n_kept: int = 200


class Preranker:
    """Chooses with one bundle's pre-ranker. Holds nothing of any request: safe to share between worker threads."""

    def __init__(self, scorer: Scorer, plan: PrerankPlan) -> None:
        self.plan = plan
        self._scorer = scorer

    def best(self, inputs: ModelInputs, n_kept: int, deadline: Deadline) -> Int64[np.ndarray, " K"] | None:
        """Places of the best `n_kept` candidates of `inputs`, best first, equal ones in their order.

        None when not all could be scored within its share of the time left, or a score is not finite. Raises
        ModelFailed when a graph does.
        """
        own = Deadline(deadline.at_s - SHARE_OF_TIME * deadline.left_s(), deadline.clock)
        if own.passed():
            return None
        scores = self._scorer.score(self._scorer.encode_request(inputs), inputs, own)
        if not scores.in_time or not np.isfinite(scores.logits).all():
            return None
        return np.argsort(-scores.logits, kind="stable")[:n_kept].astype(np.int64)
