"""Drift: how far the latest held-out days lie from the training days, field by field, and whether that is too far.

Measured by `daian train` into the run's `drift.json`; `models_export.export` refuses a run above a limit. Looks at
fields alone, never at a click, and at no histories. In memory: a few counts for each id of the vocabularies.

Two figures for each field. The share of *unknown* values, which all share one embedding row; and the PSI (population
stability index) of the known ones, missing values among them. Both have a limit that is more than what these data show
anyway: the same comparison is made one step back, of the last training days, as many as are held out, against those
before. A context field that holds the weekday is never the same in two days, and new users come every day.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from service.contract.encoder import Encoder, ModelInputs
from service.contract.strict_json import strict_json
from training.data.dataset import Split, dataset_sha256, open_dataset, split_files
from training.data.leakage import stability
from training.data.request_files import read_requests
from training.data.whole_files import write_whole
from training.facts import UNKNOWN as OOV
from training.facts import without_behaviours

DRIFT_FILE = "drift.json"
PAD, FIRST_KNOWN = 0, 2  # the contract's ids: nothing here, and (behind the unknown one) the first known value
UNKNOWN_LIMIT = 0.2  # of all values, above what is usual
PSI_LIMIT = 0.25  # the usual word for a large shift
USUAL_TIMES = 2.0  # so many times the PSI that is usual
FEW_VALUES = 50  # up to so many, each is a group of its own
N_GROUPS = 10
_SIGMAS = 3.0


@dataclass(frozen=True)
class FieldDrift:
    """One field. Shares are of all values of the held-out days; `usual_`: of the last training days, in their turn."""

    unknown: float
    usual_unknown: float
    unknown_limit: float
    psi: float
    usual_psi: float
    psi_limit: float


@dataclass(frozen=True)
class Drift:
    """`fields` by name: `user.`, `context.`, `trigger.` or `candidate.` and the schema's. `split`: the latest one."""

    split: str
    n_train: int  # requests
    n_later: int
    fields: Mapping[str, FieldDrift]

    @property
    def above(self) -> list[str]:
        """A sentence for each figure above its limit: field, figure, limit, what it may come from."""
        return [sentence for name, one in self.fields.items() for sentence in _above(name, one)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "above": self.above}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Drift":
        """Reads what to_dict wrote. Raises ValueError for what it cannot have written."""
        split, n_train, n_later = (values.get(name) for name in ("split", "n_train", "n_later"))
        if not isinstance(split, str) or type(n_train) is not int or type(n_later) is not int:
            raise ValueError("no split, or no number of requests")
        saved = values.get("fields")
        if not isinstance(saved, dict) or not saved:
            raise ValueError("no figures by field")
        return cls(split, n_train, n_later, {name: _field_from(name, one) for name, one in saved.items()})


def _field_from(name: str, saved: object) -> FieldDrift:
    """A comparison with NaN is false: it would be below every limit."""
    names = [one.name for one in dataclass_fields(FieldDrift)]
    if not isinstance(saved, dict) or set(saved) != set(names):
        raise ValueError(f"{name}: other figures than {names}")
    if not all(type(one) in (int, float) and math.isfinite(one) for one in saved.values()):
        raise ValueError(f"{name}: figures that are no finite numbers")
    return FieldDrift(**saved)


def _above(name: str, one: FieldDrift) -> Iterator[str]:
    if one.unknown > one.unknown_limit:
        yield (
            f"{name}: {one.unknown:.1%} unknown, limit {one.unknown_limit:.1%} (usual here: {one.usual_unknown:.1%}); "
            "are its values spelt in another way since?"
        )
    if one.psi > one.psi_limit:
        yield (
            f"{name}: PSI {one.psi:.2f}, limit {one.psi_limit:.2f} (usual here: {one.usual_psi:.2f}); is it made, or "
            "filled, in another way since?"
        )


