"""Files that appear whole: flushed before the rename, and the folder after it; one place in training knows how."""

import os
from pathlib import Path

import pytest

import training
from training.data import embed, request_files
from training.data.whole_files import take_name, write_whole


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: `sync` of a file or folder by its name, `rename`."""
    seen: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        seen.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def test_content_is_on_the_disk_before_its_name_and_the_name_after(tmp_path: Path, calls: list[str]) -> None:
    write_whole(tmp_path / "a.json", b"{}")
    assert calls == ["sync .a.json.partial", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_written_by_others_takes_its_name_the_same_way(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "half").write_bytes(b"all")
    take_name(tmp_path / "half", tmp_path / "whole")
    assert calls == ["sync half", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "whole").read_bytes() == b"all"


def test_training_flushes_in_one_place() -> None:
    sources = Path(training.__file__).parent.rglob("*.py") if training.__file__ else []
    flushing = [path.name for path in sources if "os.fsync" in path.read_text(encoding="utf-8")]
    assert flushing == ["whole_files.py"]
    assert request_files.take_name is embed.take_name is take_name
