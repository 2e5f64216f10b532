"""Question and row_of: what a caller or a profile gives becomes a row that the log keeps unchanged."""

import json
from pathlib import Path

import pytest

from service.contract.schema import FeatureSchema, Field
from service.metrics import Metrics
from service.question import Question, distinct_ids, row_of
from service.request_log import RequestLog

SCHEMA = FeatureSchema(
    user=(Field("user", "user", "id"), Field("orders", "user", "number"), Field("city", "user", "category")),
    context=(Field("position", "context", "number"),),
    item=(Field("item", "item", "id"),),
)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(3, 3.0), ("2.5", 2.5), (10**320, None), ("inf", None), (float("-inf"), None), ("nan", None), ("many", None),
     (None, None)],
    ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_a_number_that_the_log_cannot_keep_is_missing(tmp_path: Path, given: object, kept: float | None) -> None:
    question = Question("r", 1, "u", "i", context={"position": given})  # type: ignore[dict-item]
    row = row_of(question, SCHEMA, {"orders": given, "city": 7, "strange": 1}, (), ["i"])
    assert (row["context"], row["user"]) == ({"position": kept}, {"orders": kept, "city": "7", "user": "u"})
    log = RequestLog(tmp_path / "log", Metrics())
    log.open()
    log.append(row)
    log.close()
    assert json.loads((tmp_path / "log").read_text()) == row


@pytest.mark.parametrize("tail", [[], ["\u00e9"]], ids=["ascii", "with an accent"])
def test_candidates_are_taken_once_in_the_callers_order(tail: list[str]) -> None:
    asked = ["b", "a", "b", "c", "a", *tail, *tail]
    assert distinct_ids(asked, ()) == ["b", "a", "c", *tail]
    assert distinct_ids(asked, ["a", "z"]) == ["b", "c", *tail]


def test_two_spellings_of_one_id_are_one_in_the_first_spelling() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert distinct_ids([decomposed, "x", composed], ()) == [decomposed, "x"]
    assert distinct_ids([composed, "x"], [decomposed]) == ["x"]