def measure_drift(data_folder: Path, encoder: Encoder) -> Drift:
    """Two passes, over training and latest held-out days. Raises DataError where one of them cannot be read."""
    split, began = _later_split(data_folder), _last_part(data_folder)
    before, last, later = _Shown(encoder), _Shown(encoder), _Shown(encoder)
    for path in split_files(data_folder, "train"):
        for batch, _ in read_requests(path):
            inputs = encoder.encode(without_behaviours(batch))
            is_last = batch.requested_at >= began
            before.add(inputs, ~is_last)
            last.add(inputs, is_last)
    for path in split_files(data_folder, split):
        for batch, _ in read_requests(path):
            later.add(encoder.encode(without_behaviours(batch)), np.ones(batch.n_requests, np.bool_))
    train = before.joined(last)
    kinds = {f"{part}.{field.name}": field.kind for part, field in _parts(encoder)}
    fields = {name: _field(name, kind == "id", before, last, train, later) for name, kind in kinds.items()}
    return Drift(split, train.n_requests, later.n_requests, fields)


def write_drift(run_folder: Path, data_folder: Path, drift: Drift) -> None:
    """Into the run folder, with the hash of the data that it is about."""
    content = {"data_sha256": dataset_sha256(data_folder), **drift.to_dict()}
    write_whole(run_folder / DRIFT_FILE, strict_json(content, indent=1).encode())


def drift_of(run_folder: Path, data_folder: Path, encoder: Encoder) -> Drift:
    """What the run's folder says about these data; measured where it says nothing, as in runs of earlier versions."""
    try:
        saved = json.loads((run_folder / DRIFT_FILE).read_text(encoding="utf-8"))
        if isinstance(saved, dict) and saved.get("data_sha256") == dataset_sha256(data_folder):
            drift = Drift.from_dict(saved)
            if saved.get("above") == drift.above and set(drift.fields) == _names(encoder):
                return drift
    except (FileNotFoundError, ValueError, OverflowError, RecursionError):
        pass  # none, damaged, or of another version of this program: what it says can be had again
    return measure_drift(data_folder, encoder)


def _later_split(data_folder: Path) -> Split:
    """The latest days there are: what is served next is after them."""
    windows = open_dataset(data_folder).windows
    return "test" if "test" in windows else "validation"


