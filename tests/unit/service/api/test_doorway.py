"""The doorway: in an overload most requests end there, cheaply, counted and unlogged; all else goes on as ever."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from service.api.doorway import Doorway
from service.app import create_admin_app, create_app
from service.contract.bundle import Bundle
from service.door import DOORWAY
from service.settings import Settings
from tests.asgi_client import Client, opened

N_AT_ONCE = 60


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
    assert found is None or (b"x-request-id", b"mine") in found.headers


def test_the_lifespan_hands_the_door_to_the_server(bundle: Bundle) -> None:
    app = create_app(Settings(bundle_root=bundle.path))

    async def handed_over() -> object:
        async with app.router.lifespan_context(app) as state:
            return (state or {}).get(DOORWAY)

    assert isinstance(asyncio.run(handed_over()), Doorway)
