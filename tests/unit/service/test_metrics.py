"""Log lines name an exception by class and place, never by its message; counters of known words start at 0."""

import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from service.label_values import DEGRADED_REASONS, SHED_REASONS
from service.metrics import JsonLines, Metrics, StageTimer, TextLines

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


def test_a_line_that_orjson_refuses_is_written_all_the_same() -> None:
    def line(**fields: object) -> str:
        record = logging.makeLogRecord({"msg": "request", "levelno": logging.INFO, "fields": fields})
        return JsonLines().format(record)

    assert json.loads(line(route="/v1/rank", at=Path("/there")))["at"] == "/there"
    assert json.loads(line(share=np.float64(0.5)))["share"] == 0.5
    odd = json.loads(line(surface="\ud800", digits=1 << 70))
    assert (odd["event"], odd["surface"], odd["digits"]) == ("request", "\ud800", 1 << 70)


def test_an_answer_is_counted_under_its_own_labels() -> None:
    metrics, timer = Metrics(), StageTimer()
    with timer.stage("encode"), timer.stage("order"):
        pass
    for status in (200, 200, 503):
        metrics.count_answer("/v1/rank", status, "live", "other", timer)
    found = metrics.text().decode()
    assert 'daian_requests_total{route="/v1/rank",status="200",surface="other",variant="live"} 2.0' in found
    assert 'daian_request_seconds_count{route="/v1/rank",status="503",surface="other",variant="live"} 1.0' in found
    assert 'daian_stage_seconds_count{stage="encode"} 3.0' in found
    assert 'daian_stage_seconds_count{stage="parse"} 0.0' in found


def test_a_stage_counts_all_its_blocks_also_those_that_fail() -> None:
    timer = StageTimer()

    def fail() -> None:
        with timer.stage("encode"):
            time.sleep(0.002)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    first = timer.ms["encode"]
    with timer.stage("encode"):
        time.sleep(0.002)
    assert timer.ms["encode"] > first > 1


def test_the_stores_memory_is_said_while_somebody_looks_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now_s, said = Metrics(), [5.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    metrics.saw_store_memory(0.97)
    for now_s[0] in (64.9, 65.0, 66.0):
        metrics.forget_store_memory(60.0)
        said.append(metrics.store_memory._value.get())
    metrics.saw_store_memory(0.5)
    metrics.forget_store_memory(60.0)
    assert [*said, metrics.store_memory._value.get()] == [0.97, 0.0, 0.0, 0.5]
