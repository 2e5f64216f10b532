"""`store load | inspect | estimate` on a real server: what is loaded is what a ranking sees, and twice is once."""

import asyncio
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis
import redis.client

from service import held_batches, store_load
from service.embedded_store import EmbeddedStore, embedded_store
from service.errors import StoreUnavailable
from service.redis_client import StoreSettings, command_client
from service.redis_cluster import CommandClients
from service.store_load import LoadReport, Progress, StoreLoadError, load, load_lines
from service.store_tools import estimate, inspect_user
from service.user_store import RedisUserStore, StoredBehaviour, StoredUser

pytestmark = pytest.mark.e2e

NOW = 1_795_000_000_000
DAY = 86_400_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        yield url


@pytest.fixture
def settings(server: str) -> StoreSettings:
    client = command_client(server)
    client.flushall()
    client.close()
    return StoreSettings(server, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)


def row(user: str = "u_1", items: int = 2, **more: object) -> dict[str, object]:
    behaviours = [{"item": f"i_{number}", "at": NOW - 1_000 * (number + 1), "type": "click"} for number in range(items)]
    return {"user": user, "behaviours": behaviours, **more}


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def fetched(settings: StoreSettings, user: str) -> StoredUser:
    async def main() -> StoredUser:
        store = RedisUserStore(settings)
        try:
            return await store.fetch(user, NOW)
        finally:
            await store.close()

    return asyncio.run(main())


def test_what_is_loaded_is_what_a_ranking_sees(settings: StoreSettings, tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.ndjson", [row("u_1", 3, attributes={"city": "hz"}), row("u{2}", 1), {"user": "u_3"}]),
        write(tmp_path / "b.ndjson", [row("u_1", 5)]),
    ]
    report = load(settings, files, now=NOW, progress=False)
    assert (report.n_lines, report.n_profiles, report.n_sent, report.n_new) == (4, 1, 9, 6)
    assert fetched(settings, "u_1") == StoredUser(
        {"city": "hz"}, tuple(StoredBehaviour(f"i_{n}", NOW - 1_000 * (n + 1), "click") for n in (4, 3, 2, 1, 0))
    )
    assert len(fetched(settings, "u{2}").behaviours) == 1
    assert fetched(settings, "u_3") == StoredUser()


def test_loading_again_changes_nothing(settings: StoreSettings, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", [row(f"u_{number}", 10) for number in range(700)])
    assert load(settings, [file], now=NOW, progress=False).n_new == 7_000
    before = fetched(settings, "u_5")
    again = load(settings, [file], now=NOW, progress=False)
    assert (again.n_sent, again.n_new) == (7_000, 0)
    assert fetched(settings, "u_5") == before


def test_only_the_window_and_the_newest_are_sent_and_the_rest_is_counted(
    settings: StoreSettings, tmp_path: Path
) -> None:
    behaviours = [{"item": f"i_{n}", "at": NOW - n * DAY // 10, "type": "click"} for n in range(1, 201)]
    random.Random(3).shuffle(behaviours)
    report = load(
        settings, [write(tmp_path / "a.ndjson", [{"user": "u_1", "behaviours": behaviours}])], now=NOW, progress=False
    )
    assert (report.n_sent, report.n_too_old, report.n_over_keep) == (58, 61, 81)
    assert [one.item for one in fetched(settings, "u_1").behaviours] == [f"i_{n}" for n in range(58, 0, -1)]


def test_an_old_log_can_be_shifted_into_the_window(settings: StoreSettings, tmp_path: Path) -> None:
    old = row("u_1", 2)
    old["behaviours"] = [{"item": "i", "at": 1_230_000_000_000, "type": "click"}]
    file = write(tmp_path / "a.ndjson", [old])
    assert load(settings, [file], now=NOW, progress=False).n_too_old == 1
    shift = NOW - 1_230_000_000_000 - 5_000
    assert load(settings, [file], shift_ms=shift, now=NOW, progress=False).n_new == 1
    assert fetched(settings, "u_1").behaviours == (StoredBehaviour("i", NOW - 5_000, "click"),)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("{", "not JSON"),
        ('{"user": NaN}', "not JSON"),
        ("[]", "JSON object"),
        ('{"behaviours": []}', "'user' is missing"),
        ('{"user": 7}', "not a string"),
        ('{"user": ""}', "an id has 1 to 128 bytes"),
        ('{"user": "u", "behaviour": []}', "unknown field 'behaviour'"),
        ('{"user": "u", "behaviours": {}}', "'behaviours' is a list"),
        ('{"user": "u", "behaviours": [7]}', r"behaviours\[0\] is not an object"),
        ('{"user": "u", "behaviours": [{"item": 7, "at": 1795000000000, "type": "click"}]}', "strings"),
        ('{"user": "u", "behaviours": [{"item": "i", "at": 1795000000, "type": "click"}]}', "seconds times 1000"),
        ('{"user": "u", "behaviours": [{"item": "i", "at": true, "type": "click"}]}', "epoch milliseconds"),
        ('{"user": "u", "behaviours": [{"item": "i", "at": 1795000000000, "type": "hover"}]}', "only click"),
        (
            '{"user": "u", "behaviours": [{"item": "i", "time": 1795000000000, "type": "click"}]}',
            "unknown field 'time'",
        ),
    ],
)
def test_a_wrong_line_is_named_and_lines_before_it_may_stay(
    settings: StoreSettings, tmp_path: Path, line: str, hint: str
) -> None:
    file = tmp_path / "users.ndjson"
    file.write_text(json.dumps(row()) + "\n\n" + line + "\n")
    with pytest.raises(StoreLoadError, match=rf"users\.ndjson:3: .*{hint}"):
        load(settings, [str(file)], now=NOW, progress=False)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_load, "MAX_LINE_BYTES", 1_000)
    file = tmp_path / "users.ndjson"
    file.write_text("{" + " " * 2_000)
    with pytest.raises(StoreLoadError, match=r"users\.ndjson:1: over 1000 bytes"):
        load(settings, [str(file)], now=NOW, progress=False)


