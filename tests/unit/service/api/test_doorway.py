"""The doorway: in an overload most requests end there, cheaply, counted and unlogged; all else goes on as ever."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.api.doorway import Doorway
from service.api_keys import KeyRing, add_key
from service.app import create_admin_app, create_app
from service.contract.bundle import Bundle
from service.deadline import Deadline
from service.door import DOORWAY, Refusal
from service.settings import Settings
from tests.asgi_client import Client, opened

N_AT_ONCE = 60
ASKED = {"trigger": "i0", "candidates": ["i1"]}


@pytest.fixture
def call(bundle: Bundle) -> Iterator[Client]:
    with opened(Settings(bundle_root=bundle.path, deadline_ms=2000)) as client:
        yield client


@pytest.fixture
def overloaded(call: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(call.app.state.parts.admission, "predicted_wait_s", lambda: 10.0)
    return call


def at_once(call: Client) -> list[httpx.Response]:
    """What becomes of many rankings that come in one breath, when one takes a twentieth of its deadline.

    As far as admission knows: what they really take on this machine is not told to it.
    """
    admission = call.app.state.parts.admission
    admission._service_s = 0.1 * admission._n_threads
    admission.observe = lambda *_: None

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(call.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            asked = [client.post("/v1/rank", json={"trigger": "i0"}) for _ in range(N_AT_ONCE)]
            return list(await asyncio.gather(*asked))

    try:
        return call._loop.run_until_complete(all_of_them())
    finally:
        del admission.observe


def logged(caplog: pytest.LogCaptureFixture) -> int:
    """How many refusals for overload got as far as the log."""
    found = [getattr(record, "fields", {}) for record in caplog.records if record.getMessage() == "request"]
    return sum(fields.get("code") == "overloaded" for fields in found)


def test_a_refusal_has_all_that_an_answer_has(overloaded: Client) -> None:
    answer = overloaded("POST", "/rank", json={"trigger": "i0"}, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    assert (answer.json()["code"], answer.json()["instance"]) == ("overloaded", "/rank")
    assert answer.headers["cache-control"] == "no-store"
    assert "total;dur=" in answer.headers["server-timing"]


def test_a_refusal_is_counted_and_not_logged(overloaded: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daian.http")
    assert overloaded.rank(trigger="i0").status_code == 503
    text = overloaded.app.state.parts.metrics.text().decode()
    assert 'daian_requests_total{route="/v1/rank",status="503",surface="other",variant="live"} 1.0' in text
    assert 'daian_shed_total{reason="overload"} 1.0' in text
    assert logged(caplog) == 0


def test_draining_is_said_there_too(overloaded: Client) -> None:
    overloaded.app.state.parts.health.draining = True
    assert overloaded.rank(trigger="i0").headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/livez", {}, 200),
        ("GET", "/v1/rank", {}, 405),
        ("POST", "/v1/events", {"content-type": "text/html"}, 415),
        ("POST", "/v1/rank", {"x-priority": "vip"}, 400),
        ("POST", "/v1/rank", {"x-timeout-ms": "soon"}, 400),
        ("POST", "/v1/rank", {"x-timeout-ms": "nan"}, 400),
        ("POST", "/v1/rank", {"x-timeout-ms": "-5"}, 400),
        ("POST", "/v1/rank", {"x-priority": "prefetch"}, 503),
        ("POST", "/v1/rank", {"x-timeout-ms": "100"}, 503),
    ],
)
def test_what_is_not_a_ranking_without_a_chance_goes_on(
    overloaded: Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    assert overloaded(method, path, headers=headers).status_code == status


def test_those_who_come_in_one_breath_are_refused_at_the_door(call: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daian.http")
    statuses = [answer.status_code for answer in at_once(call)]
    assert statuses.count(200) >= 5  # the queue takes what it can
    assert statuses.count(503) > N_AT_ONCE / 2
    assert logged(caplog) == 0


def test_without_it_every_refusal_is_read_and_logged(
    call: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doorway, "refusal", lambda *_: None)
    caplog.set_level(logging.INFO, "daian.http")
    statuses = [answer.status_code for answer in at_once(call)]
    assert {*statuses} == {200, 503}
    assert logged(caplog) > N_AT_ONCE / 2


def test_the_admin_port_has_none(overloaded: Client) -> None:
    admin = Client(create_admin_app(overloaded.app.state.parts), overloaded._loop)
    assert admin("POST", "/v1/rank").status_code == 404


@pytest.mark.parametrize(
    ("method", "target", "port", "is_refused"),
    [
        (b"POST", b"/v1/rank", 8000, True),
        (b"POST", b"/rank", None, True),
        (b"POST", b"/rank?explain=1", 8000, False),
        (b"GET", b"/v1/rank", 8000, False),
        (b"POST", b"/v1/events", 8000, False),
        (b"POST", b"/v1/rank", 9000, False),
    ],
)
def test_what_a_server_is_told_before_it_makes_anything(
    overloaded: Client, method: bytes, target: bytes, port: int | None, is_refused: bool
) -> None:
    parts = overloaded.app.state.parts
    door = Doorway(overloaded.app, replace(parts, settings=parts.settings.model_copy(update={"admin_port": 9000})))
    found = door.turn_away(method, target, [(b"x-request-id", b"mine")], port)
    assert (found is not None) == is_refused
    assert found is None or (b"x-request-id", b"mine") in found.headers()


def test_the_lifespan_hands_the_door_to_the_server(bundle: Bundle) -> None:
    app = create_app(Settings(bundle_root=bundle.path))

    async def handed_over() -> object:
        async with app.router.lifespan_context(app) as state:
            return (state or {}).get(DOORWAY)

    assert isinstance(asyncio.run(handed_over()), Doorway)


# --- tenants ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tenants(bundle: Bundle, tmp_path: Path) -> Iterator[tuple[Client, dict[str, str]]]:
    """A service, and a key of each of its tenants."""
    file = tmp_path / "keys.json"
    keys = {name: add_key(file, name, "web", ["rank"]).text for name in ("loud", "calm")}
    with opened(Settings(bundle_root=bundle.path, keys_file=file, deadline_ms=2000)) as client:
        yield client, keys


def rank_as(call: Client, key: str) -> httpx.Response:
    return call("POST", "/v1/rank", json=ASKED, headers={"x-api-key": key})


def beside_each_other(call: Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """What becomes of many rankings of one tenant and, behind them, a few of another that has asked before.

    All are judged before the first is computed, by what admission is told that one takes: a twentieth of its deadline.
    """
    admission = call.app.state.parts.admission
    assert rank_as(call, keys["calm"]).status_code == 200
    admission._service_s = 0.1 * admission._n_threads
    monkeypatch.setattr(admission, "observe", lambda *_: None)
    run = admission.run

    async def later(*asked: object) -> object:
        await asyncio.sleep(0.7)
        return await run(*asked)

    monkeypatch.setattr(admission, "run", later)

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(call.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            senders = ["loud"] * N_AT_ONCE + ["calm"] * 4
            headers = [{"x-api-key": keys[one]} for one in senders]
            return list(await asyncio.gather(*(client.post("/v1/rank", json=ASKED, headers=one) for one in headers)))

    answers = call._loop.run_until_complete(all_of_them())
    for answer in answers:
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        assert answer.status_code != 429 or answer.json()["code"] == "tenant_share"
    statuses = [answer.status_code for answer in answers]
    return {"loud": statuses[:N_AT_ONCE], "calm": statuses[N_AT_ONCE:]}


def test_g16_a_loud_tenant_gets_half_of_the_queue_and_the_others_get_in(
    tenants: tuple[Client, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, keys = tenants
    admission = call.app.state.parts.admission
    found = beside_each_other(call, keys, monkeypatch)
    n_places = admission._n_threads + 11  # of 0.1 s in 0.7 of 2 s, by 1.2
    assert found["calm"] == [200] * 4
    assert found["loud"].count(200) == n_places // 2
    assert found["loud"].count(429) == N_AT_ONCE - n_places // 2
    text = call.app.state.parts.metrics.text().decode()
    assert f'daian_tenant_rejected_total{{tenant="loud"}} {found["loud"].count(429)}.0' in text
    assert f'daian_shed_total{{reason="share"}} {found["loud"].count(429)}.0' in text
    assert 'tenant="calm"' not in text
    assert admission._shares._held == {}


@pytest.mark.parametrize("n_read", [0, 1])
def test_that_it_has_its_half_is_said_before_the_body_is_read(
    tenants: tuple[Client, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n_read: int,
) -> None:
    """And without the doorway behind it, when the place is taken."""
    caplog.set_level(logging.INFO, "daian.http")
    call, keys = tenants
    admission, read = call.app.state.parts.admission, []
    rank_as(call, keys["calm"])
    admission._service_s = 0.1 * admission._n_threads
    for _ in range((admission._n_threads + 11) // 2):
        admission.enter(Deadline.after_ms(2000), "interactive", "loud")
    if n_read:
        monkeypatch.setattr(Doorway, "refusal", lambda *_: None)

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b'{"trigger": "i0"}'

    headers = {"content-type": "application/json", "x-api-key": keys["loud"], "x-request-id": "mine"}
    answer = call("POST", "/rank", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"], len(read)) == (429, "tenant_share", n_read)
    assert (answer.json()["instance"], answer.json()["request_id"]) == ("/rank", "mine")
    assert "loud" not in answer.text
    assert rank_as(call, keys["calm"]).status_code == 200
    lines = [vars(record)["fields"]["status"] for record in caplog.records if record.getMessage() == "request"]
    assert 429 not in lines


def test_g16_without_the_share_the_others_find_a_full_queue(
    tenants: tuple[Client, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.SHARE_OF_TENANT", 100.0)
    call, keys = tenants
    found = beside_each_other(call, keys, monkeypatch)
    assert found["calm"] == [503] * 4
    assert 429 not in found["loud"]


def test_who_is_refused_for_want_of_room_is_known_to_have_asked(
    tenants: tuple[Client, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, keys = tenants
    admission = call.app.state.parts.admission
    monkeypatch.setattr(admission, "predicted_wait_s", lambda: 10.0)
    assert rank_as(call, keys["loud"]).status_code == 503
    assert admission._shares.is_alone("loud")
    for key in ("nonsense", ""):
        assert rank_as(call, key).status_code == 503
    assert admission._shares.is_alone("loud")
    assert rank_as(call, keys["calm"]).status_code == 503
    assert not admission._shares.is_alone("loud")


def test_where_one_tenant_has_keys_the_door_looks_for_none(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "only", "web", ["rank"]).text
    with opened(Settings(bundle_root=bundle.path, keys_file=file, deadline_ms=2000)) as call:
        monkeypatch.setattr(call.app.state.parts.admission, "predicted_wait_s", lambda: 10.0)
        monkeypatch.setattr(KeyRing, "find", lambda *_: pytest.fail("it looked"))
        assert rank_as(call, key).status_code == 503


@pytest.mark.parametrize(("status", "line"), [(503, b"503 Service Unavailable"), (429, b"429 Too Many Requests")])
def test_a_refusal_is_written_whole(status: int, line: bytes) -> None:
    refusal = Refusal(status, b"content-length: 2\r\n", b"no")
    start = b"HTTP/1.1 " + line + b"\r\nserver: x\r\ncontent-length: 2\r\n"
    assert refusal.written([(b"server", b"x")], may_stay=True) == (start + b"\r\nno", False)
    assert refusal.written([(b"server", b"x")], may_stay=False) == (start + b"connection: close\r\n\r\nno", True)


@pytest.mark.parametrize("request_id", ['"', "\\", "%s", "100%", "{}", "plain"])
def test_an_id_of_any_characters_stays_one(overloaded: Client, request_id: str) -> None:
    answer = overloaded.rank(trigger="i0", request_id=request_id)
    assert answer.json()["request_id"] != request_id, "the body's id is not read here"
    answer = overloaded("POST", "/v1/rank", json={"trigger": "i0"}, headers={"x-request-id": request_id})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == request_id


def test_a_refusal_at_the_door_says_what_one_behind_it_says(
    overloaded: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"json": {"trigger": "i0"}, "headers": {"x-request-id": "mine"}}
    at_the_door = overloaded("POST", "/v1/rank", **asked)
    monkeypatch.setattr(Doorway, "refusal", lambda *_: None)
    behind_it = overloaded("POST", "/v1/rank", **asked)
    assert at_the_door.json() == behind_it.json()
    assert {*at_the_door.headers} <= {*behind_it.headers}
    for name in ("content-type", "content-length", "retry-after", "x-request-id", "cache-control"):
        assert at_the_door.headers[name] == behind_it.headers[name]
