"""Measuring in turns: the order, the ratio of each round, and what a figure is made of."""

import time

import pytest

from service.bench.stage_times import of_headers
from service.bench.turns import Spread, in_turns, ratio, seconds_of, significant


def test_all_are_asked_before_any_is_asked_again_and_the_order_turns_around() -> None:
    asked: list[str] = []
    subjects = {name: (lambda name=name: asked.append(name) or len(asked)) for name in "abc"}
    found = in_turns(subjects, n_rounds=3, n_warm_up=1)
    assert "".join(asked) == "abccbaabccba"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert found["a"] == [6, 7, 12], "the warm-up is not in it"


def test_a_ratio_is_taken_round_by_round() -> None:
    # A machine that is ten times slower in the second round: the medians' ratio would be 1.1, the truth is 2.
    fast, slow = [1.0, 10.0, 1.1], [2.0, 20.0, 2.2]
    assert ratio(slow, fast) == Spread(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="rounds"):
        ratio([1.0], [1.0, 2.0])


def test_a_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread(0.0123456, 0.01, 12345.6).shown() == "0.0123 (0.0100-12,300)"
    with pytest.raises(ValueError, match="no round"):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (12.345, "12.3"), (0.99951, "1.000"), (123_456, "123,000"), (7, "7.00")]
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert significant(value) == shown


def test_what_is_short_is_repeated_and_what_is_long_is_not() -> None:
    calls = []
    short = [seconds_of(lambda: calls.append(1)) for _ in range(3)]
    assert 0 < min(one() for one in short) < 1e-3  # the machine may stand still during one of them
    assert len(calls) > 100
    calls.clear()
    long = seconds_of(lambda: (calls.append(1), time.sleep(0.01)))
    assert long() >= 0.01
    assert len(calls) == 2


def test_stages_come_out_of_the_headers_of_the_service() -> None:
    headers = ["total;dur=3.000, parse;dur=1.000, encode;dur=0.500", "total;dur=2.000, parse;dur=1.500"]
    assert of_headers(headers) == {"parse": [1.0, 1.5], "encode": [0.5, 0.0], "total": [3.0, 2.0]}
