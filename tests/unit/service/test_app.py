"""Loading the bundle that the settings name, and no other; what a refused start says."""

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message

from service.app import create_app, make_parts
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.settings import Settings
from tests.small_bundle import write_small_bundle


def test_the_named_bundle_becomes_live(bundle: Bundle) -> None:
    parts = make_parts(Settings(bundle_root=bundle.path))
    parts.swap.open_first()
    assert parts.switch.live.label == "daian@v1"


@pytest.mark.parametrize(("settings", "message"), [({}, "DAIAN_BUNDLE_ROOT"), ({"bundle_name": "din"}, "'din'")])
def test_without_it_nothing_is_live_and_the_setting_is_named(
    bundle: Bundle, settings: dict[str, str], message: str
) -> None:
    root = {"bundle_root": bundle.path} if settings else {}
    parts = make_parts(Settings(**root, **settings))
    with pytest.raises(BundleError, match=message):
        parts.swap.open_first()
    assert not parts.switch.is_loaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"behaviours_keep": 57}, "DAIAN_BEHAVIOURS_KEEP to 58"),
     ({"behaviours_window_days": 13}, "DAIAN_BEHAVIOURS_WINDOW_DAYS to 14")],
)  # fmt: skip
def test_a_store_that_keeps_less_than_the_history_rules_want_is_refused(
    bundle: Bundle, settings: dict[str, int], message: str
) -> None:
    parts = make_parts(Settings(bundle_root=bundle.path, **settings))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=message):
        parts.swap.open_first()
    assert not parts.switch.is_loaded


def started(settings: Settings, monkeypatch: pytest.MonkeyPatch, bug: Exception | None = None) -> list[Message]:
    """What the server is told of the start; `bug` is what opening the bundle raises instead of its own."""
    app, told = create_app(settings), []

    async def fail() -> None:
        assert bug is not None
        raise bug

    async def send(message: Message) -> None:
        told.append(message)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    if bug is not None:
        monkeypatch.setattr(app.state.parts.swap, "start", fail)
    with pytest.raises((BundleError, OSError, RuntimeError)):
        asyncio.run(app({"type": "lifespan", "app": app, "state": {}}, receive, send))
    return told


def test_a_refused_bundle_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_small_bundle(tmp_path)
    golden = bundle.path / "golden.jsonl"
    golden.write_text("{}\n")
    [told] = started(Settings(bundle_root=tmp_path), monkeypatch)
    assert told["type"] == "lifespan.startup.failed"
    assert told["message"].startswith(f"bundle refused: {golden}: SHA-256 is")
    assert "\n" not in told["message"]


def test_a_file_that_is_missing_is_told_in_one_line_and_a_bug_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    [told] = started(Settings(), monkeypatch, FileNotFoundError(2, "No such file", "catalogue.json"))
    assert told["message"] == "not started: [Errno 2] No such file: 'catalogue.json'"
    [told] = started(Settings(), monkeypatch, RuntimeError("a bug"))
    assert "Traceback" in told["message"]
