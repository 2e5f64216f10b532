"""`data check`: each planted fault is found; the alarm for leaked labels rings for those, and not for honest data."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from tests.unit.training.data.shop import (
    SCHEMA,
    START_MS,
    prepare_small,
    random_requests,
    small_items,
)
from training.data import check_requests as check_requests_module
from training.data.check_requests import Check, check_requests
from training.data.dataset import Dataset, Items, PreparedWriter
from training.data.leakage import binned_auc, in_history, stability
from training.data.show_report import check_lines

HOUR_MS = 3_600_000
N_REQUESTS = 400


def checked(folder: Path, leak_auc: float | None = 0.95) -> Check:
    return check_requests(folder, leak_auc, show_progress=False)


def planted(folder: Path, plant: Any, items: Items | None = None) -> Path:
    """A prepared folder whose requests went through `plant(row, clicks) -> row`."""
    dataset = Dataset("planted", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))
    with PreparedWriter(folder, dataset, items or small_items()) as writer:
        for number, split in enumerate(("train", "validation", "test")):
            batch, clicks = random_requests(N_REQUESTS, seed=number, start_ms=START_MS + number * N_REQUESTS * HOUR_MS)
            bounds = zip(batch.candidate_offsets[:-1], batch.candidate_offsets[1:], strict=True)
            rows = [plant(row, clicks[a:b]) for row, (a, b) in zip(batch.to_rows(), bounds, strict=True)]
            writer.write(split, RequestBatch.from_rows(rows), clicks)  # type: ignore[arg-type]
    return folder


def rewrite(path: Path, column: str, change: Any) -> None:
    """Changes one column of a request file behind the writer's back, checksums intact."""
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = change(table.column(column).to_pylist())
    table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, path, write_page_checksum=True)


def test_honest_data_has_no_problems(tmp_path: Path) -> None:
    found = checked(planted(tmp_path / "d", lambda row, _: row))
    assert found.problems == []
    assert found.n_requests == {"train": N_REQUESTS, "validation": N_REQUESTS, "test": N_REQUESTS}
    assert "0 problems" in "\n".join(check_lines(found))


def test_clicks_that_are_chance_are_told_by_nothing(tmp_path: Path) -> None:
    """The clicks of `random_requests` are coin flips: every single field must have an AUC of 0.5 within 3 sigma."""
    found = checked(planted(tmp_path / "d", lambda row, _: row))
    requests, clicks = random_requests(N_REQUESTS, seed=1)
    n_positive, n_negative = clicks.sum(), (clicks == 0).sum()
    sigma = np.sqrt((n_positive + n_negative + 1) / (12 * n_positive * n_negative))
    of_candidates = {
        name: auc for name, auc in found.aucs.items() if name.split(".")[0] not in ("user", "context", "trigger")
    }
    assert len(of_candidates) == 6
    assert all(abs(auc - 0.5) < 3 * sigma for auc in of_candidates.values()), (of_candidates, requests.n_requests)


def copy_into_context(row: dict[str, Any], clicks: np.ndarray) -> dict[str, Any]:
    return row | {"context": {"device": f"clicks:{clicks.any()}"}}


def copy_into_user_number(row: dict[str, Any], clicks: np.ndarray) -> dict[str, Any]:
    return row | {"user": row["user"] | {"age": float(clicks.sum())}}


def copy_into_history(row: dict[str, Any], clicks: np.ndarray) -> dict[str, Any]:
    clicked = [item for item, click in zip(row["candidates"], clicks, strict=True) if click]
    return row | {"behaviours": [{"item": item, "at": row["requested_at"] - 1, "type": "click"} for item in clicked]}


LEAKS = {
    "context.device": copy_into_context,
    "user.age": copy_into_user_number,
    "candidate in the history": copy_into_history,
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_copied_label_rings_the_alarm(tmp_path: Path, name: str) -> None:
    folder = planted(tmp_path / "d", LEAKS[name])
    assert any(problem.startswith(name) for problem in checked(folder).problems)


@pytest.mark.parametrize("name", LEAKS)
def test_saboteur_with_the_alarm_off_the_leak_passes(tmp_path: Path, name: str) -> None:
    folder = planted(tmp_path / "d", LEAKS[name])
    found = checked(folder, leak_auc=None)
    assert found.problems == []
    assert found.aucs[name] > 0.95


def test_a_position_that_tells_the_clicks_rings_the_alarm(tmp_path: Path) -> None:
    dataset = Dataset("sorted", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))
    with PreparedWriter(tmp_path / "d", dataset, small_items()) as writer:
        for number, split in enumerate(("train", "validation")):
            batch, _ = random_requests(100, seed=number, start_ms=START_MS + number * 100 * HOUR_MS)
            first = np.zeros(batch.n_candidates, np.int8)
            first[batch.candidate_offsets[:-1]] = 1
            writer.write(split, batch, first)  # type: ignore[arg-type]
    assert any("position on the page" in problem for problem in checked(tmp_path / "d").problems)


