"""Log lines name an exception by class and place, never by its message; counters of known words start at 0."""

import logging
import sys

import pytest

from service.label_values import DEGRADED_REASONS, SHED_REASONS
from service.metrics import JsonLines, Metrics, TextLines

CANARY = "canary-7f3"


def failed() -> logging.LogRecord:
    """What a bug leaves behind whose message holds an id, raised from another that does too."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise RuntimeError(f"{CANARY} was in my hands") from error
    except RuntimeError:
        return logging.LogRecord("daian", logging.ERROR, __file__, 1, "bug", (), sys.exc_info())


@pytest.mark.parametrize("lines", [JsonLines(), TextLines()])
def test_g14_a_logged_exception_says_where_and_not_what(lines: logging.Formatter) -> None:
    line = lines.format(failed())
    assert "RuntimeError" in line
    assert "test_metrics.py" in line
    assert CANARY not in line


def test_g14_the_formatter_of_the_standard_library_would_say_it() -> None:
    assert CANARY in logging.Formatter("%(message)s").format(failed())


def test_known_words_are_there_before_their_first_hit() -> None:
    of = Metrics().registry.get_sample_value
    assert {of("daian_shed_total", {"reason": reason}) for reason in SHED_REASONS} == {0.0}
    assert {of("daian_degraded_total", {"reason": reason}) for reason in DEGRADED_REASONS} == {0.0}
    assert {of("daian_bundle_loads_total", {"outcome": outcome}) for outcome in ("loaded", "refused")} == {0.0}
    assert of("daian_shed_total", {"reason": "a word of nobody"}) is None


def test_a_hit_is_counted_on_the_series_that_was_there() -> None:
    metrics = Metrics()
    before = metrics.text().count(b"\ndaian_shed_total{")
    metrics.count_shed("gone")
    assert metrics.text().count(b"\ndaian_shed_total{") == before == len(SHED_REASONS)
    assert metrics.registry.get_sample_value("daian_shed_total", {"reason": "gone"}) == 1.0
