"""Whether a live bundle has seen the days that it is tested on. Called by `training.evaluate`.

A bundle's manifest knows the name of the data that its run was trained on and the first and last request of each split.
A bundle that learnt from the clicks it is now asked about would look better than it is, so this is looked at before its
scores are believed. Nothing is scored here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.contract.bundle import MANIFEST, current_path, read_bundle
from training.data.dataset import Dataset, Split, open_dataset

_LEARNT = ("train", "validation")  # weights are fitted on the one and chosen on the other

Window = tuple[int, int]


@dataclass(frozen=True)
class DaysSeen:
    """`is_fair`: the bundle saw none of these days, None when that cannot be told. `text`: why, a whole sentence."""

    is_fair: bool | None
    text: str


def days_seen(against: Path, data_folder: Path, split: Split) -> DaysSeen:
    """What a bundle (or the current one of a folder of bundles) knows of a split of this data folder.

    Raises BundleError for a bundle that is not whole, DataError for a folder that is not prepared.
    """
    bundle = read_bundle(against if (against / MANIFEST).is_file() else current_path(against))
    return compare_days(bundle.manifest.get("data"), open_dataset(data_folder), split)


def compare_days(learnt_from: Any, dataset: Dataset, split: Split) -> DaysSeen:
    """`learnt_from`: the manifest's `data`. Overlap is by time; of the very same data set, by split."""
    windows = _windows(learnt_from)
    tested = dataset.windows.get(split)
    if windows is None or tested is None:
        who = "the bundle's manifest" if windows is None else f"the data set, of its {split} split,"
        return DaysSeen(
            None,
            f"It cannot be told whether the bundle was trained on the days that it is tested on: {who} does not say "
            "which days those were. If it was, it looks better than it is.",
        )
    if learnt_from.get("name") == dataset.name and windows == dict(dataset.windows):
        return _of_the_same_data(dataset.name, split)
    learnt = {name: window for name, window in windows.items() if name in _LEARNT}
    return _by_time(learnt, tested, str(learnt_from.get("name")), dataset.name)


def _of_the_same_data(name: str, split: Split) -> DaysSeen:
    if split in _LEARNT:
        how = "trained" if split == "train" else "chosen"
        return DaysSeen(
            False, f"The bundle's weights were {how} on this very split of {name}: it looks better than it is."
        )
    return DaysSeen(True, f"The bundle was trained on the same data set, {name}, whose test split it has not seen.")


def _by_time(windows: Mapping[str, Window], tested: Window, learnt_from: str, name: str) -> DaysSeen:
    first, last = min(w[0] for w in windows.values()), max(w[1] for w in windows.values())
    days = f"from {_day(first)} to {_day(last)} ({learnt_from})"
    scored = f"{_day(tested[0])} to {_day(tested[1])}"
    if last < tested[0]:
        return DaysSeen(True, f"The bundle learnt {days}, before the requests of this split ({scored}).")
    if first > tested[1]:
        return DaysSeen(
            False, f"The bundle learnt {days}, after the requests of this split ({scored}): it knows what came of them."
        )
    other = "" if learnt_from == name else f" (if {learnt_from} and {name} are logs of one shop)"
    return DaysSeen(
        False,
        f"The bundle learnt {days}, and this split is {scored}: it was trained on days that it is tested on{other}, "
        "and looks better than it is. Compare on later days, or with a run of the same days.",
    )


def _windows(learnt_from: Any) -> dict[str, Window] | None:
    """First and last time by split; None when the manifest does not tell of the training days."""
    found = learnt_from.get("windows") if isinstance(learnt_from, Mapping) else None
    if not isinstance(found, Mapping) or "train" not in found:
        return None
    return {split: (int(window[0]), int(window[1])) for split, window in found.items()}


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