def test_an_item_field_made_from_the_clicks_rings_the_alarm(tmp_path: Path) -> None:
    """A rare flag: plain quantile bins would hide it among the zeros."""
    hot = {f"i{number}" for number in range(2)}
    items = small_items()
    flagged = Items(items.ids, {**items.fields, "price": [float(i in hot) for i in items.ids]}, items.vectors)
    dataset = Dataset("flagged", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))
    with PreparedWriter(tmp_path / "d", dataset, flagged) as writer:
        for number, split in enumerate(("train", "validation")):
            batch, _ = random_requests(200, seed=number, start_ms=START_MS + number * 200 * HOUR_MS)
            clicks = np.array([item in hot for item in batch.candidate], np.int8)
            writer.write(split, batch, clicks)  # type: ignore[arg-type]
    assert any(problem.startswith("candidate.price") for problem in checked(tmp_path / "d").problems)


def test_a_behaviour_that_is_not_before_its_request_is_named(tmp_path: Path) -> None:
    def late(row: dict[str, Any], _: np.ndarray) -> dict[str, Any]:
        if row["request_id"] != "r1-7":
            return row
        return row | {"behaviours": [{"item": "i1", "at": row["requested_at"], "type": "click"}]}

    found = checked(planted(tmp_path / "d", late))
    assert len(found.problems) == 1
    assert "validation/00000.parquet, row 8, column behaviour_at: a behaviour that is not before" in found.problems[0]


def test_repeated_requests_are_found_across_splits(tmp_path: Path) -> None:
    found = checked(
        planted(tmp_path / "d", lambda row, _: row | {"request_id": row["request_id"].replace("r2-5", "r0-5")})
    )
    assert any("carry the request_id of another" in problem for problem in found.problems)


def test_repeated_and_missing_candidates_are_named(tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    path = tmp_path / "d" / "train" / "00000.parquet"
    rewrite(path, "candidate", lambda rows: [*rows[:3], [rows[3][0]] * len(rows[3]), [], *rows[5:]])
    rewrite(path, "clicked", lambda rows: [*rows[:4], [], *rows[5:]])
    problems = "\n".join(checked(tmp_path / "d").problems)
    assert "row 4, column candidate: an item twice" in problems
    assert "row 5, column candidate: no candidates" in problems


def many_broken(folder: Path) -> Check:
    """A column that is broken throughout, in several row groups of several files, and another in one row."""
    dataset = Dataset("broken", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))
    with PreparedWriter(folder, dataset, small_items()) as writer:
        for number, split in enumerate(("train", "validation", "test")):
            writer.write(split, *random_requests(60, seed=number, start_ms=START_MS + number * 60 * HOUR_MS))  # type: ignore[arg-type]
    for split in ("train", "validation", "test"):
        path = folder / split / "00000.parquet"
        rewrite(path, "user.age", lambda ages: [float("nan")] * len(ages))
        pq.write_table(pq.read_table(path), path, row_group_size=15, write_page_checksum=True)
    rewrite(path, "candidate", lambda rows: [[rows[0][0]] * len(rows[0]), *rows[1:]])
    return checked(folder)


def test_a_broken_column_is_told_by_its_first_rows_and_a_number(tmp_path: Path) -> None:
    found = many_broken(tmp_path / "d")
    of_ages = [problem for problem in found.problems if "user.age" in problem]
    assert [f"train/00000.parquet, row {row}, column user.age" in of_ages[row - 1] for row in range(1, 21)] == [
        True
    ] * 20
    assert of_ages[20:] == ["160 more with a number that is NaN or infinite, column user.age"]
    assert [p for p in found.problems if "user.age" not in p] == [
        f"{tmp_path}/d/test/00000.parquet, row 1, column candidate: an item twice among its candidates"
    ]
    assert found.n_problems == 181
    assert "181 problems in" in "\n".join(check_lines(found))


def test_saboteur_without_a_bound_each_row_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_requests_module, "_MOST_TOLD", 10**9)
    assert len(many_broken(tmp_path / "d").problems) == 181


def test_files_that_all_lack_a_column_are_told_once_in_a_while(tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    path = tmp_path / "d" / "train" / "00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["context.device"]), path, write_page_checksum=True)
    for number in range(1, 30):
        shutil.copy(path, path.with_name(f"{number:05d}.parquet"))
    found = checked(tmp_path / "d")
    assert len(found.problems) == 21
    assert found.problems[-1] == "10 more with column context.device missing"
    assert found.n_problems == 30


def with_validation_by(folder: Path, **users: list[str | None]) -> Path:
    """Training and validation at the same times, by the users of `train` and of `validation`, in turns."""
    dataset = Dataset("by user", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))
    with PreparedWriter(folder, dataset, small_items()) as writer:
        for number, split in enumerate(("train", "validation")):
            batch, clicks = random_requests(50, seed=number)
            names = np.resize(np.array(users[split], object), batch.n_requests)
            writer.write(split, replace(batch, user={**batch.user, "user": names}), clicks)  # type: ignore[arg-type]
    return folder


