"""D5: whatever the wall clock does, a deadline stays where it is."""

import time

import pytest

from service.api.doorway import deadline_from
from service.deadline import Deadline
from service.settings import Settings

HOUR_S = 3600.0


def jump(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The wall clock is set; the monotonic one never is."""
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + round(seconds * 1e9))


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_d5_a_jump_of_the_wall_clock_neither_ends_nor_extends_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    deadlines = [Deadline.after_ms(60_000), deadline_from(time.monotonic(), (), Settings(deadline_ms=2000))]
    jump(monkeypatch, seconds)
    assert [0 < one.left_s() <= limit_s for one, limit_s in zip(deadlines, (60, 2), strict=True)] == [True, True]


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_d5_on_the_wall_clock_it_would(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    deadline = Deadline.after_ms(60_000, clock=lambda: time.time())
    jump(monkeypatch, seconds)
    assert deadline.passed() is (seconds > 0)
    assert not 0 < deadline.left_s() <= 60
