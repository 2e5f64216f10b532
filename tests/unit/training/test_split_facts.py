"""Facts of a split by hand: a shop of five items in two leaf categories, and one item with neither vector nor leaf."""

from pathlib import Path

import numpy as np
import pytest

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from training.data.dataset import Dataset, PreparedWriter
from training.data.dataset import Items as NewItems
from training.data.labels import group_codes
from training.split_facts import Items, TrainingDays, clicked_leaves, read_candidates, read_training_days

DAY = 86_400_000
SCALE = SimilarityScale(0.0, 1.0, 2)
ITEMS = ["shoe", "boot", "hat", "cap", "bare"]
LEAVES = ["feet", "feet", "head", "head", None]
# Shoe and boot point the same way, hats another; the bare item has no vector.
VECTORS = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=np.float32)


def row(number: int, user: str | None, trigger: str, candidates: list[str], day: float) -> dict[str, object]:
    return {
        "request_id": f"r{number}",
        "requested_at": int(day * DAY),
        "user": {"user": user},
        "context": {},
        "trigger": trigger,
        "behaviours": [],
        "candidates": candidates,
    }


def shop(folder: Path, leaf: str | None = "leaf") -> Path:
    schema = FeatureSchema(
        user=(Field("user", "user", "id"),),
        context=(),
        item=(Field("item", "item", "id"), Field("leaf", "item", "category")),
        leaf_category=leaf,
    )
    train = [
        row(0, "old", "shoe", ["hat", "bare"], 1),  # clicked hat: one other leaf, but not in the last week
        row(1, "old", "shoe", ["boot", "bare"], 9),  # clicked both: boot is the trigger's leaf, bare tells nothing
        row(2, "both", "hat", ["shoe", "boot", "cap"], 9.5),  # shoe and boot: one other leaf
        row(3, "both", "hat", ["shoe", "cap"], 10),  # cap: none
        row(4, "quiet", "hat", ["shoe", "stranger"], 10),  # no click
        row(5, "bare", "bare", ["shoe"], 10),  # a trigger without a leaf tells nothing
    ]
    clicks = [1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1]
    test = [row(10, "old", "shoe", ["cap", "boot", "stranger"], 11), row(11, None, "bare", ["shoe"], 11)]
    items = NewItems(ITEMS, {"leaf": LEAVES}, vectors=VECTORS)
    with PreparedWriter(folder, Dataset("shop", schema, HistoryRules()), items) as writer:
        writer.write("train", RequestBatch.from_rows(train), np.array(clicks, np.int8))
        writer.write("test", RequestBatch.from_rows(test), np.array([1, 0, 0, 1], np.int8))
    return folder


def of_user(days: TrainingDays, user: str, values: np.ndarray) -> object:
    code, _ = group_codes(RequestBatch.from_rows([row(0, user, "shoe", ["hat"], 1)]))
    place = days.place(code)
    assert place[0] >= 0
    return values[place[0]].tolist()


def test_training_days_by_hand(tmp_path: Path) -> None:
    items = Items.open(shop(tmp_path / "shop"), SCALE)
    days = read_training_days(tmp_path / "shop", items)
    rows = items.catalogue.rows([*ITEMS, "stranger"])
    assert days.shown[rows].tolist() == [4, 2, 1, 2, 2, 1]
    assert days.clicked[rows].tolist() == [2, 2, 1, 1, 1, 0]
    assert len(days.users) == 4
    assert [of_user(days, user, days.diversity) for user in ("old", "both", "quiet", "bare")] == [0, 1, -1, -1]
    # boot to shoe is the upper level, hat to shoe the lower, the bare item in none
    assert of_user(days, "old", days.level_clicks) == [1, 1]
    assert of_user(days, "both", days.level_clicks) == [2, 1]


def test_users_that_were_not_seen_have_no_place() -> None:
    none = np.zeros(0, np.int64)
    days = TrainingDays(none, none, np.array([3, 9]), np.array([0, 1]), np.zeros((2, 2), np.int64))
    assert days.place(np.array([9, 4, 3, 99])).tolist() == [1, -1, 0, -1]
    nobody = TrainingDays(none, none, none, none, np.zeros((0, 2), np.int64))
    assert nobody.place(np.array([1, 2])).tolist() == [-1, -1]


def test_candidates_stand_in_the_order_of_request_codes(tmp_path: Path) -> None:
    items = Items.open(shop(tmp_path / "shop"), SCALE)
    found = read_candidates(tmp_path / "shop" / "test", items)
    assert (np.diff(found.request) >= 0).all()
    start = int(np.flatnonzero(found.item == items.catalogue.rows(["cap"])[0])[0])
    three = slice(start, start + 3)
    assert len(set(found.request[three].tolist())) == 1
    assert items.catalogue.ids(found.item[three])[:2] == ["cap", "boot"]
    feet, head = items.leaf[items.catalogue.rows(["shoe", "hat"])].tolist()
    assert found.leaf[three].tolist() == [head, feet, 0]
    assert found.trigger_leaf[three].tolist() == [feet] * 3
    assert found.level[three].tolist() == [1, 2, 0]


def test_without_a_leaf_category_there_are_no_leaves(tmp_path: Path) -> None:
    items = Items.open(shop(tmp_path / "shop", leaf=None), SCALE)
    assert not items.leaf.any()
    assert (read_training_days(tmp_path / "shop", items).diversity == -1).all()


@pytest.mark.parametrize(
    ("leaf", "trigger", "clicks", "expected"),
    [
        ([1, 2, 3], 1, [1, 1, 1], 2),
        ([2, 2, 2], 1, [1, 1, 0], 1),
        ([1, 1, 2], 1, [1, 1, 0], 0),
        ([1, 2, 3], 1, [0, 0, 0], -1),
        ([0, 0, 2], 1, [1, 1, 0], -1),
        ([1, 2, 3], 0, [1, 1, 1], -1),
    ],
)
def test_other_leaves_of_a_requests_clicks(leaf: list[int], trigger: int, clicks: list[int], expected: int) -> None:
    """The same request twice: requests do not mix."""
    found = clicked_leaves(
        np.repeat([0, 1], 3), np.array(leaf * 2), np.array([trigger] * 2), np.array(clicks * 2, np.int8)
    )
    assert found.tolist() == [expected, expected]
