"""Erasing a user of a service with a real store and a request log: nothing is left, and everyone else is."""

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
import redis.asyncio
from pydantic import SecretStr

from service.api_keys import SCOPES, add_key
from service.contract.bundle import Bundle
from service.embedded_store import embedded_store
from service.redis_client import command_client
from service.request_log import RequestLog
from service.settings import Settings
from service.user_store import RedisUserStore
from tests.asgi_client import Client, opened
from tests.chaos.open_loop import LoadClient
from tests.chaos.service_process import service_process
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.e2e
CANARY = "u-canary-7f3"
DEADLINE_MS = 800  # of a ranking, and so how long each erasure waits for those under way


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_small_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        yield url


@contextmanager
def service(bundle: Bundle, url: str, folder: Path, keys: Path | None = None) -> Iterator[Client]:
    client = command_client(url)
    client.flushall()
    client.close()
    settings = Settings(
        bundle_root=bundle.path, redis_url=SecretStr(url), request_log=folder / "ranked.ndjson", keys_file=keys,
        redis_read_budget_ms=1000, redis_timeout_ms=5000, redis_pool_wait_ms=1000,
        deadline_ms=DEADLINE_MS, max_deadline_ms=DEADLINE_MS,
    )  # fmt: skip
    with opened(settings) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranked")


@pytest.fixture(scope="module")
def client(bundle: Bundle, url: str, folder: Path) -> Iterator[Client]:
    with service(bundle, url, folder) as found:
        yield found


def plain(client: object) -> "redis.asyncio.Redis":
    """The client of one server."""
    assert isinstance(client, redis.asyncio.Redis)
    return client


def click(user: str, item: str = "i8", ago_s: int = 5) -> dict[str, object]:
    at = int(time.time() - ago_s) * 1000
    return {"event_id": "1", "type": "click", "user": user, "item": item, "time": at}


def everything(url: str, folder: Path) -> str:
    """All keys and values of the store, and all files of the log."""
    client = command_client(url)
    found = [(key, client.dump(key)) for key in client.keys("*")]
    client.close()
    return str(found) + "".join(path.read_text() for path in folder.glob("ranked*"))


def our_lines(caplog: pytest.LogCaptureFixture) -> str:
    """What the service logged, without the lines of the client that these tests use."""
    return str([(vars(record), record.getMessage()) for record in caplog.records if record.name.startswith("daian")])


def n_used(client: Client, user: str, headers: dict[str, str] | None = None) -> int:
    until = time.monotonic() + 30
    while (answer := client("POST", "/rank", json={"user": user, "trigger": "i0"}, headers=headers)).status_code == 503:
        assert time.monotonic() < until, "never ranked"
    return int(answer.json()["behaviours"]["used"])