def test_a_missing_file_is_named(settings: StoreSettings) -> None:
    with pytest.raises(StoreLoadError, match=r"no-such\.ndjson cannot be read"):
        load(settings, ["no-such.ndjson"], now=NOW)


def peak_of_loading(settings: StoreSettings, n_lines: int) -> int:
    """The most bytes that Python held while loading so many users of 50 kB each."""
    clients = CommandClients(settings.url, settings)
    line = json.dumps({"user": "u", "attributes": {"text": "x" * 50_000}}).encode()
    tracemalloc.start()
    load_lines(clients, settings, ((f"f:{number}", line) for number in range(n_lines)), 0, NOW)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    clients.close()
    return peak


def test_memory_stays_bounded(settings: StoreSettings) -> None:
    assert peak_of_loading(settings, 600) < 10_000_000


def test_saboteur_in_one_batch_it_does_not(settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH_USERS", "BATCH_MEMBERS", "BATCH_BYTES"):
        monkeypatch.setattr(store_load, name, 10**9)
    assert peak_of_loading(settings, 600) > 30_000_000


def test_standard_input(settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(row("u_9", 4)).encode())))
    assert load(settings, ["-"], now=NOW, progress=False).n_new == 4


def test_progress_is_told_in_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    Progress(stream, n_bytes_total=100).tell(LoadReport(n_lines=3, n_sent=30, n_bytes=50), is_last=True)
    assert stream.getvalue() == "loaded 3 lines, 30 behaviours (50%)\n"


def test_a_store_that_goes_away_is_waited_for_and_comes_back(tmp_path: Path) -> None:
    """Killed hard in the middle; started again within the pauses, nothing is lost and nothing is doubled."""
    store = EmbeddedStore(tmp_path / "store")
    store.start()
    settings = StoreSettings(store.url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)
    clients = CommandClients(store.url, settings)
    restarted = []

    def lines() -> Iterator[tuple[str, bytes]]:
        for number in range(1_000):
            if number == 500:
                os.kill(store.pid, signal.SIGKILL)
                store.stop()
                store.start()
                restarted.append(number)
            yield f"f:{number}", json.dumps(row(f"u_{number}", 3)).encode()

    try:
        assert load_lines(clients, settings, lines(), 0, NOW).n_sent == 3_000
        assert restarted == [500]
        for number in range(0, 1_000, 50):
            assert len(fetched(settings, f"u_{number}").behaviours) == 3
    finally:
        clients.close()
        store.stop()


