"""The prepared data set on disk: written by every `prepare` door and by `simulate`, opened by training and checks.

    <folder>/dataset.json            Dataset: name, fields, history rules, similarity range, time windows, report
    <folder>/catalogue/              every item, raw (service.contract.catalogue)
    <folder>/catalogue.sha256        the hash of each of its files, as `sha256sum --check` takes them
    <folder>/train|validation|test/  request files, at most `FILE_REQUESTS` requests each

`PreparedWriter` builds it in a folder of its own beside the target and renames it at the end: a prepared folder is
complete or absent. Nothing in here is fitted; vocabularies and levels are `fit_encoder`'s.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int8

from service.contract.catalogue import Catalogue
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema
from training.data.errors import DataError
from training.data.report import RequestReport
from training.data.request_files import RequestFileWriter, request_files, write_requests
from training.data.whole_files import missing_above, remove_empty, sync_to_disk, write_whole

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CATALOGUE_HASHES = "catalogue.sha256"
_HASH_LINES = re.compile(r"([0-9a-f]{64}  catalogue/[^/\n]+\n)+")
FILE_REQUESTS = 65_536
DATASET_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """What a prepared folder is made of.

    `similarity_range`: the similarities where the lowest level begins and the highest ends; None = fit it on the
    training days. `related_threshold`: similarity from which a behaviour is related; None = the lower edge of the
    second-highest level. `windows`: first and last `requested_at` of each split, epoch ms. `report`: what the
    preparation counted.
    """

    name: str
    schema: FeatureSchema
    rules: HistoryRules
    similarity_range: tuple[float, float] | None = None
    n_levels: int = 6
    related_threshold: float | None = None
    windows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def rules_with(self, related_threshold: float) -> HistoryRules:
        """The history rules with the threshold that was chosen or fitted."""
        return replace(self.rules, related_threshold=related_threshold)


@dataclass(frozen=True)
class Items:
    """The items of a data set before they become a Catalogue.

    `fields`: one column per item field of the schema but `item` itself; more (a title) are kept for people to read.
    Vectors come as floats, which the catalogue quantises, or as ready int8 codes, or not at all; a row of zeros is an
    item without a vector, and so is one whose `has_vector` is False.
    """

    ids: Sequence[str]
    fields: Mapping[str, Sequence[str | float | None]]
    vectors: Float32[np.ndarray, "M D"] | None = None
    codes: Int8[np.ndarray, "M D"] | None = None
    has_vector: Bool[np.ndarray, " M"] | None = None


def open_dataset(folder: Path) -> Dataset:
    """Reads `dataset.json`. Raises DataError when the folder is not a prepared data set of this version."""
    path = folder / "dataset.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no dataset.json; make one with `daian data prepare` or `daian data simulate`."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again.") from error
    if saved.get("version") != DATASET_VERSION:
        raise DataError(
            f"{path}: version {saved.get('version')}, this program reads {DATASET_VERSION}; prepare the data again."
        )
    rules = saved["rules"] | {"types": tuple(saved["rules"]["types"])}
    similarity_range = saved["similarity_range"]
    return Dataset(
        name=saved["name"],
        schema=FeatureSchema.from_dict(saved["schema"]),
        rules=HistoryRules(**rules),
        similarity_range=None if similarity_range is None else (similarity_range[0], similarity_range[1]),
        n_levels=saved["n_levels"],
        related_threshold=saved["related_threshold"],
        windows={split: (window[0], window[1]) for split, window in saved["windows"].items()},
        report=saved["report"],
    )


def dataset_sha256(folder: Path) -> str:
    """Which data this is: the hash of dataset.json, whose report and windows differ where requests do."""
    return hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()


def open_catalogue(folder: Path) -> Catalogue:
    """The catalogue of a prepared folder, mapped from disk."""
    return Catalogue.open(folder / "catalogue")


def changed_catalogue_files(folder: Path) -> list[Path]:
    """Files of the catalogue that are not as they were prepared, or gone; none where nobody noted their hashes.

    Request files carry checksums of their own, the arrays of a catalogue do not. A list of hashes that is empty, cut
    off or unreadable is damaged itself and named; it says nothing about the others.
    """
    hashes = folder / CATALOGUE_HASHES
    try:
        noted = hashes.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # prepared by an earlier version
        return []
    except OSError:
        return [hashes]
    if not _HASH_LINES.fullmatch(noted):
        return [hashes]
    changed = []
    for line in noted.splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            changed.append(path)
    return changed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_files(folder: Path, split: Split) -> list[Path]:
    """The request files of one split. Raises DataError when there are none."""
    return request_files(folder / split)


class PreparedWriter:
    """Writes a prepared folder.

        with PreparedWriter(out, dataset, items) as writer:
            writer.write("train", batch, clicks)   # as often as needed, any order of splits
            writer.note("skipped_rows", 3)         # optional: a line for the report

    On leaving the block the catalogue is stored with the popularity counted on the training days (clicks of each item),
    `windows` and `report` are filled in, and the folder takes its name. After an error nothing is left, nor of the
    folders above that were made for it.
    """

    def __init__(self, folder: Path, dataset: Dataset, items: Items, overwrite: bool = False) -> None:
        """Raises DataError when `folder` exists and `overwrite` is off, or is not a prepared folder."""
        self.folder = folder
        self.dataset = dataset
        self._refuse_foreign_folder(overwrite)
        self._partial = folder.with_name(f".{folder.name}.partial")
        self.catalogue = Catalogue.build(  # before a folder is made: items may be wrong
            items.ids, items.fields, vectors=items.vectors, codes=items.codes, has_vector=items.has_vector
        )
        shutil.rmtree(self._partial, ignore_errors=True)
        self._made = missing_above(folder)
        self._partial.mkdir(parents=True)
        self._clicks = np.zeros(self.catalogue.n_items + 1, dtype=np.int64)
        self._reports = {split: RequestReport(dataset.schema, self.catalogue, dataset.n_levels) for split in SPLITS}
        self._files: dict[str, RequestFileWriter] = {}
        self._n_files = dict.fromkeys(SPLITS, 0)
        self._notes: dict[str, Any] = {}

    def __enter__(self) -> "PreparedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:  # a full disk, an interruption: what is half written is of no use
            self.abandon()
            raise

    def write(self, split: Split, batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> None:
        """Appends requests to a split."""
        if batch.n_requests == 0:
            return
        self._file(split).write(batch, clicks)
        self._reports[split].add(batch, clicks)
        if split == "train":
            clicked = self.catalogue.rows(batch.candidate[clicks == 1].tolist())
            self._clicks += np.bincount(clicked, minlength=len(self._clicks))

    def extra_file(self, name: str) -> Path:
        """Where a file of the caller's own must be written to end up in the prepared folder."""
        return self._partial / name

    def note(self, name: str, value: Any) -> None:
        """Adds a line of its own to the report (a count of skipped rows, a source)."""
        self._notes[name] = value

    def close(self) -> Dataset:
        """Completes the folder and gives it its name. Raises DataError when no training request was written.

        After an error `abandon` is the caller's, as leaving the block does.
        """
        for file in self._files.values():
            file.close()
        reports: dict[str, dict[str, Any]] = {
            split: report.to_dict() for split, report in self._reports.items() if report.n_requests
        }
        if "train" not in reports:
            raise DataError(f"{self.folder}: no training requests were found; nothing was written.")
        finished = self._finished(reports)
        write_whole(self._partial / "dataset.json", json.dumps(to_json(finished), indent=1).encode())
        self._take_name()
        self.dataset = finished
        return finished

    def abandon(self) -> None:
        """Stops and removes what was written."""
        for file in self._files.values():
            with contextlib.suppress(
                OSError, pa.ArrowException
            ):  # its last bytes may not fit on the disk; it goes with the folder
                file.abandon()
        shutil.rmtree(self._partial, ignore_errors=True)
        remove_empty(self._made)

    def _refuse_foreign_folder(self, overwrite: bool) -> None:
        if not self.folder.exists():
            return
        if not overwrite:
            raise DataError(f"{self.folder} exists already; choose another folder or say --overwrite.")
        if any(self.folder.iterdir()) and not (self.folder / "dataset.json").is_file():
            raise DataError(f"{self.folder} is not a prepared data set; it will not be overwritten.")

    def _file(self, split: Split) -> RequestFileWriter:
        file = self._files.get(split)
        if file is not None and file.n_requests >= FILE_REQUESTS:
            file.close()
            file = None
        if file is None:
            path = self._partial / split / f"{self._n_files[split]:05d}.parquet"
            self._n_files[split] += 1
            file = self._files[split] = write_requests(path, self.dataset.schema)
        return file

    def _finished(self, reports: Mapping[str, dict[str, Any]]) -> Dataset:
        self._clicks[0] = 0  # clicks on items that the catalogue does not know say nothing about row 0
        self.catalogue.popularity = self._clicks.astype(np.float32)
        self.catalogue.save(self._partial / "catalogue")
        files = sorted((self._partial / "catalogue").iterdir())
        hashes = "".join(f"{_sha256(file)}  catalogue/{file.name}\n" for file in files)
        write_whole(self._partial / CATALOGUE_HASHES, hashes.encode())
        return replace(
            self.dataset,
            windows={split: self._reports[split].window for split in SPLITS if split in reports},
            report={"items": self.catalogue.n_items, **reports, **self._notes},
        )

    def _take_name(self) -> None:
        """The old folder steps aside and goes last: whatever fails, one whole folder has the name."""
        aside = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(aside)
        try:
            self._partial.rename(self.folder)
        except OSError:
            if aside.exists():
                aside.rename(self.folder)
            raise
        sync_to_disk(self.folder.parent)
        shutil.rmtree(aside, ignore_errors=True)


def to_json(dataset: Dataset) -> dict[str, Any]:
    """The content of dataset.json."""
    return {
        "version": DATASET_VERSION,
        "name": dataset.name,
        "schema": dataset.schema.to_dict(),
        "rules": asdict(dataset.rules),
        "similarity_range": dataset.similarity_range,
        "n_levels": dataset.n_levels,
        "related_threshold": dataset.related_threshold,
        "windows": dataset.windows,
        "report": dataset.report,
    }
