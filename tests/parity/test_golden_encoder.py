"""What the encoder makes of a few written-down requests, kept as numbers in `golden_encoder.json`.

A change of these numbers is a change of meaning: bundles and checkpoints made before no longer fit. Bump
CONTRACT_VERSION, say so in the changelog, and write the file anew with DAIAN_TEST_WRITE_GOLDEN=1.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.catalogue import Catalogue
from service.contract.encoder import CONTRACT_VERSION, Encoder, ModelInputs
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import NumberBins, Vocabulary

FILE = Path(__file__).with_name("golden_encoder.json")
NOW = 1_760_000_000_000
MINUTE, DAY = 60_000, 86_400_000

SCHEMA = FeatureSchema(
    user=(Field("user", "user", "id"), Field("orders", "user", "number")),
    context=(Field("device", "context", "category"),),
    item=(Field("item", "item", "id"), Field("leaf", "item", "category"), Field("price", "item", "number")),
    leaf_category="leaf",
)
RULES = HistoryRules(max_length=4, related_max=3, related_threshold=0.5)


def small_encoder(rules: HistoryRules = RULES) -> Encoder:
    ids = ["shirt", "trousers", "lamp", "naïve-Ω", "no-vector"]
    vectors = np.array([[3, 4, 0, 0], [4, 3, 0, 0], [0, 0, 1, 2], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    fields = {"leaf": ["tops", "bottoms", "light", None, "tops"], "price": [19.9, 49.0, None, 5.0, 100.0]}
    catalogue = Catalogue.build(ids, fields, vectors=vectors)
    vocabularies = {
        "user.user": Vocabulary.from_values(["ann", "bob"]),
        "user.orders": NumberBins(np.array([1.0, 5.0], np.float32)),
        "context.device": Vocabulary.from_values(["phone", "desktop"]),
        "item.item": Vocabulary.from_values(["lamp", "shirt", "naïve-Ω", "trousers"]),
        "item.leaf": Vocabulary.from_values(["tops", "light", "bottoms"]),
        "item.price": NumberBins(np.array([10.0, 30.0, 60.0], np.float32)),
    }
    return Encoder(SCHEMA, vocabularies, rules, SimilarityScale(0.0, 1.0, 4), catalogue)


def click(item: str, ago_ms: int, kind: str = "click") -> dict[str, Any]:
    return {"item": item, "at": NOW - ago_ms, "type": kind}


ROWS: list[dict[str, Any]] = [
    {"request_id": "usual", "requested_at": NOW, "user": {"user": "ann", "orders": 3}, "context": {"device": "phone"},
     "trigger": "shirt", "candidates": ["lamp", "trousers", "nobody-knows", "no-vector", "shirt"],
     "behaviours": [click("lamp", 3 * DAY), click("trousers", 2 * MINUTE), click("shirt", MINUTE),
                    click("shirt", 5 * DAY, "purchase"), click("naïve-Ω", 40 * MINUTE, "cart")]},
    {"request_id": "too much, too old, in the future, of no known type", "requested_at": NOW, "user": {"user": "bob"},
     "context": {"device": "toaster"}, "trigger": "trousers", "candidates": ["naïve-Ω"],
     "behaviours": [click("lamp", i * DAY) for i in range(1, 8)]
     + [click("shirt", 15 * DAY), click("shirt", -MINUTE), click("shirt", 0), click("lamp", MINUTE, "dislike")]},
    {"request_id": "cold", "requested_at": NOW, "user": {"user": "stranger", "orders": None}, "context": {},
     "trigger": "nobody-knows", "candidates": ["lamp"], "behaviours": [click("gone", DAY)]},
    {"request_id": "nobody", "requested_at": NOW, "user": {"user": None}, "context": {}, "trigger": "no-vector",
     "candidates": [], "behaviours": []},
]  # fmt: skip


def encoded(encoder: Encoder) -> dict[str, Any]:
    inputs: ModelInputs = encoder.encode(RequestBatch.from_rows(ROWS))
    arrays = {name: {"dtype": str(a.dtype), "values": a.tolist()} for name, a in inputs._asdict().items()}
    return {"contract_version": CONTRACT_VERSION, "fingerprint": encoder.fingerprint, "arrays": arrays}


def test_the_encoder_gives_the_committed_numbers() -> None:
    found = json.loads(json.dumps(encoded(small_encoder())))
    if os.environ.get("DAIAN_TEST_WRITE_GOLDEN") == "1":
        FILE.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(FILE.read_text(encoding="utf-8"))
    for name, array in expected["arrays"].items():
        assert found["arrays"][name] == array, name
    assert found == expected


@pytest.mark.parametrize(
    "rules",
    [replace(RULES, max_length=3), replace(RULES, opening_window_s=0), replace(RULES, related_threshold=0.9)],
    ids=["shorter history", "keeps the opening click", "fewer related"],
)
def test_another_rule_gives_other_numbers_and_another_fingerprint(rules: HistoryRules) -> None:
    """The saboteur: the committed numbers notice each of these changes."""
    expected, found = json.loads(FILE.read_text(encoding="utf-8")), encoded(small_encoder(rules))
    assert found["arrays"] != expected["arrays"]
    assert found["fingerprint"] != expected["fingerprint"]
