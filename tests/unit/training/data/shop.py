"""A very small shop for the tests of the data doors: random requests, prepared folders, and logs as a shop has them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.dataset import Dataset, Items, PreparedWriter

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
NOW_MS = START_MS + 100 * DAY_MS
SCHEMA = FeatureSchema(
    user=(Field("user", "user", "id"), Field("age", "user", "number", n_bins=4)),
    context=(Field("device", "context", "category"),),
    item=(Field("item", "item", "id"), Field("leaf", "item", "category"), Field("price", "item", "number", n_bins=4)),
    leaf_category="leaf",
)
N_ITEMS = 30


def small_items(n_items: int = N_ITEMS, seed: int = 0) -> Items:
    """Items i0.. with vectors, but the last one has none."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n_items, 8)).astype(np.float32)
    vectors[-1] = 0
    fields: dict[str, Sequence[str | float | None]] = {
        "leaf": [f"leaf{number % 4}" for number in range(n_items)],
        "price": [None if number == 0 else float(number) for number in range(n_items)],
    }
    return Items([f"i{number}" for number in range(n_items)], fields, vectors)


def random_requests(n_requests: int, seed: int = 0, start_ms: int = START_MS) -> tuple[RequestBatch, np.ndarray]:
    """Requests of 2 to 8 candidates and 0 to 5 behaviours, one an hour; some are anonymous, some fields are missing."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(n_requests):
        at = start_ms + number * 3_600_000
        rows.append(
            {
                "request_id": f"r{seed}-{number}",
                "requested_at": at,
                "user": {
                    "user": None if number % 7 == 3 else f"u{number % 5}",
                    "age": None if number % 4 else float(number),
                },
                "context": {} if number % 6 == 5 else {"device": ["phone", "desktop"][number % 2]},
                "trigger": f"i{random.integers(N_ITEMS)}",
                "behaviours": [
                    {
                        "item": f"i{random.integers(N_ITEMS)}",
                        "at": at - int(random.integers(1, DAY_MS)),
                        "type": "click",
                    }
                    for _ in range(random.integers(0, 6))
                ],
                "candidates": [f"i{item}" for item in random.choice(N_ITEMS, random.integers(2, 9), replace=False)],
            }
        )
    batch = RequestBatch.from_rows(rows)
    return batch, (random.random(batch.n_candidates) < 0.3).astype(np.int8)


def prepare_small(out: Path, n_train: int = 60, **changes: Any) -> Dataset:
    """A prepared folder with a training, a validation and a test split of random requests, one after the other."""
    dataset = Dataset("small", SCHEMA, HistoryRules(), **changes)
    with PreparedWriter(out, dataset, small_items()) as writer:
        writer.write("train", *random_requests(n_train, seed=1))
        writer.write("validation", *random_requests(20, seed=2, start_ms=START_MS + n_train * 3_600_000))
        writer.write("test", *random_requests(20, seed=3, start_ms=START_MS + (n_train + 30) * 3_600_000))
    return writer.dataset


def assert_same_requests(left: RequestBatch, right: RequestBatch) -> None:
    assert left.to_rows() == right.to_rows()


@dataclass
class ShopLogs:
    """Tables as a shop would hand them over, written into a folder; tests change rows before `write`."""

    impressions: list[dict[str, Any]] = field(default_factory=list)
    behaviours: list[dict[str, Any]] | None = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    users: list[dict[str, Any]] | None = field(default_factory=list)
    mapping: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(cls, n_requests: int = 60, seed: int = 0, n_users: int = 6) -> "ShopLogs":
        """One request an hour; each shows four items, a fifth of them is clicked."""
        random = np.random.default_rng(seed)
        logs = cls(mapping=json.loads(json.dumps(MAPPING)))
        for number in range(N_ITEMS):
            vector = None if number == N_ITEMS - 1 else random.normal(size=6).tolist()
            price = None if number == 0 else float(number)
            logs.items.append({"item_id": f"i{number}", "leaf": f"leaf{number % 4}", "eur": price, "vec": vector})
        for number in range(n_users):
            assert logs.users is not None
            logs.users.append({"user_id": f"u{number}", "age_band": ["young", "old"][number % 2]})
        for number in range(n_requests):
            at = START_MS + number * 3_600_000
            user = None if number % 10 == 9 else f"u{random.integers(n_users)}"
            trigger = f"i{random.integers(N_ITEMS)}"
            for slot, item in enumerate(random.choice(N_ITEMS, 4, replace=False)):
                row = {"request_id": f"r{number}", "user_id": user, "shown_at": at, "trigger_item": trigger}
                row |= {"item_id": f"i{item}", "is_click": int(random.random() < 0.2), "slot": slot, "device": "phone"}
                logs.impressions.append(row)
        for _ in range(200):
            assert logs.behaviours is not None
            event = {"user_id": f"u{random.integers(n_users)}", "item_id": f"i{random.integers(N_ITEMS)}"}
            at = START_MS + int(random.integers(-20 * DAY_MS, n_requests * 3_600_000))
            logs.behaviours.append(event | {"at": at, "kind": str(random.choice(["click", "cart"]))})
        return logs

    def write(self, folder: Path) -> Path:
        """Writes parquet and CSV files and the mapping; returns the mapping file."""
        folder.mkdir(parents=True, exist_ok=True)
        half = len(self.impressions) // 2
        write_parquet(folder / "impressions-0.parquet", self.impressions[:half])
        write_parquet(folder / "impressions-1.parquet", self.impressions[half:])
        write_parquet(folder / "items.parquet", self.items)
        for name, rows in (("behaviours", self.behaviours), ("users", self.users)):
            if rows is None:
                self.mapping.pop(name, None)
            else:
                write_csv(folder / f"{name}.csv", rows)
        (folder / "mapping.json").write_text(json.dumps(self.mapping))
        return folder / "mapping.json"


MAPPING: dict[str, Any] = {
    "name": "test shop",
    "impressions": {
        "files": "impressions-*.parquet",
        "request": "request_id",
        "user": "user_id",
        "time": "shown_at",
        "trigger": "trigger_item",
        "item": "item_id",
        "clicked": "is_click",
        "position": "slot",
        "context": {"device": "category"},
    },
    "behaviours": {"files": "behaviours.csv", "user": "user_id", "item": "item_id", "time": "at", "type": "kind"},
    "items": {
        "files": "items.parquet",
        "item": "item_id",
        "vector": "vec",
        "fields": {"leaf": "category", "price": {"kind": "number", "column": "eur"}},
        "leaf_category": "leaf",
    },
    "users": {"files": "users.csv", "user": "user_id", "fields": {"age_band": "category"}},
}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
