"""Which events are stored, decided from the event and the time it arrived alone."""

import pytest

from service.behaviour_codec import TYPE_CODES, BehaviourEvent
from service.event_rules import Rejection, judge_event, judge_events

NOW = 1_795_000_000_000
MINUTE, DAY = 60_000, 86_400_000


def event(at: int = NOW, kind: str = "click") -> BehaviourEvent:
    return BehaviourEvent("u_42", "i_9", kind, at)


@pytest.mark.parametrize("kind", sorted(TYPE_CODES))
@pytest.mark.parametrize("at", [NOW, NOW - 1, NOW - 14 * DAY + 1])
def test_behaviours_within_the_window_are_stored_as_they_are(kind: str, at: int) -> None:
    assert judge_event(event(at, kind), NOW, 14) == event(at, kind)


@pytest.mark.parametrize("ahead", [1, 5 * MINUTE])
def test_a_little_ahead_is_dated_now(ahead: int) -> None:
    assert judge_event(event(NOW + ahead), NOW, 14) == event(NOW)


@pytest.mark.parametrize(
    ("sent", "code", "hint"),
    [
        (event(NOW + 5 * MINUTE + 1), "future_event", "clock"),
        (event(NOW + 9 * MINUTE), "future_event", "9 minutes ahead"),
        (event(NOW - 14 * DAY), "too_old", "14 days are kept"),
        (event(0), "too_old", "days ago"),
        (event(kind="impression"), "not_stored", "event log"),
        (event(kind="hover"), "unknown_type", "favourite"),
    ],
)
def test_the_rest_is_rejected_with_a_reason(sent: BehaviourEvent, code: str, hint: str) -> None:
    verdict = judge_event(sent, NOW, 14)
    assert isinstance(verdict, Rejection)
    assert verdict.code == code
    assert hint in verdict.detail
    assert "u_42" not in verdict.detail
    assert "i_9" not in verdict.detail


def test_a_call_is_judged_event_by_event() -> None:
    judged = judge_events([event(), event(NOW + MINUTE), event(0), event(kind="impression"), event(NOW - DAY)], NOW, 14)
    assert judged.accepted == (event(), event(NOW), event(NOW - DAY))
    assert [(one.index, one.code) for one in judged.rejected] == [(2, "too_old"), (3, "not_stored")]
    assert judged.n_clamped == 1
