"""The time rules of the Alimama preparation: what was strictly before what. Called by `prepare_alimama`, and by
`prepare_movielens` for whom a film is an ad and a rating an impression.

Triggers, requests and behaviours of the impressions of one part, and counts of its behaviour log, all by sorted numbers
that pack (user, time). Nothing here reads a file or knows of splits but the borders that a request may not cross.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from training.data.alimama_files import LogPart, Part

TRIGGER_WINDOW_S = 4 * 3_600
LOG_WINDOW_S = 14 * 86_400

By = Literal["time", "trigger"]


@dataclass(frozen=True)
class Impressions:
    """Impressions sorted by user, time and ad, each (user, time, ad) once, and the clicks among them."""

    user: Int64[np.ndarray, " N"]
    at_s: Int64[np.ndarray, " N"]
    ad: Int64[np.ndarray, " N"]
    pid: Shaped[np.ndarray, " N"]
    clicked: Bool[np.ndarray, " N"]
    n_repeated: int

    @classmethod
    def of(cls, part: Part) -> "Impressions":
        """Sorts; a repeated impression is one, clicked if any of them was."""
        order = np.lexsort((1 - part.clicked, part.ad, part.at_s, part.user))  # of equal ones the clicked one is first
        user, at_s, ad = part.user[order], part.at_s[order], part.ad[order]
        is_new = np.ones(len(user), dtype=bool)
        is_new[1:] = (user[1:] != user[:-1]) | (at_s[1:] != at_s[:-1]) | (ad[1:] != ad[:-1])
        kept = order[is_new]
        clicked = part.clicked[kept] == 1
        return cls(part.user[kept], part.at_s[kept], part.ad[kept], part.pid[kept], clicked, int((~is_new).sum()))

    def take(self, rows: Int64[np.ndarray, " N2"]) -> "Impressions":
        """Some of them, in their order."""
        columns = self.user[rows], self.at_s[rows], self.ad[rows]
        return Impressions(*columns, self.pid[rows], self.clicked[rows], 0)

    @property
    def moment(self) -> Int64[np.ndarray, " N"]:
        """(user, time) as one ascending number: the user's place in the part, then the time."""
        _, place = np.unique(self.user, return_inverse=True)
        return moment_of(place, self.at_s)


def moment_of(place: Int64[np.ndarray, " N"], at_s: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Packs a place and a time of epoch seconds, below 2^33, into one number that sorts like the two."""
    packed: np.ndarray = (place.astype(np.int64) << 33) | at_s
    return packed


def triggers(impressions: Impressions) -> Int64[np.ndarray, " N"]:
    """For each impression the place of its trigger among the impressions, -1 without one. DIHN section 4.1.

    The latest click of the user with 0 < t - t_click <= 4 h; of several at that time the one on the largest ad id. The
    impression itself, and all others at its time, are not strictly earlier and never count (trap T8).
    """
    moment = impressions.moment
    clicks = np.flatnonzero(impressions.clicked)
    if not len(clicks):
        return np.full(len(moment), -1, dtype=np.int64)
    last = np.searchsorted(moment[clicks], moment, side="left") - 1  # sorted by ad too: the largest id is the last
    place = clicks[np.maximum(last, 0)]
    same_user = (last >= 0) & (impressions.user[place] == impressions.user)
    in_time = impressions.at_s - impressions.at_s[place] <= TRIGGER_WINDOW_S
    return np.where(same_user & in_time, place, -1)


def request_starts(
    impressions: Impressions, trigger: Int64[np.ndarray, " N"], by: By, borders_s: tuple[int, ...]
) -> Int64[np.ndarray, " R"]:
    """Where each request begins, among impressions that all have a trigger. None reaches over one of `borders_s`."""
    if not len(trigger):
        return np.empty(0, dtype=np.int64)
    other_user = np.diff(impressions.user) != 0
    if by == "time":
        other = np.diff(impressions.at_s) != 0
    else:  # pages below a click from before a split's midnight belong to two splits
        days = np.searchsorted(borders_s, impressions.at_s, side="right")
        other = (np.diff(trigger) != 0) | (np.diff(days) != 0)
    return np.concatenate([[0], np.flatnonzero(other_user | other) + 1])


def once_per_request(
    impressions: Impressions, starts: Int64[np.ndarray, " R"]
) -> tuple[Impressions, Int64[np.ndarray, " N2"], Int64[np.ndarray, " R"]]:
    """Each ad once in its request, where it was first shown, clicked if it ever was.

    Below one trigger click lie several pages, and an ad may stand on two of them. Also returns the kept ones' places
    among `impressions`, and where each request begins now.
    """
    request = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(impressions.user))))
    order = np.lexsort((impressions.ad, request))  # stable: of equal ones the earliest is first
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (np.diff(request[order]) != 0) | (np.diff(impressions.ad[order]) != 0)
    ever = np.logical_or.reduceat(impressions.clicked[order], np.flatnonzero(is_new))
    by_place = np.argsort(order[is_new])
    rows = order[is_new][by_place]
    return replace(impressions.take(rows), clicked=ever[by_place]), rows, np.searchsorted(rows, starts)


def behaviours_before(
    impressions: Impressions, user: Int64[np.ndarray, " R"], at_s: Int64[np.ndarray, " R"], at_most: int
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " R1"]]:
    """Places of the user's clicks strictly before each request, the newest `at_most`, and each request's offsets."""
    clicks = np.flatnonzero(impressions.clicked)
    moments = impressions.moment[clicks]
    place = np.searchsorted(np.unique(impressions.user), user)
    start = np.searchsorted(moments, moment_of(place, np.zeros_like(place)), side="left")
    end = np.searchsorted(moments, moment_of(place, at_s), side="left")
    index, offsets = ranges(np.maximum(start, end - at_most), end)
    return clicks[index], offsets


def count_log(
    log: LogPart,
    counted: Bool[np.ndarray, " N"],
    user: Int64[np.ndarray, " R"],
    category: Int64[np.ndarray, " R"],
    at_s: Int64[np.ndarray, " R"],
) -> Int64[np.ndarray, " R"]:
    """How many counted rows of the log each (user, category) has in the 14 days strictly before `at_s`."""
    # time stamps outside the calendar are known in the public log: they are no behaviour of these weeks
    usable = counted & (log.at_s > 0) & (log.at_s < 1 << 32)
    _, place = np.unique(np.concatenate([log.user[usable], user]), return_inverse=True)
    _, kind = np.unique(np.concatenate([log.category[usable], category]), return_inverse=True)
    pair = np.unique(place * (int(kind.max(initial=0)) + 1) + kind, return_inverse=True)[1]
    n_log = int(usable.sum())
    moments = np.sort(moment_of(pair[:n_log], log.at_s[usable]))
    until = np.searchsorted(moments, moment_of(pair[n_log:], at_s), side="left")
    since = np.searchsorted(moments, moment_of(pair[n_log:], np.maximum(at_s - LOG_WINDOW_S, 0)), side="left")
    return (until - since).astype(np.int64)


def ranges(
    starts: Int64[np.ndarray, " R"], ends: Int64[np.ndarray, " R"]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " R1"]]:
    """All whole numbers of the ranges one after the other, and where each range begins."""
    lengths = np.maximum(ends - starts, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets
