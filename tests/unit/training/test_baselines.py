"""The lines on a shop small enough to do by hand, and which of them are there."""

import math
from pathlib import Path

import numpy as np
import pytest

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.baselines import LINES, Known, baseline_numbers, history_means, read_lines, read_shown
from training.data.dataset import Dataset, Items, PreparedWriter, Split
from training.scores import all_numbers

GOAL = Field("goal", "context", "id")
# East, north, the diagonal between, and an item without a vector.
VECTORS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.float32)
Row = tuple[str, list[int]]


def row(number: int, split: int, trigger: str, behaviours: list[tuple[str, int]], goal: str) -> dict[str, object]:
    return {
        "request_id": f"{split}-{number}",
        "requested_at": 1_000_000 * (split + 1) + number,
        "user": {"user": f"u{number % 2}"},
        "context": {"goal": goal},
        "trigger": trigger,
        "behaviours": [{"item": item, "at": at} for item, at in behaviours],
        "candidates": ["north", "diagonal", "bare"],
    }


def shop(folder: Path, clicks: dict[Split, list[list[int]]], goal: Field | None = GOAL) -> Path:
    """Pages below `east` showing the other three; `clicks` of each page of each split."""
    schema = FeatureSchema(
        user=(Field("user", "user", "id"),), context=(goal,) if goal else (), item=(Field("item", "item", "id"),)
    )
    items = Items(["east", "north", "diagonal", "bare"], {}, vectors=VECTORS)
    with PreparedWriter(folder, Dataset("shop", schema, HistoryRules()), items) as writer:
        for place, (split, pages) in enumerate(clicks.items()):
            rows = [row(n, place, "east", [("north", 1)], "north") for n in range(len(pages))]
            if pages:
                writer.write(split, RequestBatch.from_rows(rows), np.array(pages, np.int8).ravel())
    return folder