def erase(client: Client, user: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return client("DELETE", f"/v1/users/{quote(user, safe='')}", headers=headers)


def test_g18_nothing_of_an_erased_user_is_left_and_the_receipt_has_no_id(
    client: Client, url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sent = [click(CANARY, f"i{n + 1}", 5 + n) for n in range(7)] + [click("other")]
    assert client("POST", "/events", json={"events": sent}).json()["accepted"] == 8
    assert [n_used(client, user) for user in (CANARY, CANARY, "other")] == [7, 7, 1]
    first, again = erase(client, CANARY), erase(client, CANARY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["erased"] == {"behaviours": 7, "profile": 0, "other_keys": 0, "log_rows": 2}
    assert set(again.json()["erased"].values()) == {0}
    assert first.json()["receipt"] != again.json()["receipt"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.json()["erased_at"])
    left = everything(url, folder)
    assert CANARY not in left + first.text + again.text
    assert "other" in left
    assert first.json()["receipt"] in our_lines(caplog)
    assert CANARY not in our_lines(caplog)
    assert [n_used(client, user) for user in (CANARY, "other")] == [0, 1]


@pytest.mark.parametrize("where", ["store", "log"])
def test_g18_a_part_that_is_forgotten_is_seen(
    client: Client, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def nothing(*_: object) -> int:
        return 0

    user = f"u-left-in-{where}"
    client("POST", "/events", json={"events": [click(user)]})
    n_used(client, user)
    if where == "store":

        async def forgets_one(store: RedisUserStore, keys: list[str]) -> list[object]:
            return [await plain(store.writes).zremrangebyrank(f"{keys[0]}:other", 0, -1), 0, 0, 0]

        monkeypatch.setattr(RedisUserStore, "_erase", forgets_one)
    else:
        monkeypatch.setattr(RequestLog, "erase", nothing)
    assert erase(client, user).status_code == 200
    until = time.monotonic() + 30
    while user not in everything(url, folder):  # its row is written behind the answer
        assert time.monotonic() < until, "what was forgotten is not seen"
        time.sleep(0.05)


def test_g18_a_late_event_does_not_bring_an_erased_user_back_and_a_new_one_counts(
    client: Client, url: str, folder: Path
) -> None:
    user = "u-late-5d1"
    late = {"events": [click(user)]}
    assert client("POST", "/events", json=late).json()["accepted"] == 1
    assert erase(client, user).json()["sealed"] is True
    again = client("POST", "/events", json=late).json()
    assert (again["accepted"], again["duplicates"], again["erased"]) == (0, 0, 1)
    assert n_used(client, user) == 0
    erase(client, user)  # the row of the ranking just made
    assert user not in everything(url, folder)
    time.sleep(1.1)
    new = client("POST", "/events", json={"events": [click(user, ago_s=0)]}).json()
    assert (new["accepted"], new["erased"]) == (1, 0)
    time.sleep(1.1)
    assert n_used(client, user) == 1


@pytest.mark.parametrize("user", ["a/b", "a//b/", "a?b#c", "é", "100%", "{x}:b", "*", "日本", "a b", "/"])
def test_odd_ids_are_erased_and_nobody_else(client: Client, user: str) -> None:
    client("POST", "/events", json={"events": [click(user), click("bystander")]})
    assert erase(client, user).json()["erased"]["behaviours"] == 1
    assert n_used(client, user) == 0
    assert n_used(client, "bystander") > 0


@pytest.mark.parametrize("raw", ["", "%00", "%FF", "%ED%A0%80", "x" * 129])
def test_what_cannot_be_a_user_is_refused_and_not_repeated(client: Client, raw: str) -> None:
    answer = client("DELETE", f"/v1/users/{raw}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["instance"] == "/v1/users/{id}"
    assert not raw or raw not in answer.text


def test_one_tenant_can_neither_see_nor_erase_the_users_of_another(bundle: Bundle, url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    shop, rival = ({"x-api-key": add_key(file, name, "all", list(SCOPES)).text} for name in ("shop", "rival"))
    with service(bundle, url, tmp_path, file) as client:
        for headers, items in ((shop, ["i8"]), (rival, ["i3", "i4"])):
            events = [click("u1", item) for item in items]
            assert client("POST", "/events", json={"events": events}, headers=headers).json()["accepted"] == len(items)
        assert [n_used(client, "u1", headers) for headers in (shop, rival)] == [1, 2]
        assert erase(client, "u1").status_code == 401
        assert erase(client, "u1", shop).json()["erased"]["behaviours"] == 1
        assert [n_used(client, "u1", headers) for headers in (shop, rival)] == [0, 2]
        ranked = [json.loads(line) for line in (tmp_path / "ranked.rival.ndjson").read_text().splitlines()]
        assert ranked[0]["user"] == {"user": "u1"}


def test_an_erasure_without_a_store_is_a_503_that_says_nothing(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = Settings(bundle_root=bundle.path, redis_url=SecretStr("redis://127.0.0.1:9"))
    with opened(settings) as client:
        answer = erase(client, CANARY)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert CANARY not in answer.text + our_lines(caplog)


# --- many users, and every file of a running service ------------------------------------------------------------------

N_ERASED = int(os.environ.get("DAIAN_TEST_ERASED_USERS", "20"))
AT_ONCE = 50
ERASED_AT_ONCE = 500  # each call waits for rankings that began before it
ERASED_WITHIN_S = 10
PLACES = {
    "the store's files": "store/**/*", "the request log": "ranked*", "the service's log": "*.log"
}  # fmt: skip


@dataclass
class Erasure:
    """Users of whom something was found, by place: as they were, after the erasure, and after the file's rewrite."""

    before: dict[str, int]
    after: dict[str, int]
    rewritten: dict[str, int]
    in_store: int
    n_refused: int
    seconds: float


def traces(folder: Path, users: list[str]) -> dict[str, int]:
    """How many of the users are named in the files of each place, byte by byte."""
    found = {}
    for place, pattern in PLACES.items():
        content = b"".join(path.read_bytes() for path in folder.glob(pattern) if path.is_file())
        found[place] = sum(user.encode() in content for user in users)
    return found


def in_store(url: str, users: list[str]) -> int:
    """How many are named by a key or a value of the store."""
    client = command_client(url)
    content = str([(key, client.dump(key)) for key in client.keys("*")])
    client.close()
    return sum(user in content for user in users)


def rewrite(url: str) -> None:
    """What docs/operate.md asks of whoever runs the store; returns when it is done."""
    client = command_client(url)
    client.bgrewriteaof()
    until = time.monotonic() + 60
    while "aof_rewrite_in_progress:1" in (info := _info(client)) or "aof_rewrite_scheduled:1" in info:
        assert time.monotonic() < until, "the rewrite never ended"
        time.sleep(0.05)
    client.close()


def _info(client: redis.Redis) -> str:
    found = client.info("persistence")
    return "\n".join(f"{name}:{value}" for name, value in found.items())


def erased_users(bundle: Bundle, folder: Path, n_users: int, prelude: str = "") -> Erasure:
    """Users who click and are ranked at `daian serve`, and are then erased, some at once."""
    users = [f"u-erased-{number:05}-7f3" for number in range(n_users)]
    with embedded_store(folder / "store") as url:
        client = command_client(url)
        for name, value in (("rdbcompression", "no"), ("aof-use-rdb-preamble", "no")):  # or no search would see them
            client.config_set(name, value)
        client.close()
        given = {"DAIAN_REDIS_URL": url, "DAIAN_REQUEST_LOG": str(folder / "ranked.ndjson"), "DAIAN_LOG_LEVEL": "debug",
                 "DAIAN_REDIS_READ_BUDGET_MS": "1000", "DAIAN_REDIS_TIMEOUT_MS": "5000",
                 "DAIAN_REDIS_POOL_WAIT_MS": "1000",
                 "DAIAN_MAX_CONNECTIONS_PER_PEER": str(2 * ERASED_AT_ONCE)}  # fmt: skip
        with service_process(bundle.path, folder, (), prelude, **given) as service:
            statuses, seconds = asyncio.run(_live_and_be_erased(service.url, folder, users))
            found = Erasure(*statuses[:2], {}, in_store(url, users), statuses[2], seconds)
            rewrite(url)
        found.rewritten = traces(folder, users)
    return found


async def _live_and_be_erased(
    url: str, folder: Path, users: list[str]
) -> tuple[tuple[dict[str, int], dict[str, int], int], float]:
    at = urlsplit(url)
    eraser = LoadClient(at.hostname or "", at.port or 0, most=ERASED_AT_ONCE)  # httpx takes longer than the service
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        turns = asyncio.Semaphore(AT_ONCE)

        async def live(user: str) -> None:
            async with turns:
                events = {"events": [{**click(user, item), "event_id": item} for item in ("i8", "i3", "i4")]}
                assert (await client.post("/v1/events", json=events)).json()["accepted"] == 3
                asked = {"user": user, "trigger": "i0", "candidates": ["i7", "i9"]}
                until = time.monotonic() + 60
                while (await client.post("/v1/rank", json=asked)).status_code == 503:
                    assert time.monotonic() < until, "never ranked"
                    await asyncio.sleep(0.05)  # too many at once for so small a machine

        async def be_erased(user: str) -> bool:
            request = f"DELETE /v1/users/{user} HTTP/1.1\r\nhost: service\r\n\r\n"
            answer = await eraser.ask(request.encode(), 120)
            return answer.status == 200 and json.loads(answer.body)["sealed"] is True

        await asyncio.gather(*(live(user) for user in [*users, "bystander"]))
        until = time.monotonic() + 30
        while before := traces(folder, users):  # rows are written behind the answer, the store's file each second
            if min(before["the store's files"], before["the request log"]) == len(users) or time.monotonic() > until:
                break
            await asyncio.sleep(0.1)
        started_s = time.monotonic()
        done = await asyncio.gather(*(be_erased(user) for user in users))
        seconds = time.monotonic() - started_s
        eraser.close()
        await asyncio.sleep(1.5)
        asked, until = {"user": "bystander", "trigger": "i0", "deadline_ms": 2000}, time.monotonic() + 30
        while (answer := await client.post("/v1/rank", json=asked)).status_code == 503:
            assert time.monotonic() < until, "never ranked"
        assert answer.json()["behaviours"]["used"] == 3
        return (before, traces(folder, users), done.count(False)), seconds


def test_g18_many_users_are_erased_and_no_file_names_them(
    bundle: Bundle, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = erased_users(bundle, tmp_path, N_ERASED)
    left = {"the store": found.in_store, **found.rewritten}
    for place, n in left.items():
        record_property("G18", f"erased users named in {place}: {n} of {N_ERASED}")
    record_property("G18", f"erasures that did not end with a sealed receipt: {found.n_refused} of {N_ERASED}")
    took = f"{found.seconds:.2f} s, at most {ERASED_WITHIN_S}"
    record_property("G18", f"{N_ERASED:,} users erased, {min(N_ERASED, ERASED_AT_ONCE)} calls at once: {took}")
    record_property(
        "G18",
        "note: files were searched behind BGREWRITEAOF, which the store needs once a day; one "
        "address was let have more than its 256 connections",
    )
    assert set(left.values()) == {0}
    assert found.n_refused == 0
    # All of them were there to be found, and the append-only file keeps them until its rewrite.
    named = {"the store's files": N_ERASED, "the request log": N_ERASED, "the service's log": 0}
    assert found.before == named
    assert found.after == {**dict.fromkeys(PLACES, 0), "the store's files": N_ERASED}


FORGETS_THE_LOG = """
import service.request_log as module
async def _nothing(*_):
    return 0
module.RequestLog.erase = _nothing
"""


def test_g18_a_log_that_is_forgotten_is_seen_in_its_file(bundle: Bundle, tmp_path: Path) -> None:
    found = erased_users(bundle, tmp_path, 3, FORGETS_THE_LOG)
    assert found.rewritten == {**dict.fromkeys(PLACES, 0), "the request log": 3}