def test_a_validation_of_other_users_may_lie_in_the_time_of_the_training(tmp_path: Path) -> None:
    assert checked(with_validation_by(tmp_path / "d", train=["a", "b"], validation=["c", "d"])).problems == []


@pytest.mark.parametrize("validation", [["c", "b"], ["c", None]], ids=["a user of both", "nobody knows who"])
def test_a_validation_of_the_same_users_may_not(tmp_path: Path, validation: list[str | None]) -> None:
    found = checked(with_validation_by(tmp_path / "d", train=["a", "b", None], validation=validation))
    assert any("split by time" in problem for problem in found.problems)


def test_splits_must_follow_each_other(tmp_path: Path) -> None:
    with PreparedWriter(tmp_path / "d", Dataset("d", SCHEMA, HistoryRules()), small_items()) as writer:
        writer.write("train", *random_requests(40, seed=1))
        writer.write("validation", *random_requests(40, seed=2, start_ms=START_MS + 10 * HOUR_MS))
    assert any("split by time" in problem for problem in checked(tmp_path / "d").problems)


def test_a_damaged_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    path = tmp_path / "d" / "train" / "00000.parquet"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    problems = checked(tmp_path / "d").problems
    assert len(problems) == 1
    assert "00000.parquet, row group 0: damaged" in problems[0]


def test_all_foreign_columns_and_empty_files_are_listed(tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    train, validation = (tmp_path / "d" / split / "00000.parquet" for split in ("train", "validation"))
    table = pq.read_table(train)
    pq.write_table(table.slice(0, 0), validation)
    age = table.schema.get_field_index("user.age")
    table = table.set_column(age, "user.age", pa.array(["old"] * table.num_rows)).drop_columns(["context.device"])
    pq.write_table(table.append_column("user.shoe", pa.array(["42"] * table.num_rows)), train)
    problems = "\n".join(checked(tmp_path / "d").problems)
    assert "column context.device is missing" in problems
    assert "unknown column user.shoe" in problems
    assert "column user.age is string, the schema says double" in problems
    assert "validation/00000.parquet: no requests in it" in problems


def test_unknown_shares_and_shifts_are_reported(tmp_path: Path) -> None:
    def new_users(row: dict[str, Any], _: np.ndarray) -> dict[str, Any]:
        new = {"user": {"user": "new"}, "context": {"device": "toaster"}}
        return row | new if row["request_id"].startswith("r2") else row

    found = checked(planted(tmp_path / "d", new_users))
    assert found.problems == []
    assert found.unknown["train"]["user.user"] == 0
    assert found.unknown["test"]["user.user"] == 1
    assert found.shift["test"]["context.device"] > 1 > 0.25 > found.shift["validation"]["context.device"]
    text = "\n".join(check_lines(found))
    assert "unknown values in test: user.user 100.0%" in text
    assert "context.device 12.30" in text.splitlines()[-1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)), min_size=2, max_size=12))
def test_the_auc_over_bins_is_the_auc_over_rows(bins: list[tuple[int, int, int]]) -> None:
    positives, negatives = np.array([b[0] for b in bins]), np.array([b[1] for b in bins])
    score = np.array([float(b[2]) for b in bins])
    found = binned_auc(score, positives + negatives, positives)
    if positives.sum() == 0 or negatives.sum() == 0:
        assert found == 0.5
        return
    labels = np.concatenate([np.ones(positives.sum()), np.zeros(negatives.sum())])
    rows = np.concatenate([np.repeat(score, positives), np.repeat(score, negatives)])
    assert found == pytest.approx(roc_auc_score(labels, rows))


def test_in_history_looks_at_the_own_history_alone() -> None:
    rows = [
        {"request_id": "a", "requested_at": 9, "user": {"user": "u"}, "trigger": "t", "candidates": ["x", "y"]}
        | {"behaviours": [{"item": "y", "at": 1, "type": "click"}]},
        {"request_id": "b", "requested_at": 9, "user": {"user": "u"}, "trigger": "t", "candidates": ["y", "z"]},
    ]
    assert in_history(RequestBatch.from_rows(rows)).tolist() == [False, True, False, False]


def test_stability_of_equal_shares_is_zero() -> None:
    assert stability(np.array([10, 20, 30]), np.array([100, 200, 300])) == pytest.approx(0, abs=1e-12)
    assert stability(np.array([10, 20, 30]), np.array([30, 20, 10])) > 0.5
