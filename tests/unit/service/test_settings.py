"""Settings come from DAIAN_*, name their mistakes, and never show a secret."""

from pathlib import Path

import pytest

from service import settings as module
from service.settings import SettingsError, origin, read_settings, usable_cores


def test_defaults_are_those_of_the_interface() -> None:
    found = read_settings()
    assert (found.host, found.port, found.workers, found.deadline_ms) == ("127.0.0.1", 8000, 1, 100)
    assert (found.max_candidates, found.max_body_bytes, found.chunk) == (1000, 1_048_576, 256)
    assert (found.redis_read_budget_ms, found.behaviours_keep, found.behaviours_window_days) == (20, 58, 14)
    assert found.scorer_concurrency == usable_cores()


def test_a_misspelt_name_stops_the_start_and_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAIAN_MAX_CANDIDATE", "10")
    with pytest.raises(SettingsError, match="did you mean DAIAN_MAX_CANDIDATES"):
        read_settings()


def test_without_the_check_a_misspelt_limit_is_silently_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAIAN_MAX_CANDIDATE", "10")
    monkeypatch.setattr(module, "_refuse_unknown", lambda _: None)
    assert read_settings().max_candidates == 1000


def test_names_of_tests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAIAN_TEST_REDIS_URL", "redis://localhost")
    assert read_settings().redis_url is None


def test_a_secret_comes_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:hush@store:6379/0\n")
    monkeypatch.setenv("DAIAN_REDIS_URL_FILE", str(tmp_path / "url"))
    found = read_settings()
    assert found.redis_url is not None
    assert found.redis_url.get_secret_value() == "redis://:hush@store:6379/0"
    assert "hush" not in repr(found)
    assert origin("redis_url", {"DAIAN_REDIS_URL_FILE": "x"}) == "DAIAN_REDIS_URL_FILE"


def test_a_secret_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAIAN_REDIS_URL", "redis://a")
    monkeypatch.setenv("DAIAN_REDIS_URL_FILE", str(tmp_path))
    with pytest.raises(SettingsError, match="keep one"):
        read_settings()


def test_an_unreadable_secret_names_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAIAN_ID_HASH_KEY_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="DAIAN_ID_HASH_KEY_FILE cannot be read"):
        read_settings()


def test_a_value_out_of_range_names_the_setting_and_not_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAIAN_PORT", "tcp://10.0.0.7:8000")
    with pytest.raises(SettingsError, match="DAIAN_PORT") as caught:
        read_settings()
    assert "10.0.0.7" not in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), [("150000 100000\n", 2), ("max 100000\n", None), ("junk", None)])
def test_cores_follow_the_cgroup(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert module._cgroup_cores(tmp_path / "cpu.max") == expected
