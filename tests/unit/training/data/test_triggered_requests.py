"""Requests of triggered impressions as batches: what stands in one, each ad once, splits in order and in pieces.

The rules of time are tested in `test_prepare_alimama`, whole preparations there and in `test_prepare_movielens`.
"""

import numpy as np
import pytest

from service.contract.requests import objects
from training.data import triggered_requests
from training.data.alimama_files import Part
from training.data.alimama_rules import Impressions
from training.data.triggered_requests import TriggeredRequests, as_texts, by_split

HOUR = 3_600


def impressions_of(*rows: tuple[int, int, int, int]) -> Impressions:
    """Of (user, time, ad, clicked)."""
    user, at_s, ad, clicked = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Impressions.of(Part(user, at_s, ad, objects(["p"] * len(rows)), clicked))


LOG = impressions_of(
    (1, 100, 7, 1),  # no click before it: no trigger
    (1, 200, 8, 0),
    (1, 200, 9, 1),
    (1, 300, 9, 0),  # below 9, clicked at 200
    (1, 400, 9, 1),  # below the same click, the same ad again
    (2, 100, 7, 0),  # nobody clicked
    (2, 50_000, 7, 1),
    (2, 50_000 + 4 * HOUR, 8, 0),
    (2, 50_001 + 4 * HOUR, 8, 0),  # too late
)


def rows_of(requests: TriggeredRequests) -> list[tuple[object, ...]]:
    some = np.arange(len(requests.starts))
    user = requests.shown.user[requests.starts]
    batch, clicks = requests.batch(
        some, objects(f"r{r}" for r in some), {"city": objects(["x"] * len(some))}, {"pid": as_texts(user)}
    )
    parts = np.split(clicks, batch.candidate_offsets[1:-1])
    return [
        (
            row["request_id"],
            row["requested_at"],
            row["user"],
            row["context"],
            row["trigger"],
            row["candidates"],
            part.tolist(),
            [(b["item"], b["at"], b["type"]) for b in row["behaviours"]],  # type: ignore[attr-defined]
        )
        for row, part in zip(batch.to_rows(), parts, strict=True)
    ]


def test_a_batch_holds_what_was_shown_and_what_was_clicked_before() -> None:
    first, second = ("7", 100_000, "click"), ("9", 200_000, "click")
    one, two = {"user": "1", "city": "x"}, {"user": "2", "city": "x"}
    assert rows_of(TriggeredRequests.of(LOG, "time", ())) == [
        ("r0", 200_000, one, {"pid": "1"}, "7", ["8", "9"], [0, 1], [first]),
        ("r1", 300_000, one, {"pid": "1"}, "9", ["9"], [0], [first, second]),
        ("r2", 400_000, one, {"pid": "1"}, "9", ["9"], [1], [first, second]),
        ("r3", 64_400_000, two, {"pid": "2"}, "7", ["8"], [0], [("7", 50_000_000, "click")]),
    ]


def test_below_one_click_an_ad_stands_once_and_borders_part_requests() -> None:
    below = TriggeredRequests.of(LOG, "trigger", ())
    assert [row[5] for row in rows_of(below)] == [["8", "9"], ["9", "9"], ["8"]]
    assert [row[4:7] for row in rows_of(below.each_ad_once())] == [
        ("7", ["8", "9"], [0, 1]),
        ("9", ["9"], [1]),
        ("7", ["8"], [0]),
    ]
    parted = TriggeredRequests.of(LOG, "trigger", (350,)).each_ad_once()
    assert [row[6] for row in rows_of(parted)] == [[0, 1], [0], [1], [0]]


def test_impressions_without_any_trigger_make_no_request() -> None:
    assert len(TriggeredRequests.of(impressions_of((1, 100, 7, 0), (2, 100, 7, 1)), "time", ()).starts) == 0


def test_splits_come_in_order_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggered_requests, "WRITE_REQUESTS", 2)
    split = np.array(["test", "train", "train", "validation", "train", "test"])
    found = [(name, rows.tolist()) for name, rows in by_split(split)]
    assert found == [("train", [1, 2]), ("train", [4]), ("validation", [3]), ("test", [0, 5])]


def test_equal_ids_share_one_text() -> None:
    texts = as_texts(np.array([12, 5, 12], dtype=np.int64))
    assert texts.tolist() == ["12", "5", "12"]
    assert texts[0] is texts[2]
