"""The prepared folder: complete or absent, told what it holds, never written over by mistake."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from service.contract.errors import SchemaError
from service.contract.rules import HistoryRules
from tests.unit.training.data.shop import N_ITEMS, SCHEMA, START_MS, prepare_small, random_requests, small_items
from training.data import dataset as dataset_module
from training.data.dataset import (
    CATALOGUE_HASHES,
    Dataset,
    Items,
    PreparedWriter,
    changed_catalogue_files,
    open_catalogue,
    open_dataset,
    split_files,
)
from training.data.errors import DataError
from training.data.request_files import read_requests


def test_what_was_said_of_the_data_is_read_back(tmp_path: Path) -> None:
    written = prepare_small(tmp_path / "data", similarity_range=(0.1, 0.9), n_levels=4, related_threshold=0.5)
    read = open_dataset(tmp_path / "data")
    assert read == written
    assert read.rules == HistoryRules()
    assert read.windows["train"] == (START_MS, START_MS + 59 * 3_600_000)
    assert read.report["train"]["requests"] == 60
    assert read.report["items"] == N_ITEMS


def test_popularity_counts_the_clicks_of_the_training_days_alone(tmp_path: Path) -> None:
    prepare_small(tmp_path / "data")
    catalogue = open_catalogue(tmp_path / "data")
    wanted = np.zeros(N_ITEMS + 1, np.float32)
    batch, clicks = random_requests(60, seed=1)
    np.add.at(wanted, catalogue.rows(batch.candidate[clicks == 1].tolist()), 1)
    assert np.array_equal(catalogue.popularity, wanted)


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    report = prepare_small(tmp_path / "data").report["train"]
    batch, clicks = random_requests(60, seed=1)
    assert report["candidates"] == batch.n_candidates
    assert report["clicks"] == clicks.sum()
    assert report["missing"]["user.user"] == pytest.approx(np.mean([u is None for u in batch.user["user"]]), abs=1e-6)
    assert sum(report["history_lengths"].values()) == pytest.approx(1, abs=1e-4)
    catalogue = open_catalogue(tmp_path / "data")
    triggers = catalogue.rows(batch.trigger.tolist())[batch.candidate_request]
    similarity = catalogue.similarity(triggers, catalogue.rows(batch.candidate.tolist()))
    known = similarity[similarity >= -1]
    assert report["candidates_without_similarity"] == pytest.approx(1 - len(known) / len(similarity), abs=1e-6)
    for name, share in (("1%", 0.01), ("50%", 0.5), ("99%", 0.99)):
        assert report["similarity_quantiles"][name] == pytest.approx(
            np.quantile(known, share, method="inverted_cdf"), abs=1e-3
        )


def test_large_splits_become_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "FILE_REQUESTS", 10)
    with PreparedWriter(tmp_path / "data", Dataset("small", SCHEMA, HistoryRules()), small_items()) as writer:
        for seed in range(3):
            writer.write("train", *random_requests(10, seed=seed))
    files = split_files(tmp_path / "data", "train")
    assert [path.name for path in files] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert sum(batch.n_requests for path in files for batch, _ in read_requests(path)) == 30


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with PreparedWriter(tmp_path / "data", Dataset("small", SCHEMA, HistoryRules()), small_items()) as writer:
            writer.write("train", *random_requests(5))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_none_of_the_folders_above_that_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()

    def left_by_an_error() -> list[str]:
        empty = PreparedWriter(tmp_path / "there/new/er/data", Dataset("small", SCHEMA, HistoryRules()), small_items())
        with pytest.raises(DataError, match="no training requests"), empty:
            pass
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))

    assert left_by_an_error() == ["there"]
    monkeypatch.setattr(dataset_module, "remove_empty", lambda _: None)
    assert left_by_an_error() == ["there", "there/new", "there/new/er"]  # the saboteur


def test_items_that_are_wrong_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        PreparedWriter(tmp_path / "new/data", Dataset("small", SCHEMA, HistoryRules()), Items(["a", "a"], {}))
    assert list(tmp_path.iterdir()) == []


def test_a_changed_catalogue_is_known_by_file(tmp_path: Path) -> None:
    prepare_small(tmp_path / "data")
    assert changed_catalogue_files(tmp_path / "data") == []
    codes, popularity = (tmp_path / "data/catalogue" / name for name in ("codes.npy", "popularity.npy"))
    content = bytearray(codes.read_bytes())
    content[-1] ^= 1
    codes.write_bytes(content)
    popularity.unlink()
    assert changed_catalogue_files(tmp_path / "data") == [codes, popularity]
    (tmp_path / "data" / CATALOGUE_HASHES).unlink()  # the saboteur, and what was prepared before hashes were noted
    assert changed_catalogue_files(tmp_path / "data") == []


def test_hashes_that_are_lost_or_unreadable_are_damage_and_named(tmp_path: Path) -> None:
    """A power cut may leave a file empty that was not flushed; nobody may take that for "nothing has changed"."""
    prepare_small(tmp_path / "data")
    hashes = tmp_path / "data" / CATALOGUE_HASHES
    whole = hashes.read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole.replace(b"  ", b"\xff\x00"), b"\n"):
        hashes.write_bytes(damaged)
        assert changed_catalogue_files(tmp_path / "data") == [hashes]
    hashes.unlink()
    hashes.mkdir()
    assert changed_catalogue_files(tmp_path / "data") == [hashes]


def test_hashes_are_on_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    sync = os.fsync

    def synced(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    prepare_small(tmp_path / "data")
    written = [f".{CATALOGUE_HASHES}.partial", ".data.partial", ".dataset.json.partial", ".data.partial"]
    assert flushed[-5:] == [*written, tmp_path.name]


def disk_that_is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "full",
    ["training.data.dataset.write_whole", "service.contract.catalogue.np.save", "pyarrow.parquet.ParquetWriter.close"],
    ids=["hashes", "catalogue", "requests, which cannot be given up in peace either"],
)
def test_a_disk_that_is_full_at_the_end_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def prepare() -> None:
        folder, dataset = tmp_path / "new/data", Dataset("small", SCHEMA, HistoryRules())
        with monkeypatch.context() as patched, PreparedWriter(folder, dataset, small_items()) as writer:
            writer.write("train", *random_requests(5))
            patched.setattr(full, disk_that_is_full)

    with pytest.raises(OSError, match="No space left"):
        prepare()
    assert list(tmp_path.iterdir()) == []


def test_saboteur_without_giving_up_a_full_disk_keeps_the_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreparedWriter, "abandon", lambda _: None)
    monkeypatch.setattr(dataset_module, "write_whole", disk_that_is_full)
    with pytest.raises(OSError, match="No space left"):
        prepare_small(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]


def test_no_training_request_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="no training requests"),
        PreparedWriter(tmp_path / "data", Dataset("small", SCHEMA, HistoryRules()), small_items()) as writer,
    ):
        writer.write("test", *random_requests(5))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_ours(tmp_path: Path) -> None:
    prepare_small(tmp_path / "data")
    with pytest.raises(DataError, match="exists already"):
        prepare_small(tmp_path / "data")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="not a prepared data set"):
        PreparedWriter(other, Dataset("small", SCHEMA, HistoryRules()), small_items(), overwrite=True)
    assert (other / "a.jpg").exists()
    with PreparedWriter(
        tmp_path / "data", Dataset("again", SCHEMA, HistoryRules()), small_items(), overwrite=True
    ) as writer:
        writer.write("train", *random_requests(5))
    assert open_dataset(tmp_path / "data").name == "again"


def test_a_folder_that_is_no_data_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="daian data prepare"):
        open_dataset(tmp_path)
    prepare_small(tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        open_dataset(tmp_path / "data")
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        open_dataset(tmp_path / "data")


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    prepare_small(folder)
    before = (folder / "dataset.json").read_bytes()
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with (
        pytest.raises(OSError, match="No space left"),
        PreparedWriter(folder, Dataset("other", SCHEMA, HistoryRules()), small_items(), overwrite=True) as writer,
    ):
        writer.write("train", *random_requests(5))
    assert (folder / "dataset.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
