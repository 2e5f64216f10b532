"""A bundle that knows the days it is tested on is told from one that does not, and from one of which nobody knows."""

from typing import Any

import pytest

from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.dataset import Dataset, Split
from training.evaluate_days import compare_days

DAY = 86_400_000
SCHEMA = FeatureSchema((Field("user", "user", "id"),), (), (Field("item", "item", "id"),))
WINDOWS = {"train": (0, 7 * DAY), "validation": (7 * DAY, 8 * DAY), "test": (8 * DAY + 1, 9 * DAY)}


def dataset(windows: dict[str, tuple[int, int]] = WINDOWS, name: str = "shop") -> Dataset:
    return Dataset(name, SCHEMA, HistoryRules(), windows=windows)


def later(days: int) -> dict[str, list[int]]:
    return {split: [first + days * DAY, last + days * DAY] for split, (first, last) in WINDOWS.items()}


def manifest(days: int = 0, name: str = "shop", **changed: Any) -> dict[str, Any]:
    return {"name": name, "windows": later(days), "n_items": 3, **changed}


@pytest.mark.parametrize(
    ("learnt_from", "split", "is_fair", "said"),
    [
        (manifest(), "test", True, "has not seen"),
        (manifest(), "validation", False, "chosen on this very split"),
        (manifest(), "train", False, "trained on this very split"),
        (manifest(-9), "test", True, "before the requests of this split"),
        (manifest(1), "test", False, "trained on days that it is tested on"),
        (manifest(1, name="last month"), "test", False, "if last month and shop are logs of one shop"),
        (manifest(20), "test", False, "knows what came of them"),
        (manifest(windows={}), "test", None, "cannot be told"),
        ({}, "test", None, "cannot be told"),
        (None, "test", None, "cannot be told"),
    ],
)
def test_overlap_is_told_by_time(learnt_from: Any, split: Split, is_fair: bool | None, said: str) -> None:
    found = compare_days(learnt_from, dataset(), split)
    assert found.is_fair is is_fair
    assert said in found.text


def test_a_bundle_may_have_been_tested_on_these_days_but_not_chosen_on_them() -> None:
    """Its own test days count for nothing: only what it learnt from. The twin moves the same days into validation."""
    windows = {"train": [0, DAY], "validation": [DAY, 2 * DAY], "test": [2 * DAY, 30 * DAY]}
    assert compare_days(manifest(windows=windows), dataset(), "test").is_fair is True
    windows["validation"] = windows["test"]
    assert compare_days(manifest(windows=windows), dataset(), "test").is_fair is False


def test_a_data_set_without_days_cannot_tell_either() -> None:
    found = compare_days(manifest(), dataset({"train": (0, DAY)}), "test")
    assert found.is_fair is None
    assert "of its test split" in found.text