def wait_until_written(url: str) -> None:
    """Everything that was acknowledged by now is in the append-only file, where there is one.

    Before that a kill may cost what was acknowledged: a write is put off while the disk's sync is under way.
    """
    client = command_client(url, timeout_s=60)
    try:
        pipe = client.pipeline(transaction=False)
        pipe.set("now", time.monotonic_ns())
        pipe.waitaof(1, 0, 50_000)
        answers = pipe.execute(raise_on_error=False)
        assert isinstance(answers[1], redis.ResponseError) or answers[1][0] == 1
    finally:
        client.close()


def load_over_a_lost_tail(
    folder: Path, copied_at: int, killed_at: int, *arguments: str
) -> tuple[LoadReport, list[int]]:
    """Loads 1,000 users over a kill that takes the end of the append-only file along; the report and who is gone.

    The file is put back as it was before user `copied_at`, which is what a write that was put off leaves behind.
    Batches are of 200 users, and two of them are held before the store is asked.
    """
    store, n_kills = EmbeddedStore(folder / "store"), 0
    ours = EmbeddedStore._arguments
    store._arguments = lambda: [*ours(store), *arguments]  # type: ignore[method-assign]
    store.start()
    settings = StoreSettings(store.url, timeout_ms=10_000, read_budget_ms=5_000, pool_wait_ms=5_000)
    client, clients = command_client(store.url), CommandClients(store.url, settings)
    file = store.folder / "appendonlydir"

    def lines() -> Iterator[tuple[str, bytes]]:
        nonlocal n_kills
        for number in range(1_001):
            if number == copied_at and file.exists():
                wait_until_written(store.url)
                shutil.copytree(file, folder / "copy")
            if number == killed_at:
                os.kill(store.pid, signal.SIGKILL)
                store.stop()
                if file.exists():
                    shutil.rmtree(file)
                    shutil.copytree(folder / "copy", file)
                store.start()
                n_kills += 1
            if number < 1_000:
                yield f"f:{number}", json.dumps(row(f"u_{number}", 3)).encode()

    try:
        report = load_lines(clients, settings, lines(), 0, NOW)
        assert n_kills == (killed_at <= 1_000)
        gone = [n for n in range(1_000) if client.zcard(f"daian:1:main:{{u_{n}}}:b") != 3]
        return report, gone
    finally:
        client.close()
        clients.close()
        store.stop()


@pytest.mark.parametrize(("copied_at", "killed_at", "n_sent_again"), [(400, 700, 2), (800, 1_000, 1)])
def test_what_a_killed_store_forgot_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied_at: int, killed_at: int, n_sent_again: int
) -> None:
    monkeypatch.setattr(held_batches, "HELD_MEMBERS", 1_200)
    report, gone = load_over_a_lost_tail(tmp_path, copied_at, killed_at)
    assert (gone, report.n_sent_again, report.is_confirmed) == ([], n_sent_again, True)
    assert (report.n_sent, report.n_new) == (3_000, 3_000)


@pytest.mark.parametrize(("copied_at", "killed_at", "first"), [(400, 700, 400), (800, 1_000, 800)])
def test_saboteur_with_nothing_held_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied_at: int, killed_at: int, first: int
) -> None:
    monkeypatch.setattr(held_batches.HeldBatches, "hold", lambda *_: None)
    report, gone = load_over_a_lost_tail(tmp_path, copied_at, killed_at)
    assert (gone, report.n_sent_again) == (list(range(first, first + 200)), 0)


def test_without_an_append_only_file_a_restart_is_an_error_and_nothing_is_confirmed(tmp_path: Path) -> None:
    report, gone = load_over_a_lost_tail(tmp_path / "a", 2_000, 2_000, "--appendonly", "no")
    assert (gone, report.n_sent, report.is_confirmed) == ([], 3_000, False)
    with pytest.raises(StoreLoadError, match=r"f:999: the store was restarted and keeps no append-only.*same command"):
        load_over_a_lost_tail(tmp_path / "b", 0, 700, "--appendonly", "no")


@pytest.mark.parametrize("forbidden", ["-info", "-waitaof"])
def test_a_user_who_may_not_ask_still_loads(tmp_path: Path, forbidden: str) -> None:
    rights = ("default", "on", "nopass", "~*", "&*", "+@all", forbidden)
    report, gone = load_over_a_lost_tail(tmp_path, 2_000, 2_000, "--user", *rights)
    assert (gone, report.n_sent, report.is_confirmed) == ([], 3_000, False)


