"""The request log: whole lines, nothing on the hot path, drops counted."""

import asyncio
import json
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest

from service import request_log as module
from service.metrics import Metrics
from service.request_log import RequestLog, blank_rows, file_of


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
    until = time.monotonic() + 60
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


FULL_DISK = """
import resource, sys
from pathlib import Path
import service.request_log as module
from service.metrics import Metrics
{sabotage}
log = module.RequestLog(Path(sys.argv[1]), Metrics())
log.open()
log.append({{"request_id": "1", "text": "a" * 700}})
log._flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in (2, 3):
    log.append({{"request_id": str(number), "text": "b" * 700}})
    log._flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append({{"request_id": "4", "text": "c"}})
log.close()
print(log._dropped._value.get())
"""
HALF_A_LINE = """
def _append(path, rows):
    with path.open("ab", buffering=0) as file:
        file.write(b"".join(module.orjson.dumps(row) + b"\\n" for row in rows))
module._append_whole_lines = _append
"""


def on_a_full_disk(path: Path, sabotage: str = "") -> tuple[list[str], float]:
    """(lines, rows dropped) of a log whose disk is full for two of four rows: in a process, by the kernel's limit."""
    code = FULL_DISK.format(sabotage=sabotage)
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return path.read_text().splitlines(), float(ended.stdout)


def test_d6_a_full_disk_costs_rows_and_never_leaves_half_a_line(tmp_path: Path) -> None:
    lines, n_dropped = on_a_full_disk(tmp_path / "log")
    assert [json.loads(line)["request_id"] for line in lines] == ["1", "4"]
    assert n_dropped == 2


def test_d6_a_plain_write_leaves_half_a_line(tmp_path: Path) -> None:
    lines, _ = on_a_full_disk(tmp_path / "log", HALF_A_LINE)
    with pytest.raises(json.JSONDecodeError):
        [json.loads(line) for line in lines]


# --- erasure ----------------------------------------------------------------------------------------------------------


def row(user: str | None, number: int = 0) -> dict[str, object]:
    return {"request_id": str(number), "user": {"user": user}, "behaviours": [], "candidates": ["i1"]}


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def test_an_erased_users_rows_are_blank_and_the_others_untouched(tmp_path: Path) -> None:
    log, path = RequestLog(tmp_path / "log.ndjson", Metrics()), tmp_path / "log.ndjson"
    log.open()
    for number in range(300):
        log.append(row(("u1", "u10", None)[number % 3], number))
    log.append(row("u1"), "shop")
    assert asyncio.run(log.erase("u1", "main", 0.0)) == 100  # rows that nobody has written yet among them
    assert asyncio.run(log.erase("u1", "main", 0.0)) == 0
    log.append(row("u1", 300))
    log.close()
    assert [one["request_id"] for one in rows_of(path)] == [str(n) for n in range(300) if n % 3] + ["300"]
    assert rows_of(tmp_path / "log.shop.ndjson") == [row("u1")]  # another tenant's user
    assert file_of(path, "shop") == tmp_path / "log.shop.ndjson"


@pytest.mark.parametrize("user", ["a/b", 'q"uote', "back\\slash", "é", unicodedata.normalize("NFD", "é"), "日本"])
def test_every_spelling_of_an_id_is_found(tmp_path: Path, user: str) -> None:
    log = RequestLog(tmp_path / "log", Metrics())
    log.open()
    for spelling in (user, unicodedata.normalize("NFC", user), unicodedata.normalize("NFD", user), "other"):
        log.append(row(spelling))
    assert asyncio.run(log.erase(user, "main", 0.0)) == 3
    log.close()
    assert rows_of(tmp_path / "log") == [row("other")]


def test_rows_of_rankings_that_began_before_are_waited_for(tmp_path: Path) -> None:
    def left(settle_s: float, late_s: float) -> int:
        path = tmp_path / str(settle_s)
        log = RequestLog(path, Metrics())
        log.open()
        late = threading.Timer(late_s, log.append, [row("u1")])
        late.start()
        asyncio.run(log.erase("u1", "main", settle_s))
        late.join()
        log.close()
        return len(rows_of(path))

    assert left(3.0, late_s=0.2) == 0
    assert left(0.0, late_s=1.5) == 1  # the saboteur: without the wait it comes through


