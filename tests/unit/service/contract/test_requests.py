"""RequestBatch refuses what is no request, naming the place."""

import numpy as np
import pytest

from service.contract.errors import RequestError
from service.contract.requests import RequestBatch

GOOD = {"request_id": "r", "requested_at": 5, "trigger": "t"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trigger": 7}, "request 1: trigger must be str"),
        ({"requested_at": True}, "requested_at must be int"),
        ({"candidates": "abc"}, "candidates must be a list"),
        ({"candidates": ["a", None]}, r"candidates\[1\] must be a string"),
        ({"behaviours": [{"item": "a"}]}, r"behaviours\[0\] must be"),
        ({"clicked": [1]}, r"unknown \['clicked'\]"),
    ],
)
def test_bad_rows_are_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        RequestBatch.from_rows([GOOD, {**GOOD, **change}])


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RequestError, match=r"missing \['trigger'\]"):
        RequestBatch.from_rows([{"request_id": "r", "requested_at": 5}])


def test_offsets_must_fit() -> None:
    batch = RequestBatch.from_rows([GOOD])
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    with pytest.raises(RequestError, match="candidate_offsets must rise from 0 to 0"):
        RequestBatch(**{**values, "candidate_offsets": np.array([0, 2])})


def test_rows_come_back_as_they_went_in() -> None:
    row = {
        **GOOD,
        "user": {"user": None, "city": "hz"},
        "context": {"surface": "home"},
        "behaviours": [{"item": "a", "at": 1, "type": "cart"}],
        "candidates": ["b", "c"],
    }
    other = {**GOOD, "user": {"user": "u"}, "context": {}, "behaviours": [], "candidates": []}
    assert RequestBatch.from_rows([row, other]).to_rows() == [row, other]


def test_an_empty_batch_is_a_batch() -> None:
    assert RequestBatch.concat([]).to_rows() == []