PAGES: dict[Split, list[list[int]]] = {
    "train": [[1, 0, 0]] * 3 + [[0, 1, 0]],
    "validation": [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    "test": [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
}


def test_every_line_by_hand(tmp_path: Path) -> None:
    numbers = baseline_numbers(shop(tmp_path / "shop", PAGES), "test")
    assert list(numbers) == list(LINES)
    # Rates rank north, diagonal, bare: the first click has AUC 1, the second 1/2, the third page none at all.
    for line in ("popularity", "click_rate", "pair_rate"):
        assert numbers[line]["auc_per_request"] == pytest.approx(0.75)
    # To east: diagonal 0.7, north 0, bare 0 for it has no vector; a tie counts one half.
    assert numbers["cosine_trigger"]["auc_per_request"] == pytest.approx((0.25 + 1) / 2)
    # To north, the only behaviour and the goal: north 1, diagonal 0.7, bare 0.
    assert numbers["cosine_history"]["auc_per_request"] == pytest.approx(0.75)
    assert numbers["cosine_goal"]["auc_per_request"] == pytest.approx(0.75)
    overall = 4 / 12
    north, diagonal, bare = ((clicked + 20 * overall) / 24 for clicked in (3, 1, 0))
    chances = [north, 1 - diagonal, 1 - bare, 1 - north, diagonal, 1 - bare, 1 - north, 1 - diagonal, 1 - bare]
    assert numbers["click_rate"]["log_loss"] == pytest.approx(-np.mean(np.log(chances)))
    assert {line for line, found in numbers.items() if "log_loss" in found} == {"click_rate", "pair_rate"}


def test_popularity_is_clicks_and_not_their_rate(tmp_path: Path) -> None:
    """The diagonal gets more clicks than north, from far more impressions."""
    folder = shop(tmp_path / "shop", PAGES)
    known = Known.open(folder)
    counts = known.counts
    diagonal = known.catalogue.rows(["diagonal"])
    counts.shown[diagonal], counts.clicked[diagonal] = 1000, 5
    shown = read_shown(folder / "test", known)
    assert shown.scores["popularity"].tolist() == [3, 5, 0] * 3
    assert shown.scores["click_rate"][0] > shown.scores["click_rate"][1]


def test_a_lines_scores_are_a_rankers(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", PAGES)
    shown, numbers = read_lines(folder, "test"), baseline_numbers(folder, "test")
    assert set(shown.scores) == set(LINES)
    for line in LINES:
        scored = shown.scored(line)
        assert (np.diff(scored.request) >= 0).all()
        found = all_numbers(scored)
        assert found["auc_per_request"] == pytest.approx(numbers[line]["auc_per_request"])
    assert all_numbers(shown.scored("click_rate"))["log_loss"] == pytest.approx(numbers["click_rate"]["log_loss"])


def test_the_logit_follows_the_validation_split(tmp_path: Path) -> None:
    """On the test split north and the diagonal are clicked once each."""
    # The diagonal is clicked, and only the cosine to the trigger speaks for it: diagonal, north, bare.
    against = [[0, 1, 0]] * 6 + [[1, 0, 0]]
    numbers = baseline_numbers(shop(tmp_path / "shop", {**PAGES, "validation": against}), "test")
    assert numbers["logit_click_rate_trigger"]["auc_per_request"] == pytest.approx((0.5 + 1) / 2)
    # North alone is clicked: rates count for, and the cosine to the trigger against. North, bare, diagonal.
    numbers = baseline_numbers(shop(tmp_path / "other", {**PAGES, "validation": [[1, 0, 0]] * 6}), "test")
    assert numbers["logit_click_rate_trigger"]["auc_per_request"] == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize("validation", [[], [[0, 0, 0]]], ids=["no split", "no click"])
def test_no_logit_without_clicks_to_fit_it_on(tmp_path: Path, validation: list[list[int]]) -> None:
    numbers = baseline_numbers(shop(tmp_path / "shop", {**PAGES, "validation": validation}), "test")
    assert list(numbers) == [line for line in LINES if not line.startswith("logit")]


@pytest.mark.parametrize("goal", [None, Field("goal", "context", "category")], ids=["no field", "no item"])
def test_no_goal_where_requests_name_no_item_as_goal(tmp_path: Path, goal: Field | None) -> None:
    numbers = baseline_numbers(shop(tmp_path / "shop", PAGES, goal), "test")
    assert list(numbers) == [line for line in LINES if "goal" not in line]


def test_a_split_without_clicks_has_no_numbers(tmp_path: Path) -> None:
    numbers = baseline_numbers(shop(tmp_path / "shop", {**PAGES, "test": [[0, 0, 0]]}), "test")
    assert all(math.isnan(found["auc_per_request"]) for found in numbers.values())


def test_the_control_draws_items_with_vectors_and_the_same_ones_again(tmp_path: Path) -> None:
    known = Known.open(shop(tmp_path / "shop", {**PAGES, "test": [[1, 0, 0]] * 200}))
    one, again = (read_shown(tmp_path / "shop" / "test", known).scores["cosine_random"] for _ in range(2))
    assert one.tolist() == again.tolist()
    to_north = one.reshape(-1, 3)[:, 0]
    assert {round(x, 1) for x in to_north.tolist()} == {0.0, 0.7, 1.0}, "of east, the diagonal and north"
    assert (one.reshape(-1, 3)[:, :2] != 0).any(axis=1).all(), "the bare one was drawn"


def test_history_is_the_mean_of_the_newest_fifty_whatever_their_order(tmp_path: Path) -> None:
    catalogue = Known.open(shop(tmp_path / "shop", PAGES)).catalogue
    newest = [("north", 100 + n) for n in range(25)] + [("east", 200 + n) for n in range(25)]
    older = [("diagonal", n) for n in range(60)]
    rows = [row(0, 0, "east", [*newest, *older], "north"), row(1, 0, "east", [], "north")]
    rows += [row(2, 0, "east", [("bare", 5)], "north"), row(3, 0, "east", [*newest[::-1], *older], "north")]
    means = history_means(RequestBatch.from_rows(rows), catalogue)
    assert means[0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert means[1].tolist() == means[2].tolist() == [0, 0]
    assert means[3].tolist() == pytest.approx(means[0].tolist())
