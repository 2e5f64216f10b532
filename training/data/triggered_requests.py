"""Impressions of a log that knows no triggers -> request batches, by DIHN's rule. Called by `prepare_alimama`, and by
`prepare_movielens` for whom a film is an ad and a rating an impression.

What was strictly before what, is said in `alimama_rules`; what a request is called and which fields it has, by the
caller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int8, Int64, Shaped

from service.contract.requests import RequestBatch, objects
from training.data.alimama_rules import (
    By,
    Impressions,
    behaviours_before,
    once_per_request,
    ranges,
    request_starts,
    triggers,
)
from training.data.dataset import SPLITS, Split

MAX_BEHAVIOURS = 1_000  # what the longest history rule searches
WRITE_REQUESTS = 4_096

Fields = Mapping[str, Shaped[np.ndarray, " R"]]


@dataclass(frozen=True)
class TriggeredRequests:
    """Requests of the impressions that have a trigger; request r shows `shown[starts[r]:starts[r + 1]]`."""

    impressions: Impressions
    shown: Impressions
    trigger: Int64[np.ndarray, " N"]  # of each that is shown: a place among `impressions`
    starts: Int64[np.ndarray, " R"]

    @classmethod
    def of(cls, impressions: Impressions, by: By, borders_s: tuple[int, ...]) -> "TriggeredRequests":
        """A user's impressions at one time, or below one trigger click and on one side of each of `borders_s`."""
        trigger = triggers(impressions)
        kept = np.flatnonzero(trigger >= 0)
        shown = impressions.take(kept)
        return cls(impressions, shown, trigger[kept], request_starts(shown, trigger[kept], by, borders_s))

    def each_ad_once(self) -> "TriggeredRequests":
        """Without the repeated impressions of an ad in one request."""
        shown, rows, starts = once_per_request(self.shown, self.starts)
        return replace(self, shown=shown, trigger=self.trigger[rows], starts=starts)

    def batch(
        self, requests: Int64[np.ndarray, " R"], request_id: Shaped[np.ndarray, " R"], user: Fields, context: Fields
    ) -> tuple[RequestBatch, Int8[np.ndarray, " N"]]:
        """Some of the requests, with their clicks. `user`: the fields beside the user's id."""
        first = self.starts[requests]
        ends = np.append(self.starts, len(self.shown.user))[requests + 1]
        candidates, candidate_offsets = ranges(first, ends)
        user_id, at_s = self.shown.user[first], self.shown.at_s[first]
        behaviours, behaviour_offsets = behaviours_before(self.impressions, user_id, at_s, MAX_BEHAVIOURS)
        batch = RequestBatch(
            request_id=request_id,
            requested_at=at_s * 1_000,
            user={"user": as_texts(user_id), **user},
            context=dict(context),
            trigger=as_texts(self.impressions.ad[self.trigger[first]]),
            behaviour_item=as_texts(self.impressions.ad[behaviours]),
            behaviour_at=self.impressions.at_s[behaviours] * 1_000,
            behaviour_type=np.full(len(behaviours), "click", dtype=object),
            behaviour_offsets=behaviour_offsets,
            candidate=as_texts(self.shown.ad[candidates]),
            candidate_offsets=candidate_offsets,
        )
        return batch, self.shown.clicked[candidates].astype(np.int8)


def as_texts(ids: Int64[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    """Ids as texts; equal ids share one string."""
    distinct, index = np.unique(ids, return_inverse=True)
    texts: np.ndarray = objects(str(value) for value in distinct.tolist())[index]
    return texts


def by_split(split: Shaped[np.ndarray, " R"]) -> Iterator[tuple[Split, Int64[np.ndarray, " R2"]]]:
    """Requests of one split together, at most WRITE_REQUESTS of them; `split` names that of each request."""
    for name in SPLITS:
        rows = np.flatnonzero(split == name)
        for start in range(0, len(rows), WRITE_REQUESTS):
            yield name, rows[start : start + WRITE_REQUESTS]