def _last_part(data_folder: Path) -> int:
    """Where the last training days begin, as many as are held out, but never more than half; epoch ms."""
    windows = open_dataset(data_folder).windows
    (first, end), (later_first, later_end) = windows["train"], windows[_later_split(data_folder)]
    return max(end - (later_end - later_first), (first + end + 1) // 2)


class _Shown:
    """How often each id stood in each field of some requests."""

    def __init__(self, encoder: Encoder) -> None:
        sizes = encoder.sizes
        heights = {"user": sizes.user, "context": sizes.context, "trigger": sizes.item, "candidate": sizes.item}
        schema = encoder.schema
        self._columns = [(part, schema.of(_side(part)), heights[part]) for part in heights]
        self.n_requests = 0
        self.counts = {
            f"{part}.{field.name}": np.zeros(height, np.int64)
            for part, fields, sizes_of in self._columns
            for field, height in zip(fields, sizes_of, strict=True)
        }

    def add(self, inputs: ModelInputs, wanted: np.ndarray) -> None:
        """Counts the wanted requests among those encoded."""
        self.n_requests += int(wanted.sum())
        for part, fields, heights in self._columns:
            rows = wanted[inputs.candidate_request] if part == "candidate" else wanted
            ids = getattr(inputs, f"{part}_fields")[rows]
            for place, (field, height) in enumerate(zip(fields, heights, strict=True)):
                self.counts[f"{part}.{field.name}"] += np.bincount(ids[:, place], minlength=height)

    def joined(self, other: "_Shown") -> "_Shown":
        """Both together."""
        both = copy(self)
        both.n_requests = self.n_requests + other.n_requests
        both.counts = {name: counts + other.counts[name] for name, counts in self.counts.items()}
        return both

    def of_values(self, name: str) -> Int64[np.ndarray, " V"]:
        """Of an item's field as trigger and as candidate together, of others as they are."""
        part, _, field = name.partition(".")
        if _side(part) != "item":
            return self.counts[name]
        return self.counts[f"trigger.{field}"] + self.counts[f"candidate.{field}"]


def _side(part: str) -> str:
    return "item" if part in ("trigger", "candidate") else part


def _parts(encoder: Encoder) -> Iterable[tuple[str, Any]]:
    return [
        (part, field)
        for part in ("user", "context", "trigger", "candidate")
        for field in encoder.schema.of(_side(part))
    ]


def _names(encoder: Encoder) -> set[str]:
    return {f"{part}.{field.name}" for part, field in _parts(encoder)}


def _field(name: str, is_id: bool, before: _Shown, last: _Shown, train: _Shown, later: _Shown) -> FieldDrift:
    """The field's figures, and the same one step back."""
    is_grouped = is_id or len(train.counts[name]) > FEW_VALUES + FIRST_KNOWN
    usual_unknown, usual_psi = 0.0, 0.0
    if before.n_requests and last.n_requests:
        unseen = before.of_values(name) == 0
        unseen[PAD], unseen[OOV] = False, True
        usual_unknown = _share(last.counts[name], unseen)
        usual_psi, _ = _psi(before, last, name, is_grouped)
    unknown = np.arange(len(later.counts[name])) == OOV
    chance = 0.5 * _SIGMAS / math.sqrt(max(1, later.n_requests))
    psi, psi_chance = _psi(train, later, name, is_grouped)
    return FieldDrift(
        unknown=_share(later.counts[name], unknown),
        usual_unknown=usual_unknown,
        unknown_limit=min(1.0, usual_unknown + UNKNOWN_LIMIT + chance),
        psi=psi,
        usual_psi=usual_psi,
        psi_limit=max(PSI_LIMIT + psi_chance, USUAL_TIMES * usual_psi),
    )


def _share(counts: Int64[np.ndarray, " V"], which: np.ndarray) -> float:
    return float(counts[which].sum() / max(1, counts.sum()))


def _psi(reference: _Shown, judged: _Shown, name: str, is_grouped: bool) -> tuple[float, float]:
    """PSI over the known values and the missing one, and how much of it chance alone may make.

    Chance: without any shift, PSI / (1/n + 1/m) is distributed as χ² with k - 1 degrees of freedom: its mean and three
    standard deviations. n and m count values, but at most one a request: the candidates of a page come together.
    """
    groups = _groups(reference.of_values(name), is_grouped)
    kept, n_groups = groups >= 0, int(groups.max()) + 1
    left, right = (
        np.bincount(groups[kept], shown.counts[name][kept], n_groups).astype(np.int64) for shown in (reference, judged)
    )
    free = n_groups - 1
    spread = free + _SIGMAS * math.sqrt(2 * free)
    n, m = (min(one.n_requests, int(counts.sum())) for one, counts in ((reference, left), (judged, right)))
    chance = spread * (1 / max(1, n) + 1 / max(1, m))
    return (stability(left, right) if right.sum() else 0.0), chance


def _groups(counts: Int64[np.ndarray, " V"], is_grouped: bool) -> Int64[np.ndarray, " V"]:
    """The group of each id; -1: left out, as OOV is, whose share is judged by itself.

    Few values are a group each. Many are put into ten groups, from the most to the least frequent of the reference
    days, each with a tenth of what those days showed: counts of single users or items differ by chance alone, and a PSI
    over thousands of them would say no more than that. An id that those days did not show is left out.
    """
    groups = np.arange(len(counts)) - 1
    groups[PAD], groups[OOV] = 0, -1
    if not is_grouped:
        return groups
    known = counts[FIRST_KNOWN:]
    order = np.argsort(-known, kind="stable")
    middle = np.cumsum(known[order]) - known[order] / 2
    tenth = np.minimum(middle * N_GROUPS // max(1, known.sum()), N_GROUPS - 1).astype(np.int64)
    groups[FIRST_KNOWN + order] = np.where(known[order] > 0, tenth + 1, -1)
    return groups
