"""API keys: hashed in their file, two at once for a client, compared in constant time, reread when the file changes."""

import hmac
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service import api_keys, cli
from service.api_keys import KeyRing, KeysFileError, add_key, is_writable_by_others, read_keys, revoke_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def ring(file: Path) -> KeyRing:
    found = KeyRing(file)
    found.open()
    return found


def test_a_key_is_found_by_its_text_and_the_file_does_not_hold_it(file: Path) -> None:
    made = add_key(file, "shop", "web", ["rank", "events"])
    assert ring(file).find(made.text) == made.record
    assert made.text not in file.read_text()
    assert made.text.rpartition("_")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("spoil", [
    lambda _: "", lambda text: text + "x", lambda text: text[:-1], lambda text: text.upper(),
    lambda text: " " + text, lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
    lambda text: "daian_" + "0" * 12 + text[18:], lambda text: text + "\n", lambda text: "\ud800" + text,
    lambda text: "daian_*_" + text[19:], lambda text: text.encode().hex(), lambda _: "x" * 16_000,
])  # fmt: skip
def test_whatever_is_not_the_key_is_nobody(file: Path, spoil: Callable[[str], str]) -> None:
    made = add_key(file, "shop", "web", ["rank"])
    assert ring(file).find(spoil(made.text)) is None


def test_a_client_has_two_live_keys_to_change_from_one_to_the_other_and_no_third(file: Path) -> None:
    first, second = (add_key(file, "shop", "web", ["rank"]) for _ in range(2))
    add_key(file, "shop", "privacy-desk", ["erase"])
    both = ring(file)
    assert [both.find(one.text) for one in (first, second)] == [first.record, second.record]
    with pytest.raises(KeysFileError, match="revoke the older"):
        add_key(file, "shop", "web", ["rank"])
    revoke_key(file, first.record.id)
    after = ring(file)
    assert (after.find(first.text), after.find(second.text)) == (None, second.record)
    add_key(file, "shop", "web", ["rank"])


def test_every_look_compares_one_digest_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no such id: the time must not say that."""
    made = add_key(file, "shop", "web", ["rank"])
    keys, lengths, compare = ring(file), [], hmac.compare_digest

    def compared(left: bytes, right: bytes) -> bool:
        lengths.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(api_keys.hmac, "compare_digest", compared)
    for given in (made.text, made.text[:-1] + "~", "daian_" + "0" * 12 + made.text[18:], "", "nonsense"):
        keys.find(given)
    assert lengths == [(32, 32)] * 5


def test_a_changed_file_is_taken_and_a_broken_one_changes_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = add_key(file, "shop", "web", ["rank"])
    keys = ring(file)
    assert not keys.reload_if_changed()
    second = add_key(file, "shop", "web", ["rank"])
    assert keys.find(second.text) is None
    assert keys.reload_if_changed()
    assert keys.find(second.text) == second.record
    good = file.read_text()
    for broken in ("", "{", good.replace('"version"', '"edition"')):
        file.write_text(broken)
        assert not keys.reload_if_changed()
        assert keys.find(first.text) == first.record
    file.unlink()
    assert not keys.reload_if_changed()
    assert keys.find(first.text) == first.record
    n_told = len(caplog.records)
    assert not keys.reload_if_changed()
    assert len(caplog.records) == n_told
    assert first.record.sha256 not in caplog.text
    file.write_text(good)
    revoke_key(file, first.record.id)
    assert keys.reload_if_changed()
    assert (keys.find(first.text), keys.find(second.text)) == (None, second.record)


RECORD = {"id": "0" * 12, "tenant": "a", "client": "b", "scopes": ["rank"], "sha256": "0" * 64, "created_at": "now"}


@pytest.mark.parametrize(
    "keys",
    [[{**RECORD, "scopes": ["root"]}], [{**RECORD, "scopes": []}], [{**RECORD, "tenant": "A b"}],
     [{**RECORD, "sha256": "hush"}], [{**RECORD, "id": 7}], [{**RECORD, "more": 1}], [RECORD, RECORD], "none"],
)  # fmt: skip
def test_a_file_that_is_not_one_is_refused_without_its_content(file: Path, keys: object) -> None:
    file.write_text(json.dumps({"version": 1, "keys": keys}))
    with pytest.raises(KeysFileError) as refused:
        ring(file)
    assert "hush" not in str(refused.value)
    assert "A b" not in str(refused.value)


def test_two_commands_at_once_lose_no_key(file: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(file, "shop", f"c{n}", ["rank"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.client for key in read_keys(file)) == [f"c{n}" for n in range(8)]


def test_a_command_that_dies_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(file, "shop", "web", ["rank"])
    before = file.read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api_keys.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add_key(file, "shop", "other", ["rank"])
    assert file.read_text() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, False), (0o644, False), (0o620, True), (0o602, True)])
def test_others_who_may_write_are_seen(file: Path, mode: int, expected: bool) -> None:
    file.write_text("")
    file.chmod(mode)
    assert is_writable_by_others(file) is expected


def test_the_commands_make_list_and_revoke(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["keys", "list"]) == cli.USAGE
    assert "DAIAN_KEYS_FILE" in capsys.readouterr().err
    monkeypatch.setenv("DAIAN_KEYS_FILE", str(file))
    assert cli.run(["keys", "add", "--tenant", "shop", "--scope", "rank", "--scope", "events"]) == cli.DONE
    said = capsys.readouterr()
    record = ring(file).find(said.out.strip())
    assert record is not None
    assert (record.tenant, record.scopes) == ("shop", ("rank", "events"))
    assert cli.run(["keys", "list"]) == cli.DONE
    listed = capsys.readouterr().out
    assert record.id in listed
    assert said.out.strip() not in listed
    assert record.sha256 not in listed
    assert cli.run(["keys", "add", "--scope", "root"]) == cli.USAGE
    assert cli.run(["keys", "revoke", record.id]) == cli.DONE
    assert cli.run(["keys", "revoke", record.id]) == cli.FAILED
    assert read_keys(file) == ()


def test_doctor_is_loud_where_no_keys_are_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finding() -> dict[str, object]:
        cli.run(["doctor", "--json"])
        rows = json.loads(capsys.readouterr().out)
        return next(row for row in rows if row["what"] == "keys")

    monkeypatch.setenv("DAIAN_REDIS_URL", "redis://127.0.0.1:9")
    assert finding()["is_fine"] is None
    assert "NO KEYS" in str(finding()["detail"])
    monkeypatch.setenv("DAIAN_HOST", "0.0.0.0")
    assert finding()["is_fine"] is False
    monkeypatch.setenv("DAIAN_KEYS_FILE", str(file))
    assert finding()["is_fine"] is False
    add_key(file, "shop", "web", ["rank"])
    assert (finding()["is_fine"], finding()["detail"]) == (True, "1 live keys of 1 tenants")
    file.chmod(0o666)
    assert finding()["is_fine"] is False
