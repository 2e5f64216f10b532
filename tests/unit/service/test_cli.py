"""The `daian` command: verbs, exit codes, and what it says when something is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cyclopts
import httpx
import pytest

from service import cli, commands
from service.contract.bundle import Bundle
from tests.small_bundle import write_small_bundle


class Entry:
    """An entry point that brings one function."""

    def __init__(self, name: str, register: Callable[[cyclopts.App], None] | ModuleNotFoundError) -> None:
        self.name, self._register = name, register

    def load(self) -> Callable[[cyclopts.App], None]:
        if isinstance(self._register, ModuleNotFoundError):
            raise self._register
        return self._register


@pytest.fixture(autouse=True)
def serving_verbs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.commands import register

    missing = ModuleNotFoundError("No module named 'training'", name="training")
    entries = [Entry("service", register), Entry("training", missing)]
    monkeypatch.setattr(cli, "entry_points", lambda **_: entries)


def test_a_verb_of_a_package_that_is_not_there_is_answered_with_its_install_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["train", "daian_demo"]) == cli.MISSING
    assert 'pip install "daian[training]"' in capsys.readouterr().err


def test_a_library_that_is_not_there_is_answered_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_torch() -> None:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    monkeypatch.setattr(cli, "entry_points", lambda **_: [Entry("x", lambda app: app.command(needs_torch) and None)])
    assert cli.run(["needs-torch"]) == cli.MISSING
    assert 'pip install "daian[training]"' in capsys.readouterr().err


def test_a_hole_inside_a_package_is_a_bug_and_not_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hole = ModuleNotFoundError("No module named 'training.lost'", name="training.lost")
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Entry("training", hole)])
    with pytest.raises(ModuleNotFoundError):
        cli.run(["train"])


@pytest.mark.parametrize("arguments", [["rank", "--no-such-option"], ["no-such-verb"], ["store", "estimate", "many"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert cli.run(arguments) == cli.USAGE


def test_an_unknown_setting_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DAIAN_PROT", "1")
    assert cli.run(["config", "show"]) == cli.USAGE
    assert "DAIAN_PORT" in capsys.readouterr().err


def test_a_service_that_does_not_answer_exits_with_3() -> None:
    assert cli.run(["rank", "i0", "--url", "http://127.0.0.1:9"]) == cli.MISSING


def test_config_shows_origin_and_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAIAN_REDIS_URL", "redis://:hush@store/0")
    assert cli.run(["config", "show", "--json"]) == cli.DONE
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["DAIAN_REDIS_URL"]["value"] == "(hidden)"
    assert rows["DAIAN_REDIS_URL"]["origin"] == "DAIAN_REDIS_URL"
    assert rows["DAIAN_PORT"]["origin"] == "default"


def test_bundles_are_verified_listed_promoted_and_rolled_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "bundles"
    write_small_bundle(root, version="v1")
    second = write_small_bundle(root, version="v2")
    assert cli.run(["bundle", "verify", str(root)]) == cli.DONE
    assert "daian@v2" in capsys.readouterr().out
    assert cli.run(["bundle", "rollback", str(root)]) == cli.DONE
    capsys.readouterr()
    assert cli.run(["bundle", "list", str(root), "--json"]) == cli.DONE
    rows = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["current"]) for row in rows] == [("v1", True), ("v2", False)]
    assert cli.run(["bundle", "rollback", str(root)]) == cli.MISSING  # nothing before v1
    (second.path / "golden.jsonl").write_text("{}\n")
    assert cli.run(["bundle", "promote", str(root), "v2"]) == cli.MISSING
    assert cli.run(["bundle", "verify", str(second.path)]) == cli.FAILED


def test_a_copy_under_another_version_is_not_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_small_bundle(tmp_path, version="v1")
    pointer = (tmp_path / "current").read_bytes()
    shutil.copytree(first.path, first.path.with_name("v2"))
    assert cli.run(["bundle", "promote", str(tmp_path), "v2"]) != cli.DONE
    assert "v2/manifest.json is that of daian@v1" in capsys.readouterr().err
    assert (tmp_path / "current").read_bytes() == pointer


def test_a_folder_of_bundles_that_is_missing_or_empty_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bundle", "list", str(tmp_path / "nowhere")]) == cli.MISSING
    told = capsys.readouterr()
    assert f"{tmp_path / 'nowhere'} is no folder" in told.err
    assert told.out == ""
    assert cli.run(["bundle", "list", str(tmp_path)]) == cli.DONE
    assert f"{tmp_path} holds no bundles" in capsys.readouterr().out
    assert cli.run(["bundle", "list", str(tmp_path), "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out) == []


def test_events_that_are_refused_are_printed_with_reason_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"accepted": 1, "duplicates": 0, "erased": 0}
    refused = {"index": 1, "code": "too_old", "detail": "time is 20 days ago"}
    asked: list[tuple[str, bytes, str]] = []

    def post(address: str, body: bytes, media_type: str, _: Path | None) -> tuple[int, dict[str, object]]:
        asked.append((address, body, media_type))
        return 200, {**answer, "rejected": [refused] if b"old" in body else []}

    monkeypatch.setattr(commands, "_post", post)
    file = tmp_path / "events.ndjson"
    file.write_text("new\n\nold\n")
    assert cli.run(["events", "send", str(file)]) == cli.FAILED
    reason = {"code": "too_old", "detail": "time is 20 days ago", "count": 1, "lines": [3]}
    assert json.loads(capsys.readouterr().out) == {**answer, "rejected": 1, "reasons": [reason]}
    assert asked == [("http://127.0.0.1:8000/v1/events", b"new\nold\n", "application/x-ndjson")]
    file.write_text("new\n")
    assert cli.run(["events", "send", str(file)]) == cli.DONE
    assert json.loads(capsys.readouterr().out) == {**answer, "rejected": 0}


@pytest.mark.parametrize("verb", [["rank", "i0"], ["events", "send", "{events}"]])
def test_a_key_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]) -> None:
    sent: list[dict[str, str]] = []

    def post(_: str, headers: dict[str, str], **__: object) -> httpx.Response:
        sent.append(headers)
        return httpx.Response(401, json={"code": "unauthenticated"})

    monkeypatch.setattr(httpx, "post", post)
    events, key = tmp_path / "events.ndjson", tmp_path / "key"
    events.write_text("{}\n")
    key.write_text("dk_secret\n")
    arguments = [word.format(events=events) for word in verb]
    assert cli.run([*arguments, "--key-file", str(key)]) == cli.FAILED
    assert cli.run(arguments) == cli.FAILED
    assert [headers.get("authorization") for headers in sent] == ["Bearer dk_secret", None]
    assert cli.run([*arguments, "--key-file", str(tmp_path / "none")]) == cli.MISSING


@pytest.mark.parametrize("content", ["", "\n", "dk_secret\ndk_secret2\n", "dk secret", "dk_sécret"])
def test_a_key_file_that_holds_something_else_is_named_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    assert cli.run(["rank", "i0", "--key-file", str(file), "--url", "http://127.0.0.1:9"]) == cli.USAGE
    told = capsys.readouterr()
    assert str(file) in told.err
    assert "cret" not in told.out + told.err


def test_doctor_sees_a_good_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAIAN_BUNDLE_ROOT", str(bundle.path))
    monkeypatch.setenv("DAIAN_REDIS_URL", "redis://127.0.0.1:9")
    assert cli.run(["doctor", "--json"]) == cli.FAILED
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert findings["bundle"]["is_fine"]
    assert not findings["store"]["is_fine"]


def test_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["openapi"]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["info"]["title"] == "daian"
