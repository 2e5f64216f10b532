"""G14: users and items of requests, good, bad and failing, stand in no log line but as keyed hashes."""

import logging
import re

import pytest

from service.contract.bundle import Bundle
from service.metrics import JsonLines, TextLines, UserHasher
from service.settings import Settings
from service.user_store import MemoryUserStore, StoredUser
from tests.asgi_client import Client, opened

USER, ITEM = "canary-user-7f3", "canary-item-9c1"
STYLES: tuple[logging.Formatter, ...] = (JsonLines(), TextLines())


class Failing(MemoryUserStore):
    """Fails with the id on its lips, as libraries do."""

    async def fetch(self, user_id: str, requested_at: int, tenant: str | None = None) -> StoredUser:
        raise RuntimeError(f"no {user_id} of {tenant} at {requested_at}")

    async def erase(self, user_id: str, tenant: str | None = None) -> None:  # type: ignore[override]
        raise ValueError(f"no {user_id} of {tenant}")


def ask_everything(client: Client) -> str:
    """Answers to requests that hold both ids wherever an id may stand."""
    event = {"event_id": ITEM, "type": "click", "user": USER, "item": ITEM, "time": 1}
    answers = [
        client.rank(user=USER, trigger=ITEM, candidates=[ITEM], exclude=[ITEM], behaviours=[{"item": ITEM, "time": 5}]),
        client("POST", "/events", json={"events": [event, {**event, "time": USER}]}),
        client("DELETE", f"/v1/users/{USER}"),
        client("GET", f"/v1/users/{USER}"),
        client("GET", f"/{USER}?user={USER}"),
        client("GET", f"/livez?user={USER}"),
    ]
    client.rank(user=USER, trigger=ITEM)
    return "".join(answer.text for answer in answers[1:])


def written(caplog: pytest.LogCaptureFixture) -> str:
    """Our lines in both styles, as they go to stdout."""
    records = [record for record in caplog.records if record.name.split(".")[0] not in ("httpx", "httpcore")]
    for record in records:
        record.exc_text = None  # what the handler of these tests made of the exception
    return "\n".join(style.format(record) for record in records for style in STYLES)


@pytest.mark.parametrize("store", [MemoryUserStore, Failing])
def test_g14_no_log_line_and_no_error_holds_an_id(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, store: type[MemoryUserStore]
) -> None:
    caplog.set_level("DEBUG")
    with opened(Settings(bundle_root=bundle.path, deadline_ms=2000), store()) as client:
        answers = ask_everything(client)
        hashes = client.app.state.parts.hash_user
    lines = written(caplog)
    assert "request" in lines
    for one in (USER, ITEM):
        assert one not in lines
        assert one not in answers
    assert hashes(USER) in lines
    assert hashes.item(ITEM) in lines


def test_g14_a_message_that_is_written_out_would_be_seen(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JsonLines, "format", logging.Formatter("%(message)s").format)
    with opened(Settings(bundle_root=bundle.path, deadline_ms=2000), Failing()) as client:
        client.rank(user=USER, trigger=ITEM)
    assert USER in written(caplog)


def test_a_name_in_the_log_depends_on_the_key_and_on_what_is_named() -> None:
    names = {UserHasher(key)(USER) for key in (b"a", b"b", None)} | {UserHasher(b"a").item(USER)}
    assert len(names) == 4
    assert all(re.fullmatch(r"[0-9a-f]{12}", str(name)) for name in names)
    assert UserHasher(b"a")(USER) == UserHasher(b"a")(USER)
