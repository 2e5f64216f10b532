"""The admin calls over ASGI: on the port of their own, or behind a key, and nowhere else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import ByPort, create_admin_app, create_app, running
from service.contract.bundle import point_to
from service.settings import Settings
from tests.small_bundle import write_small_bundle

ADMIN_PORT = 8999
PROMOTE = "/v1/admin/models/daian:promote"
ROLLBACK = "/v1/admin/models/daian:rollback"


class Client:
    """Calls an app at either of its ports."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._app, self._loop = app, loop

    def __call__(self, port: int, method: str, path: str, **rest: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://service:{port}") as client:
                return await client.request(method, path, **rest)

        return self._loop.run_until_complete(asked())


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    first = write_small_bundle(tmp_path, version="v1")
    write_small_bundle(tmp_path, version="v2")
    point_to(tmp_path, first)
    app = create_app(Settings(bundle_root=tmp_path, bundle_poll_s=0, admin_port=ADMIN_PORT))
    parts = app.state.parts
    monkeypatch.setattr(parts.swap._trial, "run", lambda _: None)  # the child has tests of its own
    with asyncio.Runner() as runner:
        opened = running(parts)
        runner.run(opened.__aenter__())
        yield Client(ByPort(app, create_admin_app(parts), ADMIN_PORT), runner.get_loop())
        runner.run(opened.__aexit__(None, None, None))


def test_a_promoted_version_answers_and_rollback_brings_the_old_one_back(call: Client) -> None:
    answer = call(ADMIN_PORT, "POST", PROMOTE, json={"version": "v2", "if_live": "v1"})
    assert (answer.status_code, answer.json()["version"], answer.json()["previous"]) == (200, "v2", "v1")
    assert call(80, "POST", "/rank", json={"trigger": "i0"}).json()["model"]["version"] == "v2"
    versions = call(80, "GET", "/v1/models").json()["models"][0]["versions"]
    assert [(one["version"], one["state"], one["traffic"]) for one in versions] == [
        ("v2", "live", 1.0), ("v1", "previous", 0.0)
    ]  # fmt: skip
    answer = call(ADMIN_PORT, "POST", ROLLBACK)
    assert (answer.status_code, answer.json()["version"]) == (200, "v1")
    assert call(80, "POST", "/rank", json={"trigger": "i0"}).json()["model"]["version"] == "v1"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (PROMOTE, {"version": "v9"}, 404, "not_found"),
        (PROMOTE, {"version": "../v2"}, 404, "not_found"),
        (PROMOTE, {"version": "v2", "if_live": "v9"}, 409, "version_conflict"),
        (PROMOTE, {}, 422, "validation_failed"),
        (PROMOTE, {"version": "v2", "force": True}, 422, "unknown_field"),
        (ROLLBACK, {}, 404, "not_found"),
        ("/v1/admin/models/din:promote", {"version": "v2"}, 404, "not_found"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(
    call: Client, path: str, body: dict[str, object], status: int, code: str
) -> None:
    answer = call(ADMIN_PORT, "POST", path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert call(80, "GET", "/readyz?verbose").json()["bundle"] == "daian@v1"


def test_a_refused_bundle_is_422_with_file_and_reason(call: Client, tmp_path: Path) -> None:
    (tmp_path / "daian/v2/golden.jsonl").write_bytes(b"")
    answer = call(ADMIN_PORT, "POST", PROMOTE, json={"version": "v2"})
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle_refused")
    assert "v2/golden.jsonl: SHA-256" in answer.json()["detail"]


def test_the_public_port_has_neither_metrics_nor_admin_calls(call: Client) -> None:
    assert call(80, "GET", "/metrics").status_code == 404
    for path in (PROMOTE, ROLLBACK):
        assert call(80, "POST", path, json={"version": "v2"}).status_code == 404
        assert call(80, "POST", path, headers={"host": f"service:{ADMIN_PORT}"}).status_code == 404


def test_the_admin_port_has_metrics_and_probes_and_does_not_rank(call: Client) -> None:
    for path in ("/metrics", "/livez", "/readyz", "/v1/models", "/v1/limits"):
        assert call(ADMIN_PORT, "GET", path).status_code == 200
    for path in ("/rank", "/v1/rank", "/events"):
        assert call(ADMIN_PORT, "POST", path, json={"trigger": "i0"}).status_code == 404


def status_of(settings: Settings, method: str, path: str) -> int:
    with asyncio.Runner() as runner:
        return Client(create_app(settings), runner.get_loop())(80, method, path).status_code


def test_without_a_port_of_their_own_admin_calls_are_public_only_where_a_key_is_asked_for(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    assert status_of(Settings(), "GET", "/metrics") == 200
    assert status_of(Settings(), "POST", PROMOTE) == 404
    assert status_of(Settings(keys_file=keys), "POST", PROMOTE) == 401
    assert status_of(Settings(keys_file=keys, admin_port=1), "POST", PROMOTE) == 404
