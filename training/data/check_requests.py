"""`daian data check`: refuses prepared data that would teach a model something wrong.

Called by the command line, and by `daian train` before its first step (`refuse_unfit`). It reads every request once,
changes nothing, and lists the problems it found, of many alike the first ones: damaged, empty or foreign files, a
catalogue that is not the one that was prepared, columns that are missing, numbers that are none, behaviours that are
not before their request, repeated requests or candidates, splits that are not one after the other in time (a validation
may be parted from the training by users instead), and single fields that tell the clicks (`leakage`). Unknown rates and
shifts of the later days are reported, not judged.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Int8, Int64, Shaped, UInt64
from rich.console import Console
from rich.progress import Progress

from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from training.data.dataset import SPLITS, Dataset, changed_catalogue_files, open_dataset
from training.data.errors import DataError
from training.data.fit_encoder import fit_encoder
from training.data.leakage import LabelCounts, single_field_aucs, stability
from training.data.request_files import file_columns, read_row_group, request_files, row_group_sizes

LEAK_AUC = 0.95
LEAST_OF_EACH = 10  # clicks, and candidates without one, below which an AUC is chance
_OOV = 1
_MOST_TOLD = 20  # problems of one kind that are written out
Broken = tuple[str, str, Int64[np.ndarray, " X"]]  # column, what is wrong in it, places of the requests


@dataclass
class Check:
    """What a check found. `problems` empty = fit for training.

    Of each kind of problem the first `_MOST_TOLD` of the whole folder are written out and the others counted, so that a
    broken column of millions of requests is a page of text and not a book.
    """

    told: list[str] = field(default_factory=list)
    n_of_kind: Counter[str] = field(default_factory=Counter)  # of those that may be many
    aucs: dict[str, float] = field(default_factory=dict)  # of single fields, on the validation days
    unknown: dict[str, dict[str, float]] = field(default_factory=dict)  # split -> field -> share of unknown values
    shift: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # split -> category or number -> PSI against training
    n_requests: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """What was found, a line each; the last lines say how many more there are of the kinds that are many."""
        more = {kind: n - _MOST_TOLD for kind, n in self.n_of_kind.items() if n > _MOST_TOLD}
        return self.told + [f"{n} more with {kind}" for kind, n in more.items()]

    @property
    def n_problems(self) -> int:
        """How many there are, told or not."""
        return len(self.told) + sum(max(0, n - _MOST_TOLD) for n in self.n_of_kind.values())

    def to_dict(self) -> dict[str, object]:
        """What `daian data check --json` prints."""
        return {
            "problems": self.problems,
            "n_problems": self.n_problems,
            "aucs": self.aucs,
            "unknown": self.unknown,
            "shift": self.shift,
            "n_requests": self.n_requests,
        }

    def tell(self, kind: str, problems: Iterable[str], n_problems: int) -> None:
        """Adds problems of one kind; only those that are told are asked for."""
        room = max(0, _MOST_TOLD - self.n_of_kind[kind])
        self.told += islice(problems, min(room, n_problems))
        self.n_of_kind[kind] += n_problems


def check_requests(folder: Path, leak_auc: float | None = LEAK_AUC, show_progress: bool = True) -> Check:
    """Checks a prepared folder. `leak_auc`: a single field above it is a problem; None switches that alarm off.

    Raises DataError when the folder is not a prepared one; everything else that is wrong is listed in the result.
    """
    dataset = open_dataset(folder)
    check = Check()
    _find_file_problems(folder, dataset, check)
    if check.told:
        return check  # what cannot be read cannot be looked into
    try:
        encoder = fit_encoder(folder)
        counts = _read_all(folder, encoder, check, show_progress)
    except DataError as error:
        check.told.append(str(error))
        return check
    _judge_leakage(counts, leak_auc, check)
    _report_unknown(counts, encoder, check)
    return check


def refuse_unfit(folder: Path, show_progress: bool = True) -> None:
    """Raises DataError with everything that `check_requests` finds wrong; nothing has been trained then."""
    check = check_requests(folder, show_progress=show_progress)
    if check.problems:
        found = "\n".join(f"  {problem}" for problem in check.problems)
        raise DataError(
            f"{folder} is not fit for training, {check.n_problems} problems:\n{found}\n"
            "Repair the tables and prepare the data again; --no-check trains on it as it is."
        )


def _find_file_problems(folder: Path, dataset: Dataset, check: Check) -> None:
    """A changed catalogue, missing splits, empty files, and columns that differ from the schema."""
    check.told += [
        f"{path}: damaged or changed since it was prepared (SHA-256); restore it or prepare the data again"
        for path in changed_catalogue_files(folder)
    ]
    wanted = file_columns(dataset.schema)
    for split in SPLITS:
        if split != "train" and not (folder / split).is_dir():
            continue
        try:
            for path in request_files(folder / split):
                for kind, problem in _problems_of_file(path, wanted):
                    check.tell(kind, [f"{path}: {problem}"], 1)
        except DataError as error:
            check.told.append(str(error))


def _problems_of_file(path: Path, wanted: pa.Schema) -> Iterator[tuple[str, str]]:
    """Kind and text of what is wrong with the file before a request of it is read."""
    if not sum(row_group_sizes(path)):
        yield "no requests in a file", "no requests in it; remove it or prepare the data again"
    found = pq.read_schema(path)
    for column in wanted:
        if column.name not in found.names:
            yield f"column {column.name} missing", f"column {column.name} is missing"
        elif (kind := found.field(column.name).type) != column.type:
            said = f"column {column.name} is {kind}, the schema says {column.type}"
            yield f"column {column.name} of another type", said
    for name in found.names:
        if name not in wanted.names:
            yield "an unknown column", f"unknown column {name}"


def _read_all(folder: Path, encoder: Encoder, check: Check, show_progress: bool) -> dict[str, LabelCounts]:
    counts: dict[str, LabelCounts] = {}
    hashes: list[UInt64[np.ndarray, " R"]] = []
    latest = -1
    for split in SPLITS:
        if not (folder / split).is_dir():
            continue
        counts[split] = LabelCounts(encoder)
        first_at, last_at, n_requests = np.iinfo(np.int64).max, -1, 0
        for place, first_row, batch, clicks in _row_groups(folder / split, show_progress):
            for column, what, requests in [*_broken_requests(batch), *_broken_values(batch, clicks)]:
                _tell_rows(place, np.unique(requests) + first_row, column, what, check)
            counts[split].add(batch, clicks, encoder.encode(batch))
            hashes.append(np.array([xxhash.xxh3_64_intdigest(r.encode()) for r in batch.request_id], np.uint64))
            first_at, last_at = (
                min(first_at, int(batch.requested_at.min())),
                max(last_at, int(batch.requested_at.max())),
            )
            n_requests += batch.n_requests
        check.n_requests[split] = n_requests
        if first_at <= latest and (split != "validation" or _shares_users(folder, first_at)):
            check.told.append(
                f"{folder / split}: begins at {first_at} ms, but the split before it ends at {latest} ms; split by time"
            )
        latest = max(latest, last_at)
    _find_repeated(np.concatenate(hashes), check)
    return counts


def _shares_users(folder: Path, from_at: int) -> bool:
    """Whether anybody has requests in the validation and, in its time, in the training too; the unknown may be anybody.

    A validation by users who are not trained on at the time (`prepare alimama`) has nothing of its own future in it.
    """
    trained, judged = _users(folder / "train", from_at), _users(folder / "validation", from_at)
    return None in trained | judged or not trained.isdisjoint(judged)


def _users(folder: Path, from_at: int) -> set[str | None]:
    """Who has requests from this time on."""
    found: set[str | None] = set()
    for path in request_files(folder):
        table = pq.read_table(path, columns=["user.user", "requested_at"], page_checksum_verification=True)
        found |= set(table.filter(pc.field("requested_at") >= from_at).column("user.user").unique().to_pylist())
    return found


def _row_groups(folder: Path, show: bool) -> Iterator[tuple[Path, int, RequestBatch, Int8[np.ndarray, " N"]]]:
    """File, its first row (from 1), and the requests of one row group."""
    groups: list[tuple[Path, int, int]] = []
    for path in request_files(folder):
        row = 1
        for index, size in enumerate(row_group_sizes(path)):
            groups.append((path, index, row))
            row += size
    with Progress(console=Console(stderr=True), disable=not show) as bar:
        for path, index, row in bar.track(groups, description=f"checking {folder.name}"):
            yield path, row, *read_row_group(path, index)


def _broken_requests(batch: RequestBatch) -> Iterator[Broken]:
    late = batch.behaviour_at >= batch.requested_at[batch.behaviour_request]
    yield "behaviour_at", "a behaviour that is not before its request", batch.behaviour_request[late]
    yield "candidate", "an item twice among its candidates", _repeated_candidates(batch)
    yield "candidate", "no candidates", np.flatnonzero(np.diff(batch.candidate_offsets) == 0)


def _broken_values(batch: RequestBatch, clicks: Int8[np.ndarray, " N"]) -> Iterator[Broken]:
    """Clicks that are neither, and numbers that are none: our own writer stores a missing number as missing."""
    yield "clicked", "neither 0 nor 1 for a click", batch.candidate_request[(clicks != 0) & (clicks != 1)]
    for side, columns in (("user", batch.user), ("context", batch.context)):
        for name, column in columns.items():
            yield f"{side}.{name}", "a number that is NaN or infinite", _not_finite(column)


def _not_finite(column: Shaped[np.ndarray, " R"]) -> Int64[np.ndarray, " X"]:
    """The places of numbers that are none; a missing value is None, and no number."""
    return np.array(
        [row for row, value in enumerate(column) if isinstance(value, float) and not math.isfinite(value)], np.int64
    )


def _tell_rows(path: Path, rows: Int64[np.ndarray, " X"], column: str, what: str, check: Check) -> None:
    check.tell(f"{what}, column {column}", (f"{path}, row {row}, column {column}: {what}" for row in rows), len(rows))


def _repeated_candidates(batch: RequestBatch) -> Int64[np.ndarray, " X"]:
    _, codes = np.unique(batch.candidate.astype(str), return_inverse=True)
    order = np.lexsort((codes, batch.candidate_request))
    owners, items = batch.candidate_request[order], codes[order]
    again = (np.diff(owners) == 0) & (np.diff(items) == 0)
    return np.asarray(owners[1:][again], np.int64)


def _find_repeated(hashes: UInt64[np.ndarray, " R"], check: Check) -> None:
    n_repeated = len(hashes) - len(np.unique(hashes))
    if n_repeated:
        check.told.append(f"{n_repeated} requests carry the request_id of another; each may be there once")


def _judge_leakage(counts: dict[str, LabelCounts], leak_auc: float | None, check: Check) -> None:
    later = counts.get("validation", counts.get("test"))
    if later is None:
        return
    check.aucs = single_field_aucs(counts["train"], later)
    if leak_auc is None:
        return
    check.told += [
        f"{name} alone tells the clicks (AUC {auc:.3f}): it was probably made from them; leave it out, or make it "
        "from earlier days"
        for name, auc in check.aucs.items()
        if auc > leak_auc and _is_no_chance(later, name)
    ]


def _is_no_chance(counts: LabelCounts, name: str) -> bool:
    """Whether there are enough of both kinds for an AUC to say something."""
    n_labelled, n_shown = int(counts.labelled[name].sum()), int(counts.shown[name].sum())
    return min(n_labelled, n_shown - n_labelled) >= LEAST_OF_EACH


def _report_unknown(counts: dict[str, LabelCounts], encoder: Encoder, check: Check) -> None:
    names = {f"{f.side if f.side != 'item' else 'candidate'}.{f.name}": f.kind for f in encoder.schema.fields}
    few_valued = [name for name, kind in names.items() if kind != "id"]  # counts of single ids differ by chance alone
    train = counts["train"].shown
    for split, counted in counts.items():
        shown = counted.shown
        check.unknown[split] = {n: round(float(shown[n][_OOV] / max(1, shown[n].sum())), 6) for n in names}
        if split != "train":
            check.shift[split] = {n: round(stability(train[n], shown[n]), 6) for n in few_valued}
