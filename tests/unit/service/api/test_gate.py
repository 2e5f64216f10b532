"""Who may what: keys, scopes, and answers that say nothing of what was wrong."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.api_keys import SCOPES, KeyRing, add_key, revoke_key
from service.contract.bundle import Bundle
from service.settings import Settings
from tests.asgi_client import Client, opened

# What a key must be good for; None: open to all; "any": every live key.
NEEDED: list[tuple[str, str, str | None]] = [
    ("POST", "/v1/rank", "rank"), ("POST", "/rank", "rank"), ("POST", "/v1/events", "events"),
    ("POST", "/events", "events"), ("GET", "/v1/models", "any"), ("GET", "/v1/models/daian/versions/v1", "any"),
    ("GET", "/v1/limits", "any"), ("GET", "/metrics", "admin"), ("DELETE", "/v1/users/u1", "erase"),
    ("GET", "/livez", None), ("GET", "/readyz", None),
    ("GET", "/v2/health/live", None), ("GET", "/v2/health/ready", None), ("GET", "/openapi.json", None),
    ("GET", "/docs", None), ("GET", "/nowhere", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    """A key for each scope."""
    return {scope: add_key(file, "shop", f"only-{scope}", [scope]).text for scope in SCOPES}


@pytest.fixture(scope="module")
def call(bundle: Bundle, file: Path, keys: dict[str, str]) -> Iterator[Client]:
    assert keys
    with opened(Settings(bundle_root=bundle.path, keys_file=file, deadline_ms=2000)) as client:
        yield client


def body_of(path: str) -> dict[str, object]:
    return {"trigger": "i0"} if path.endswith("rank") else {"events": []}


def status(call: Client, method: str, path: str, key: str | None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return call(method, path, json=body_of(path) if method == "POST" else None, headers=headers).status_code


@pytest.mark.parametrize(("method", "path", "needed"), NEEDED)
def test_each_route_wants_its_scope_and_no_other(
    call: Client, keys: dict[str, str], method: str, path: str, needed: str | None
) -> None:
    call.catch_up()
    good = 404 if path == "/nowhere" else 200
    assert status(call, method, path, None) == (good if needed is None else 401)
    for scope in SCOPES:
        expected = good if needed in (None, "any", scope) else 403
        assert status(call, method, path, keys[scope]) == expected, scope


def test_every_route_of_the_service_is_in_this_table(call: Client) -> None:
    routes = {
        (method, re.sub(r"\{name\}/versions/\{version\}", "daian/versions/v1", route.path))
        for route in call.app.routes
        for method in getattr(route, "methods", ())
    }
    assert routes <= {(method, path) for method, path, _ in NEEDED}, "say here what a key must be good for"


def test_without_the_gate_anybody_is_let_in(call: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyRing, "is_on", property(lambda _: False))
    assert status(call, "POST", "/v1/rank", None) == 200
    assert status(call, "POST", "/v1/events", "nonsense") == 200


def bad_credentials(good: str) -> list[dict[str, str]]:
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    nobody = "daian_" + "0" * 12 + good[18:]
    texts = ["", " ", "x", wrong, nobody, good.upper(), good + "A", good[:-1], good[6:], good.rpartition("_")[2],
             "daian__", "null", "undefined", "*", "../keys.json", "a" * 9000]  # fmt: skip
    found = [{"authorization": f"Bearer {text}"} for text in texts] + [{"x-api-key": text} for text in texts[1:]]
    found += [{"authorization": value} for value in ("", good, f"Basic {good}", f"Bearer{good}", f"Token {good}")]
    found += [{"authorization": f"Bearer {good}", "x-api-key": value} for value in (good, wrong)]
    return [*found, {"cookie": f"key={good}"}, {}]


def test_whatever_is_wrong_with_a_key_the_answer_is_one(call: Client, keys: dict[str, str]) -> None:
    answers = set()
    credentials = bad_credentials(keys["rank"])
    assert len(credentials) > 30
    for headers in credentials:
        answer = call("POST", "/v1/rank", json={"trigger": "i0"}, headers={**headers, "x-request-id": "one"})
        assert answer.status_code == 401, headers
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
        answers.add(answer.content)
    assert len(answers) == 1
    assert b"shop" not in answers.pop()


def test_a_key_may_come_in_either_header(call: Client, keys: dict[str, str]) -> None:
    for headers in ({"authorization": f"bEARER {keys['rank']}"}, {"x-api-key": keys["rank"]}):
        assert call("POST", "/rank", json={"trigger": "i0"}, headers=headers).status_code == 200


def test_a_key_is_not_repeated_and_not_logged_but_its_id_is(
    call: Client, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    texts = [call("GET", "/metrics", headers={"x-api-key": keys["rank"]}).text]
    texts += [call("POST", "/rank", json={"trigger": 7}, headers={"x-api-key": keys["rank"]}).text]
    logged = "".join(str(vars(record)) for record in caplog.records)
    for text in [*texts, logged]:
        assert keys["rank"] not in text
        assert keys["rank"].rpartition("_")[2] not in text
    assert "shop" not in "".join(texts)
    assert keys["rank"].split("_")[1] in logged


def test_nobody_without_a_key_has_a_body_read(call: Client) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"{}"

    headers = {"content-type": "application/json", "x-api-key": "none"}
    assert call("POST", "/rank", content=body(), headers=headers).status_code == 401
    assert not read


def test_a_revoked_key_is_out_within_seconds_and_without_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = (add_key(file, "shop", "web", ["rank"]) for _ in range(2))
    with opened(Settings(bundle_root=bundle.path, keys_file=file, deadline_ms=2000)) as client:
        assert [status(client, "POST", "/rank", one.text) for one in (first, second)] == [200, 200]
        revoke_key(file, first.record.id)
        for _ in range(10):  # once, where the machine does not stand still
            client.wait(1.5)
            if status(client, "POST", "/rank", first.text) == 401:
                break
        assert [status(client, "POST", "/rank", one.text) for one in (first, second)] == [401, 200]


def test_a_keys_file_that_is_missing_or_broken_stops_the_start(bundle: Bundle, tmp_path: Path) -> None:
    for content in (None, "{"):
        file = tmp_path / "keys.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(Exception, match=r"keys\.json"), opened(Settings(bundle_root=bundle.path, keys_file=file)):
            pass


def test_a_service_without_keys_says_so_at_its_start(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with opened(Settings(bundle_root=bundle.path)):
        pass
    assert any("no keys" in record.getMessage() for record in caplog.records)


# --- quotas -----------------------------------------------------------------------------------------------------------


@contextmanager
def two_tenants(bundle: Bundle, folder: Path, rate: float) -> Iterator[tuple[Client, str, str]]:
    """A service with a quota, and a rank key of either tenant."""
    loud, calm = (add_key(folder / "keys.json", name, "web", ["rank", "admin"]).text for name in ("loud", "calm"))
    limits = {"tenant_rate": rate, "tenant_burst": 5, "deadline_ms": 2000}
    with opened(Settings(bundle_root=bundle.path, keys_file=folder / "keys.json", **limits)) as client:
        yield client, loud, calm


def test_g16_a_loud_tenant_gets_429_and_the_others_feel_nothing(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b'{"trigger": "i0"}'

    def ask(key: str) -> httpx.Response:
        return client("POST", "/rank", content=body(), headers={"content-type": "application/json", "x-api-key": key})

    with two_tenants(bundle, tmp_path, rate=0.01) as (client, loud, calm):
        answers = [ask(loud) for _ in range(50)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 45
        assert len(read) == 5  # refused before the body is looked at
        refused = answers[-1]
        assert refused.json()["code"] == "tenant_quota"
        assert int(refused.headers["retry-after"]) * 1000 >= refused.json()["retry_after_ms"] > 1000
        assert "loud" not in refused.text
        assert [ask(calm).status_code for _ in range(5)] == [200] * 5
        text = client("GET", "/metrics", headers={"x-api-key": loud}).text  # operators are never over a quota
        assert 'daian_tenant_rejected_total{tenant="loud"} 45.0' in text
        assert client("GET", "/livez").status_code == 200
    lines = [vars(record)["fields"]["status"] for record in caplog.records if record.getMessage() == "request"]
    assert 200 in lines
    assert 429 not in lines


def test_g16_without_a_quota_the_loud_tenant_takes_what_it_likes(bundle: Bundle, tmp_path: Path) -> None:
    with two_tenants(bundle, tmp_path, rate=0.0) as (client, loud, _):
        assert {status(client, "POST", "/rank", loud) for _ in range(50)} == {200}


def test_without_keys_all_callers_share_one_quota(bundle: Bundle) -> None:
    with opened(Settings(bundle_root=bundle.path, tenant_rate=0.01, tenant_burst=2)) as client:
        assert [client("GET", "/v1/limits").status_code for _ in range(3)] == [200, 200, 429]


# --- priorities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, 200), ({"x-priority": "Interactive"}, 200), ({"x-priority": "prefetch"}, 503), ({"x-priority": "vip"}, 400)],
)
def test_a_prefetch_is_shed_where_a_person_is_still_served(
    call: Client, keys: dict[str, str], headers: dict[str, str], expected: int
) -> None:
    admission = call.app.state.parts.admission
    before, admission._service_s = admission._service_s, 0.8 * admission._n_threads
    admission._in_flight += admission._n_threads  # the next one waits 0.8 s of its 2
    try:
        answer = call("POST", "/rank", json={"trigger": "i0"}, headers={"x-api-key": keys["rank"], **headers})
    finally:
        admission._service_s = before
        admission._in_flight -= admission._n_threads
    assert answer.status_code == expected
    assert expected != 503 or int(answer.headers["retry-after"]) >= 1
