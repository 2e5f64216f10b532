"""History and levels on hand-made cases."""

import numpy as np
import pytest

from service.contract.errors import SchemaError
from service.contract.history import N_AGE_BINS, age_bin, newest
from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale
from tests.property.worlds import NOW, RULES, encoder

MINUTE = 60_000


def test_levels_on_their_edges() -> None:
    sixth = np.float32(1 / 6)
    similarity = np.array([-0.1, 0, np.nextafter(sixth, np.float32(0)), sixth, 1 - 1e-6, 1, 1 + 1e-6, -2], np.float32)
    assert SimilarityScale(0, 1, 6).level(similarity).tolist() == [1, 1, 1, 2, 6, 6, 6, 0]


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(SchemaError, match="low < high"):
        SimilarityScale(1, 1, 6)


def test_age_bins() -> None:
    minutes = np.array([0, 0.99, 1, 2.99, 3, 7, 60 * 24 * 14, 60 * 24 * 3650])
    assert age_bin((minutes * MINUTE).astype(np.int64)).tolist() == [1, 1, 2, 2, 3, 4, 15, N_AGE_BINS - 1]


def test_the_newest_are_kept_in_time_order() -> None:
    kept = newest(np.arange(5), np.array([0, 0, 0, 2, 2]), 3, 2)
    assert (kept.behaviour.tolist(), kept.request.tolist(), kept.position.tolist()) == (
        [1, 2, 3, 4],
        [0, 0, 2, 2],
        [0, 1, 0, 1],
    )


def history_of(*behaviours: tuple[str, int, str]) -> list[int]:
    """Item ids (encoded) that the history shows, for behaviours of (item, minutes before the request, type)."""
    row = {
        "request_id": "r",
        "requested_at": NOW,
        "trigger": "item-1",
        "behaviours": [
            {"item": item, "at": NOW - minutes * MINUTE, "type": kind} for item, minutes, kind in behaviours
        ],
    }
    inputs = encoder().encode(RequestBatch.from_rows([row]))
    return inputs.history_fields[0, inputs.history_age[0] > 0, 0].tolist()


def test_history_by_hand() -> None:
    day, edge = 24 * 60, RULES.window_s // 60
    assert history_of(("item-2", 5, "click"), ("item-3", 9, "cart")) == [5, 4]
    assert history_of(("item-2", 5, "impression"), ("item-2", 0, "click"), ("item-2", -5, "click")) == []
    assert history_of(("item-2", edge, "click"), ("item-3", edge + 1, "click")) == [4]
    assert history_of(("item-1", 29, "click"), ("item-1", 2 * day, "click")) == [3]
    assert history_of(*[(f"item-{k}", k, "click") for k in range(2, 20)]) == [8, 7, 6, 5, 4]
