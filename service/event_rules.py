"""Which events are stored as behaviours, and why the others are not.

Pure functions of an event and the time it arrived; called by the events route before `UserStore.append`. Reads no
clock, stores nothing, and never repeats an id in a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.behaviour_codec import TYPE_CODES, BehaviourEvent
from service.label_values import RejectionCode

MAX_AHEAD_MS = 5 * 60_000
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that is not stored: a stable code, and what its sender should look at."""

    code: RejectionCode
    detail: str


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """A rejection and the event's place in the call, from 0."""

    index: int
    code: RejectionCode
    detail: str


@dataclass(frozen=True)
class JudgedEvents:
    """A call's events, sorted out. `n_clamped` of the accepted ones were ahead of time and are dated now."""

    accepted: tuple[BehaviourEvent, ...]
    rejected: tuple[RejectedEvent, ...]
    n_clamped: int


def judge_event(event: BehaviourEvent, now: int, window_days: int) -> BehaviourEvent | Rejection:
    """The event as it is to be stored, or why it is not.

    Args:
        event: one event; its `at` in epoch milliseconds.
        now: when the call arrived, epoch milliseconds.
        window_days: how long behaviours are kept.
    """
    if event.type == "impression":
        return Rejection("not_stored", "impressions go to the event log, which is off: send behaviours only")
    if event.type not in TYPE_CODES:
        return Rejection("unknown_type", f"the types are {', '.join(TYPE_CODES)}: send one of these")
    ahead_ms = event.at - now
    if ahead_ms > MAX_AHEAD_MS:
        return Rejection("future_event", f"time is {_span(ahead_ms)} ahead: check the sender's clock")
    if -ahead_ms >= window_days * _DAY_MS:
        return Rejection("too_old", f"time is {_span(-ahead_ms)} ago, {window_days} days are kept: do not send it")
    return replace(event, at=now) if ahead_ms > 0 else event


def judge_events(events: Sequence[BehaviourEvent], now: int, window_days: int) -> JudgedEvents:
    """Every event of one call judged on its own; order is kept, `index` counts from 0."""
    accepted, rejected, n_clamped = [], [], 0
    for index, event in enumerate(events):
        verdict = judge_event(event, now, window_days)
        if isinstance(verdict, Rejection):
            rejected.append(RejectedEvent(index, verdict.code, verdict.detail))
        else:
            accepted.append(verdict)
            n_clamped += verdict.at != event.at
    return JudgedEvents(tuple(accepted), tuple(rejected), n_clamped)


def _span(milliseconds: int) -> str:
    minutes = milliseconds // 60_000
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" if minutes < 48 * 60 else f"{minutes // 1440} days"