def test_a_store_that_writes_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_batches, "WAIT_MS", 50)
    monkeypatch.setattr(held_batches, "ASK_PAUSES_S", (0.01,))
    with pytest.raises(StoreLoadError, match=r"f:999: the store did not say .*appendfsync no.*same command again"):
        load_over_a_lost_tail(tmp_path, 2_000, 2_000, "--appendfsync", "no")


@pytest.mark.parametrize("writes_first", [True, False], ids=["a write goes first", "saboteur: none does"])
def test_a_connection_made_anew_does_not_confirm_what_another_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_first: bool
) -> None:
    """On a server that never writes a yes is wrong; it comes from a new connection unless a write goes first."""
    monkeypatch.setattr(held_batches, "WAIT_MS", 50)
    monkeypatch.setattr(held_batches, "ASK_PAUSES_S", (0.01,))
    monkeypatch.setattr(
        EmbeddedStore, "_arguments", lambda self, ours=EmbeddedStore._arguments: [*ours(self), "--appendfsync", "no"]
    )
    with embedded_store(tmp_path) as url:
        client = command_client(url)
        client.zadd("k", {"m": 1})

        def touched(pipe: redis.client.Pipeline, batch: str) -> object:
            return pipe.expire(batch, 100) if writes_first else None

        held = held_batches.HeldBatches[str](client, touched, lambda _: None)
        held.meet()
        held.hold("k", 1, 1)
        client.connection_pool.disconnect()
        with pytest.raises(held_batches.NotKeptError) if writes_first else nullcontext():
            held.confirm()
        client.close()


def test_a_store_that_stays_away_is_named_with_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store_load, "RETRY_PAUSES_S", (0.01,))
    file = write(tmp_path / "users.ndjson", [row()])
    with pytest.raises(StoreLoadError, match=r"users\.ndjson:1 and after \(connection\).*same command again"):
        load(StoreSettings("redis://127.0.0.1:1"), [file], now=NOW, progress=False)
    with pytest.raises(StoreUnavailable, match="connection"):
        inspect_user(StoreSettings("redis://127.0.0.1:1"), "u_1")


def loaded_after_an_erasure(settings: StoreSettings, file: Path) -> tuple[LoadReport, dict[str, object]]:
    """A file loaded, its user erased a second later, the same file with one younger behaviour in it loaded again."""
    lines: list[object] = [row("u_1", 3, attributes={"city": "hz"}), row("u_2", 1)]
    load(settings, [write(file, lines)], now=NOW, progress=False)

    async def erase() -> None:
        store = RedisUserStore(settings, clock=lambda: NOW)
        await store.erase("u_1")
        await store.close()

    asyncio.run(erase())
    report = load(settings, [str(file)], now=NOW, progress=False)
    return report, inspect_user(settings, "u_1", now=NOW)


