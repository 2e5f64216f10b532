"""`data prepare logs`: histories are right to the millisecond, and every kind of bad table is one clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contract.requests import RequestBatch
from service.contract.rules import SPARE
from tests.unit.training.data.shop import DAY_MS, NOW_MS, START_MS, ShopLogs, write_parquet
from training.data import log_join
from training.data.dataset import SPLITS, Dataset, open_catalogue, open_dataset
from training.data.errors import DataError
from training.data.fit_encoder import fit_encoder
from training.data.mapping import EXAMPLE, read_mapping
from training.data.prepare_logs import prepare_logs
from training.data.request_files import read_requests

WINDOW_MS = 14 * DAY_MS


def prepare(logs: ShopLogs, folder: Path, **options: Any) -> Dataset:
    mapping = logs.write(folder / "logs")
    return prepare_logs(mapping, folder / "data", now_ms=NOW_MS, show_progress=False, **options)


def requests_of(folder: Path) -> dict[str, dict[str, Any]]:
    """All prepared requests as rows, by id, with their clicks and their split."""
    rows: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        for batch, clicks in read_requests(folder / "data" / split):
            for r, row in enumerate(batch.to_rows()):
                mine = slice(batch.candidate_offsets[r], batch.candidate_offsets[r + 1])
                rows[str(row["request_id"])] = {**row, "clicked": clicks[mine].tolist(), "split": split}
    return rows


def naive(logs: ShopLogs) -> dict[str, dict[str, Any]]:
    """The same join by plain loops over the tables."""
    ages = {user["user_id"]: user["age_band"] for user in logs.users or []}
    events = logs.behaviours
    if events is None:
        clicked = [row for row in logs.impressions if row["is_click"] and row["user_id"]]
        events = [{**row, "at": row["shown_at"], "kind": "click"} for row in clicked]
    rows: dict[str, dict[str, Any]] = {}
    for shown in sorted(logs.impressions, key=lambda row: row["slot"]):
        at, user = shown["shown_at"], shown["user_id"]
        row = rows.setdefault(shown["request_id"], {"candidates": [], "clicked": []})
        row["candidates"].append(shown["item_id"])
        row["clicked"].append(int(shown["is_click"]))
        past = {
            (e["at"], e["item_id"], e["kind"])
            for e in events
            if e["user_id"] == user and at - WINDOW_MS <= e["at"] < at
        }
        row |= {"requested_at": at, "trigger": shown["trigger_item"], "behaviours": past if user else set()}
        row["user"] = {"user": user} | ({"age_band": ages[user]} if user in ages else {})
        row["context"] = {"device": shown["device"]}
    return rows


def assert_joined(folder: Path, logs: ShopLogs) -> None:
    found, wanted = requests_of(folder), naive(logs)
    assert found.keys() == wanted.keys()
    for request, row in wanted.items():
        past = [(b["at"], b["item"], b["type"]) for b in found[request]["behaviours"]]
        assert past == sorted(past, key=lambda event: event[0]), "oldest first"
        assert set(past) == row["behaviours"]
        for name in ("requested_at", "trigger", "user", "context", "candidates", "clicked"):
            assert found[request][name] == row[name], name


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 2_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_join_is_what_plain_loops_make(tmp_path: Path, seed: int, bucket_bytes: int) -> None:
    logs = ShopLogs.random(seed=seed)
    prepare(logs, tmp_path, bucket_bytes=bucket_bytes)
    assert_joined(tmp_path, logs)


def test_without_behaviours_and_users_the_clicks_are_the_behaviours(tmp_path: Path) -> None:
    logs = ShopLogs.random(n_requests=120)
    logs.behaviours, logs.users = None, None
    prepare(logs, tmp_path)
    assert_joined(tmp_path, logs)
    assert any(row["behaviours"] for row in requests_of(tmp_path).values())


def test_an_event_at_the_requests_own_millisecond_is_not_before_it(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    first = logs.impressions[0]
    logs.behaviours = [
        {"user_id": first["user_id"], "item_id": f"i{n}", "at": first["shown_at"] + shift, "kind": "click"}
        for n, shift in enumerate((-WINDOW_MS - 1, -WINDOW_MS, -1, 0, 1))
    ]
    prepare(logs, tmp_path)
    assert [b["item"] for b in requests_of(tmp_path)[first["request_id"]]["behaviours"]] == ["i1", "i2"]


def test_saboteur_a_join_that_lets_the_own_millisecond_in_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = log_join._spans
    monkeypatch.setattr(log_join, "_spans", lambda past, users, at, mapping: spans(past, users, at + 1, mapping))
    logs = ShopLogs.random()
    logs.behaviours = None  # every click is at its own request's time
    prepare(logs, tmp_path)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        assert_joined(tmp_path, logs)


def test_the_newest_behaviours_are_kept_when_there_are_too_many(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    logs.mapping["history"] = {"related_searched": 3, "max_length": 2}
    kept = 3 + SPARE
    prepare(logs, tmp_path)
    wanted = naive(logs)
    for request, row in requests_of(tmp_path).items():
        times = sorted(at for at, _, _ in wanted[request]["behaviours"])
        assert [b["at"] for b in row["behaviours"]] == times[-kept:]
    assert open_dataset(tmp_path / "data").rules.max_length == 2


def test_the_split_is_by_time(tmp_path: Path) -> None:
    dataset = prepare(ShopLogs.random(n_requests=100), tmp_path)
    assert [dataset.report[split]["requests"] for split in SPLITS] == [80, 10, 10]
    assert dataset.windows["train"][1] < dataset.windows["validation"][0]
    assert dataset.windows["validation"][1] < dataset.windows["test"][0]


def test_no_share_for_the_test_is_no_test(tmp_path: Path) -> None:
    logs = ShopLogs.random(n_requests=100)
    logs.mapping["split"] = {"validation_share": 0.2, "test_share": 0}
    dataset = prepare(logs, tmp_path)
    assert [dataset.report[split]["requests"] for split in ("train", "validation")] == [80, 20]
    assert set(dataset.windows) == {"train", "validation"}


def test_no_share_for_the_validation_is_no_validation(tmp_path: Path) -> None:
    logs = ShopLogs.random(n_requests=100)
    logs.mapping["split"] = {"validation_share": 0, "test_share": 0.2}
    dataset = prepare(logs, tmp_path)
    assert set(dataset.windows) == {"train", "test"}


def test_the_split_by_named_times(tmp_path: Path) -> None:
    logs = ShopLogs.random(n_requests=72)
    logs.mapping["split"] = {"validation_from": "2024-10-05", "test_from": "2024-10-06T00:00:00+00:00"}
    dataset = prepare(logs, tmp_path)
    assert [dataset.report[split]["requests"] for split in SPLITS] == [24, 24, 24]
    logs.mapping["split"] = {"validation_from": "2030-01-01", "test_from": "2030-01-02"}
    with pytest.raises(DataError, match="leaves no training or no test"):
        prepare(logs, tmp_path, overwrite=True)


def test_items_vectors_and_fields_reach_the_catalogue_and_training(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    dataset = prepare(logs, tmp_path)
    catalogue = open_catalogue(tmp_path / "data")
    row = int(catalogue.rows(["i5"])[0])
    assert catalogue.raw(row) == {"leaf": "leaf1", "price": 5.0}
    vectors = np.array([item["vec"] for item in logs.items[:-1]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = catalogue.rows([item["item_id"] for item in logs.items])
    assert np.allclose(catalogue.similarity(rows[:1], rows[:-1]), unit @ unit[0], atol=0.02)
    assert catalogue.similarity(rows[:1], rows[-1:]).tolist() == [-2.0]
    assert dataset.schema.leaf_category == "leaf"
    encoder = fit_encoder(tmp_path / "data")
    for batch, _ in read_requests(tmp_path / "data" / "train"):
        assert np.isfinite(encoder.encode(batch).candidate_similarity).all()


def test_texts_are_encoded_on_the_way(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    for item in logs.items:
        item["title"] = f"{item['leaf']} number {item['item_id']}"
    del logs.mapping["items"]["vector"]
    logs.mapping["items"]["text"] = ["title"]
    prepare(logs, tmp_path, encoder="hashed-ngrams")
    catalogue = open_catalogue(tmp_path / "data")
    assert catalogue.has_vector[1:].all()
    near, far = catalogue.rows(["i4"]), catalogue.rows(["i5"])
    start = catalogue.rows(["i0"])
    assert catalogue.similarity(start, near) > catalogue.similarity(start, far), "i0 and i4 are of one leaf"
    logs.mapping["items"] |= {"vectors": "../data.vectors"}
    prepare(logs, tmp_path, overwrite=True)
    assert np.array_equal(open_catalogue(tmp_path / "data").codes, catalogue.codes)


def test_times_in_other_forms_are_the_same_times(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    wanted = prepare(logs, tmp_path / "ms")
    iso = ShopLogs.random()
    iso.mapping["time_unit"] = "iso"
    for row in (*iso.impressions, *(iso.behaviours or [])):
        name = "shown_at" if "shown_at" in row else "at"
        row[name] = str(np.datetime64(row[name], "ms")) + "Z"
    assert prepare(iso, tmp_path / "iso").report == wanted.report
    seconds = ShopLogs.random()
    seconds.mapping["time_unit"] = "s"
    for row in (*seconds.impressions, *(seconds.behaviours or [])):
        name = "shown_at" if "shown_at" in row else "at"
        row[name] = row[name] / 1000
    assert prepare(seconds, tmp_path / "s").report == wanted.report
    assert requests_of(tmp_path / "s") == requests_of(tmp_path / "iso") == requests_of(tmp_path / "ms")


def test_whole_number_ids_are_texts(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    for row in logs.impressions:
        row["item_id"], row["trigger_item"] = int(row["item_id"][1:]), int(row["trigger_item"][1:])
    for row in (*logs.items, *(logs.behaviours or [])):
        row["item_id"] = int(row["item_id"][1:])
    report = prepare(logs, tmp_path).report["train"]
    assert report["not_in_catalogue"] == {"trigger": 0.0, "candidate": 0.0, "behaviour": 0.0}


def test_repeated_behaviours_count_once(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    assert logs.behaviours is not None
    logs.behaviours += logs.behaviours[:7]
    assert prepare(logs, tmp_path).report["repeated_behaviours"] == 7
    assert_joined(tmp_path, logs)


def test_the_report_says_what_the_tables_held(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    report = prepare(logs, tmp_path).report
    assert sum(report[split]["candidates"] for split in SPLITS) == len(logs.impressions)
    assert sum(report[split]["clicks"] for split in SPLITS) == sum(row["is_click"] for row in logs.impressions)
    assert report["columns"]["missing"] == {"items.price": pytest.approx(1 / 30, abs=1e-5)}
    assert report["columns"]["constant"] == ["impressions.device"]
    assert sum(report["behaviour_types"].values()) == len(logs.behaviours or [])


# ---- bad tables -----------------------------------------------------------------------------------------------------

Spoil = Callable[[ShopLogs], None]


def set_cell(table: str, row: int, column: str, value: object) -> Spoil:
    def spoil(logs: ShopLogs) -> None:
        getattr(logs, table)[row][column] = value

    return spoil


def same_item_twice(logs: ShopLogs) -> None:
    logs.impressions[6]["item_id"] = logs.impressions[5]["item_id"]


def same_user_twice(logs: ShopLogs) -> None:
    assert logs.users is not None
    logs.users[3]["user_id"] = "u1"


def one_request_of_two_users(logs: ShopLogs) -> None:
    for row in logs.impressions[:4]:
        row["user_id"] = "u1"
    for row in logs.impressions[4:8]:
        row |= {"user_id": "u2", "request_id": "r0", "shown_at": START_MS}


BAD: dict[str, tuple[Spoil, str]] = {
    "future": (
        set_cell("impressions", 3, "shown_at", NOW_MS + DAY_MS),
        r"impressions-0.parquet, row 4, column shown_at: .*future",
    ),
    "seconds as ms": (
        set_cell("behaviours", 7, "at", START_MS // 1000),
        r"behaviours.csv, row 8, column at: .*before the year 2000",
    ),
    "no time": (set_cell("behaviours", 7, "at", None), r"behaviours.csv, row 8, column at: no value"),
    "not a time": (
        set_cell("behaviours", 2, "at", "noon"),
        r"behaviours.csv, row 3, column at: 'noon' is not a time in ms",
    ),
    "no trigger": (
        set_cell("impressions", 130, "trigger_item", None),
        r"impressions-1.parquet, row 11, column trigger_item: no value",
    ),
    "no request": (
        set_cell("impressions", 0, "request_id", None),
        r"impressions-0.parquet, row 1, column request_id: no value",
    ),
    "click 2": (
        set_cell("impressions", 9, "is_click", 2),
        r"impressions-0.parquet, row 10, column is_click: 2 is neither",
    ),
    "item twice": (same_item_twice, r"impressions-0.parquet, row 7, column item_id: 'i\d+' stands twice"),
    "two triggers": (
        set_cell("impressions", 5, "trigger_item", "i29"),
        r"row \d, column trigger_item: .* is not that of",
    ),
    "reused ids": (
        set_cell("impressions", 4, "request_id", "r0"),
        r"column (request_id|trigger_item|user_id): .*(apart|is not that of)",
    ),
    "two users": (one_request_of_two_users, r"more than one user|column user_id: .* is not that of"),
    "known item": (set_cell("items", 8, "item_id", "i3"), r"items.parquet, row 9, column item_id: 'i3' came before"),
    "short vector": (
        set_cell("items", 8, "vec", [1.0, 2.0]),
        r"items.parquet, row 9, column vec: 2 numbers, the others have 6",
    ),
    "nan vector": (set_cell("items", 8, "vec", [float("nan")] * 6), r"items.parquet, row 9, column vec: NaN"),
    "known user": (same_user_twice, r"users.csv, row 4, column user_id: 'u1' came before"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_with_file_row_and_column(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    logs = ShopLogs.random()
    spoil(logs)
    with pytest.raises(DataError, match=message):
        prepare(logs, tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_vector_of_another_width_in_a_later_file_is_named_too(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    logs.mapping["items"]["files"] = ["items.parquet", "more.parquet"]
    more = {"item_id": "new", "leaf": "leaf0", "eur": 1.0, "vec": [1.0, 2.0]}
    (tmp_path / "logs").mkdir()
    write_parquet(tmp_path / "logs" / "more.parquet", [more])
    with pytest.raises(DataError, match=r"more\.parquet, row 1, column vec: 2 numbers, the others have 6"):
        prepare(logs, tmp_path)


def test_two_users_of_one_request_are_found_in_different_buckets_too(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    one_request_of_two_users(logs)
    with pytest.raises(DataError, match="1 request ids belong to more than one user"):
        prepare(logs, tmp_path, bucket_bytes=200)


def test_all_missing_and_retyped_columns_are_one_error(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    mapping = logs.write(tmp_path)
    table = pq.read_table(tmp_path / "impressions-1.parquet").drop_columns(["slot"])
    request = pa.array(np.arange(table.num_rows) + 0.5)
    table = table.set_column(table.schema.get_field_index("request_id"), "request_id", request)
    pq.write_table(table, tmp_path / "impressions-1.parquet")
    (tmp_path / "behaviours.csv").write_text("user_id,item_id,kind\nu1,i1,click\n")
    (tmp_path / "users.csv").write_text("user_id,age_band\n")
    with pytest.raises(DataError) as caught:
        prepare_logs(mapping, tmp_path / "data", now_ms=NOW_MS, show_progress=False)
    message = str(caught.value)
    assert "impressions-1.parquet: column 'slot' (impressions.position) is missing" in message
    assert "impressions-1.parquet: column 'request_id' is double, which cannot be an id" in message
    assert "behaviours.csv: column 'at' (behaviours.time) is missing" in message
    assert "users.csv: empty" in message
    assert "impressions-0" not in message


def test_too_many_missing_values_stop_few_are_counted(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    for item in logs.items[:12]:
        item["eur"] = float("nan")
    with pytest.raises(DataError, match=r"items\.price: 40\.0% of 30 rows"):
        prepare(logs, tmp_path, max_missing=0.3)
    report = prepare(logs, tmp_path, max_missing=0.5).report
    assert report["columns"]["missing"]["items.price"] == 0.4


def test_behaviours_of_which_none_counts_are_refused(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    for row in logs.behaviours or []:
        row["kind"] = "clk"
    with pytest.raises(DataError, match="'clk'"):
        prepare(logs, tmp_path)
    logs.mapping["history"] = {"types": ["clk"]}
    assert prepare(logs, tmp_path).rules.types == ("clk",)


def test_a_torn_csv_line_is_an_error(tmp_path: Path) -> None:
    mapping = ShopLogs.random().write(tmp_path)
    with (tmp_path / "behaviours.csv").open("a") as file:
        file.write("u1,i1\n")
    with pytest.raises(DataError, match=r"behaviours\.csv"):
        prepare_logs(mapping, tmp_path / "data", now_ms=NOW_MS, show_progress=False)


# ---- the mapping file -----------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_mapping_is_one_error(tmp_path: Path) -> None:
    logs = ShopLogs.random()
    mapping = logs.write(tmp_path)
    raw = json.loads(mapping.read_text())
    del raw["impressions"]["trigger"]
    raw["impressions"]["colour"] = "red"
    raw["users"]["files"] = "nobody.csv"
    raw["items"]["fields"]["price"] = "money"
    raw["time_unit"] = "days"
    raw["history"] = {"window": 3}
    raw["split"] = {"test_share": "half"}
    raw["n_levels"] = 2.5
    mapping.write_text(json.dumps(raw))
    with pytest.raises(DataError) as caught:
        read_mapping(mapping)
    for part in ("'trigger'", "'colour'", "nobody.csv", "'price'", "'days'", "history", "split.test_share", "n_levels"):
        assert part in str(caught.value)


def test_the_printed_example_is_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "impressions").mkdir()
    for name in ("impressions/a.parquet", "events.csv", "items.parquet", "users.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "mapping.json").write_text(EXAMPLE)
    mapping = read_mapping(tmp_path / "mapping.json")
    assert [field.name for field in mapping.schema.item] == ["item", "leaf", "brand", "price"]
    assert mapping.texts == ("title",)
    assert mapping.image == "picture"


def test_no_mapping_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--example"):
        read_mapping(tmp_path / "mapping.json")


def test_the_types_of_batches_do_not_change_with_the_batch(tmp_path: Path) -> None:
    """A field without a value in some chunk of users is still a column there."""
    logs = ShopLogs.random()
    for row in logs.impressions[:100]:
        row["device"] = None
    prepare(logs, tmp_path, bucket_bytes=2_000)
    for batch, _ in read_requests(tmp_path / "data" / "train"):
        assert isinstance(batch, RequestBatch)
        assert set(batch.context) == {"device"}
