"""The request log: whole lines, nothing on the hot path, drops counted."""

import json
import time
from pathlib import Path

from service.metrics import Metrics
from service.request_log import RequestLog


def dropped(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("daian_log_dropped_total", {"log": "rank"}) or 0.0


def test_rows_are_written_in_order_as_whole_lines(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log", Metrics())
    log.open()
    for number in range(1000):
        log.append({"request_id": str(number)})
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [str(number) for number in range(1000)]


def test_it_is_off_without_a_file() -> None:
    log = RequestLog(None, Metrics())
    log.open()
    log.append({"request_id": "1"})
    log.close()


def test_rows_that_do_not_fit_are_dropped_and_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    log = RequestLog(tmp_path / "log", metrics, capacity=3)  # not open: nobody takes rows
    for _ in range(5):
        log.append({})
    assert dropped(metrics) == 2


def test_every_row_of_a_failed_write_is_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    log = RequestLog(tmp_path / "no such folder" / "log", metrics)
    for _ in range(5):
        log.append({"request_id": "1"})
    log.open()
    log.close()
    assert dropped(metrics) == 5


def test_a_row_that_is_no_json_costs_itself_and_not_the_writer(tmp_path: Path) -> None:
    metrics = Metrics()
    log = RequestLog(tmp_path / "log", metrics)
    log.open()
    log.append({"request_id": "\ud800"})
    until = time.monotonic() + 10
    while dropped(metrics) == 0 and time.monotonic() < until:
        time.sleep(0.001)
    log.append({"request_id": "2"})
    log.close()
    assert (tmp_path / "log").read_text() == '{"request_id":"2"}\n'
    assert dropped(metrics) == 1


def test_d6_a_file_that_cannot_be_written_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    metrics = Metrics()
    log = RequestLog(tmp_path / "no such folder" / "log", metrics)
    log.open()
    log.append({"request_id": "1"})
    log.close()
    assert dropped(metrics) == 1