def test_g18_a_repeated_load_does_not_bring_an_erased_user_back(settings: StoreSettings, tmp_path: Path) -> None:
    report, shown = loaded_after_an_erasure(settings, tmp_path / "a")
    assert (report.n_new, report.n_erased, report.n_sent) == (0, 3, 4)
    assert (shown["behaviours"], shown["attributes"]) == ([], None)
    assert shown["erased_at"] == str(NOW // 1000 * 1000 + 999)
    younger = [{"item": "new", "at": NOW + 1_000, "type": "click"}]
    back = [{"user": "u_1", "behaviours": younger, "attributes": {"city": "hz"}}]
    assert load(settings, [write(tmp_path / "b", list(back))], now=NOW + 5_000, progress=False).n_new == 1
    shown = inspect_user(settings, "u_1", now=NOW)
    assert (len(list(shown["behaviours"])), shown["attributes"]) == (1, {"city": "hz"})  # type: ignore[call-overload]


def test_g18_saboteur_without_the_second_look_it_does(
    settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_load, "_take_out_erased", lambda *_: (0, 0))
    _, shown = loaded_after_an_erasure(settings, tmp_path / "a")
    assert (len(list(shown["behaviours"])), shown["attributes"]) == (3, {"city": "hz"})  # type: ignore[call-overload]


def test_inspect_shows_everything_and_what_is_corrupt(settings: StoreSettings, tmp_path: Path) -> None:
    load(settings, [write(tmp_path / "a", [row("u_1", 1, attributes={"city": "hz"})])], now=NOW, progress=False)
    client = command_client(settings.url)
    client.zadd("daian:1:main:{u_1}:b", {b"noise": NOW})
    client.close()
    shown = inspect_user(settings, "u_1", now=NOW)
    assert shown["behaviours"] == [
        {"item": "i_0", "type": "click", "time": "2026-11-18T11:06:39Z", "in_window": True},
        {"corrupt": "a member is too short", "hex": "6e6f697365"},
    ]
    assert shown["attributes"] == {"city": "hz"}
    assert isinstance(shown["memory_bytes"], int)
    assert isinstance(shown["expires_in_s"], int)
    assert shown["expires_in_s"] > 15 * 86_400 - 60
    assert json.dumps(shown)
    nobody = inspect_user(settings, "nobody", now=NOW)
    assert (nobody["behaviours"], nobody["attributes"], nobody["memory_bytes"]) == ([], None, None)


def test_an_estimate_is_near_what_the_layout_was_chosen_for() -> None:
    """58 behaviours with ids of 8 bytes: 1.9 kB for the history alone, by the server's own account."""
    short, long = (estimate(10_000_000, item_bytes=n, user_bytes=8, n_sample=200) for n in (8, 60))
    assert isinstance(short["bytes_per_user"], int)
    assert isinstance(long["bytes_per_user"], int)
    assert 1_500 < short["bytes_per_user"] < 2_200
    assert long["bytes_per_user"] > 3 * short["bytes_per_user"]
    assert short["total_bytes"] == pytest.approx(short["bytes_per_user"] * 10_000_000, rel=0.001)
    with pytest.raises(ValueError, match="at least one"):
        estimate(0)


WRITER = """
import asyncio, sys, time
from service.errors import StoreUnavailable
from service.user_store import BehaviourEvent, RedisUserStore, StoreSettings
async def main(url, name, now):
    store, number = RedisUserStore(StoreSettings(url, timeout_ms=10_000, pool_wait_ms=5_000, keep=1000)), 0
    while True:
        event = BehaviourEvent(f"{name}_{number // 50}", f"i_{number}", "click", now - number)
        try:
            await store.append([event])
        except StoreUnavailable:
            await asyncio.sleep(0.01)
            continue
        print(number, flush=True)
        number += 1
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def n_lost_to_kills(folder: Path, n_kills: int) -> tuple[int, int]:
    """(acknowledged and written, lost) when a server is killed hard under writers in processes of their own."""
    now = time.time_ns() // 1_000_000
    store = EmbeddedStore(folder)
    store.start()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, store.url, name, str(now)], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    try:
        for _ in range(n_kills):
            for writer in writers:
                assert writer.stdout is not None
                for _ in range(100):
                    writer.stdout.readline()
            wait_until_written(store.url)
            os.kill(store.pid, signal.SIGKILL)
            store.stop()
            store.start()
    finally:
        for writer in writers:
            writer.kill()
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
        writer.wait()
    wanted = {(f"{name}_{n // 50}", f"i_{n}") for name in ("a", "b") for n in range(100 * n_kills)}
    stored = set[tuple[str, object]]()
    for user in {user for user, _ in wanted}:
        behaviours = inspect_user(StoreSettings(store.url, timeout_ms=10_000), user)["behaviours"]
        assert isinstance(behaviours, list)
        stored |= {(user, one["item"]) for one in behaviours}
    store.stop()
    return len(wanted), len(wanted - stored)


def test_e1_acknowledged_behaviours_survive_a_killed_server(tmp_path: Path) -> None:
    n_acknowledged, n_lost = n_lost_to_kills(tmp_path, 3)
    assert (n_acknowledged, n_lost) == (600, 0)


def test_e1_saboteur_without_the_append_only_file_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = EmbeddedStore._arguments
    monkeypatch.setattr(EmbeddedStore, "_arguments", lambda self: [*arguments(self), "--appendonly", "no"])
    n_acknowledged, n_lost = n_lost_to_kills(tmp_path, 1)
    assert n_lost > 0.5 * 200
    assert n_acknowledged >= 200