def test_lines_that_are_no_rows_and_a_line_being_written_are_left_alone(tmp_path: Path) -> None:
    text = 'u1\n{"user": "u1"}\n["u1"]\n{"user": {"user": 1, "u1": "u1"}}\n\n{"user":{"user":"u1"}}'
    (tmp_path / "log").write_text(text)
    many = {f"u{number}" for number in range(10)}
    assert blank_rows(tmp_path / "log", {"u1"}) == blank_rows(tmp_path / "log", many) == {}
    assert (tmp_path / "log").read_text() == text
    assert blank_rows(tmp_path / "none", {"u1"}) == {}


N_TO_ERASE = 200


def erased_together(log: RequestLog, users: list[str]) -> list[int | BaseException]:
    async def main() -> list[int | BaseException]:
        return await asyncio.gather(*(log.erase(user, "main", 0.0) for user in users), return_exceptions=True)

    return asyncio.run(main())


def test_all_who_wait_are_looked_for_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, passes = RequestLog(tmp_path / "log", Metrics()), list[int]()

    def counted(path: Path, users: Collection[str]) -> Counter[str]:
        passes.append(len(users))
        time.sleep(0.05)
        return blank_rows(path, users)

    monkeypatch.setattr(module, "blank_rows", counted)
    log.open()
    users = [f"u{number}" for number in range(N_TO_ERASE)]
    for user in (*users, *users, "other"):
        log.append(row(user))
    assert erased_together(log, [*users, users[0]]) == [2] * (N_TO_ERASE + 1)
    assert sum(passes) == N_TO_ERASE
    assert len(passes) <= 3
    assert erased_together(log, users) == [0] * N_TO_ERASE
    log.close()
    assert rows_of(tmp_path / "log") == [row("other")]


def test_who_comes_while_a_pass_is_under_way_is_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows may have come behind the place that the pass has reached."""
    log, under_way, go_on = RequestLog(tmp_path / "log", Metrics()), threading.Event(), threading.Event()

    def slow(path: Path, users: Collection[str]) -> Counter[str]:
        found = blank_rows(path, users)
        under_way.set()
        assert go_on.wait(60)
        return found

    monkeypatch.setattr(module, "blank_rows", slow)
    log.open()

    async def main() -> list[int]:
        first = asyncio.create_task(log.erase("u1", "main", 0.0))
        await asyncio.to_thread(under_way.wait, 60)
        log.append(row("u1"))
        second = asyncio.create_task(log.erase("u1", "main", 0.0))
        await asyncio.sleep(0.05)
        go_on.set()
        return [await first, await second]

    assert asyncio.run(main()) == [0, 1]
    log.close()
    assert rows_of(tmp_path / "log") == []


def test_a_pass_that_fails_is_told_to_each_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RequestLog(tmp_path / "log", Metrics())
    log.open()
    log.append(row("u1"))

    def broken(*_: object) -> Counter[str]:
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "blank_rows", broken)
        assert [type(one) for one in erased_together(log, ["u1", "u2"])] == [OSError, OSError]
    assert erased_together(log, ["u1", "u2"]) == [1, 0]
    log.close()


def test_appending_goes_on_while_rows_are_blanked(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first, second = RequestLog(path, Metrics()), RequestLog(path, Metrics())  # as two processes have it
    for log in (first, second):
        log.open()

    def write() -> None:
        for number in range(2000):
            second.append(row("other", number))

    writing = threading.Thread(target=write)
    writing.start()
    for _ in range(20):
        first.append(row("u1"))
        assert asyncio.run(first.erase("u1", "main", 0.0)) == 1
    writing.join()
    first.close()
    second.close()
    assert [one["request_id"] for one in rows_of(path)] == [str(number) for number in range(2000)]
