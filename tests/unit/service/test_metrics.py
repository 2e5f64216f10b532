"""Log lines: an exception is named by class and place, never by its message."""

import logging
import sys

import pytest

from service.metrics import JsonLines, TextLines

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
