"""Request files: what is written is read back, a damaged file is one clear error, an unfinished file is no file."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract.requests import RequestBatch
from tests.unit.training.data.shop import SCHEMA, assert_same_requests, random_requests
from training.data.errors import DataError
from training.data.request_files import (
    file_columns,
    read_requests,
    read_row_group,
    request_files,
    row_group_sizes,
    to_table,
    write_requests,
)

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
BEHAVIOUR = st.fixed_dictionaries(
    {"item": IDS, "at": st.integers(0, 2**40), "type": st.sampled_from(["click", "cart"])}
)
ROWS = st.fixed_dictionaries(
    {
        "request_id": IDS,
        "requested_at": st.integers(0, 2**41),
        "user": st.fixed_dictionaries({"user": st.none() | IDS, "age": st.none() | st.floats(-1e6, 1e6)}),
        "context": st.fixed_dictionaries({"device": st.none() | IDS}),
        "trigger": IDS,
        "behaviours": st.lists(BEHAVIOUR, max_size=4),
        "candidates": st.lists(IDS, max_size=5),
    }
)


def write_one(path: Path, batch: RequestBatch, clicks: np.ndarray, row_group_requests: int = 2048) -> Path:
    with write_requests(path, SCHEMA, row_group_requests) as writer:
        writer.write(batch, clicks)
    return path


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=6), batch_requests=st.integers(1, 4))
def test_what_is_written_is_read_back(tmp_path: Path, rows: list[dict[str, object]], batch_requests: int) -> None:
    batch = RequestBatch.from_rows(rows)
    clicks = (np.arange(batch.n_candidates) % 3 == 0).astype(np.int8)
    path = write_one(tmp_path / "a.parquet", batch, clicks)
    parts = list(read_requests(path, batch_requests))
    assert_same_requests(RequestBatch.concat([part for part, _ in parts]), batch)
    assert np.array_equal(np.concatenate([found for _, found in parts]), clicks)
    assert max(part.n_requests for part, _ in parts) <= batch_requests


def test_row_groups_are_cut_to_size_and_read_alone(tmp_path: Path) -> None:
    batch, clicks = random_requests(25)
    with write_requests(tmp_path / "a.parquet", SCHEMA, row_group_requests=10) as writer:
        for start in range(0, 25, 4):
            part = np.arange(start, min(start + 4, 25))
            mine = np.isin(batch.candidate_request, part)
            writer.write(batch.take(part), clicks[mine])
    assert row_group_sizes(tmp_path / "a.parquet") == [10, 10, 5]
    second, _ = read_row_group(tmp_path / "a.parquet", 1)
    assert_same_requests(second, batch.take(np.arange(10, 20)))


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    for number in (1, 0):
        write_one(tmp_path / f"{number}.parquet", *random_requests(3, seed=number))
    ids = [request for batch, _ in read_requests(tmp_path) for request in batch.request_id]
    assert ids == [f"r{seed}-{number}" for seed in (0, 1) for number in range(3)]
    with pytest.raises(DataError, match="no request files"):
        request_files(tmp_path / "absent")


def test_nan_is_a_missing_number(tmp_path: Path) -> None:
    batch, clicks = random_requests(4)
    batch.user["age"][:] = [1.5, float("nan"), None, 2]
    found, _ = read_row_group(write_one(tmp_path / "a.parquet", batch, clicks), 0)
    assert found.user["age"].tolist() == [1.5, None, None, 2.0]


def test_a_text_where_a_number_belongs_is_refused(tmp_path: Path) -> None:
    batch, clicks = random_requests(4)
    batch.user["age"][:] = "old"
    with pytest.raises(DataError, match=r"user\.age"):
        write_one(tmp_path / "a.parquet", batch, clicks)


@pytest.mark.parametrize("clicks", [np.zeros(1, np.int8), np.full(100, 2, np.int8)])
def test_clicks_must_be_0_or_1_per_candidate(tmp_path: Path, clicks: np.ndarray) -> None:
    batch, _ = random_requests(4)
    with pytest.raises(DataError, match="one 0 or 1 per candidate"):
        write_one(tmp_path / "a.parquet", batch, clicks[: batch.n_candidates])


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    batch, clicks = random_requests(4)

    def fail_half_way() -> None:
        with write_requests(tmp_path / "a.parquet", SCHEMA) as writer:
            writer.write(batch, clicks)
            assert not (tmp_path / "a.parquet").exists(), "not before it is complete"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_all_wrong_columns_are_named_at_once(tmp_path: Path) -> None:
    batch, clicks = random_requests(4)
    table = pq.read_table(write_one(tmp_path / "a.parquet", batch, clicks))
    table = table.drop_columns(["trigger"]).append_column("colour", pa.array(["red"] * 4))
    at = table.schema.get_field_index("requested_at")
    table = table.set_column(at, "requested_at", table.column("requested_at").cast(pa.float64()))
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError) as caught:
        read_row_group(tmp_path / "b.parquet", 0)
    message = str(caught.value)
    assert "b.parquet" in message
    assert "trigger: missing" in message
    assert "requested_at: double" in message
    assert "colour" in message


def test_a_request_without_its_trigger_is_refused(tmp_path: Path) -> None:
    batch, clicks = random_requests(3)
    batch.trigger[1] = None
    with pytest.raises(DataError, match=r"column trigger, row 1"):
        read_row_group(write_one(tmp_path / "a.parquet", batch, clicks), 0)


def test_no_parquet_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        list(read_requests(tmp_path / "a.parquet"))


# ---- one flipped bit ------------------------------------------------------------------------------------------------

N_FLIPS = 300


def flips(path: Path, seed: int = 0) -> list[bytes]:
    """The file with one bit of its pages flipped, in many places; the footer follows the pages."""
    content = path.read_bytes()
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = np.random.default_rng(seed).integers(4 * 8, pages * 8, N_FLIPS)
    return [content[: p // 8] + bytes([content[p // 8] ^ (1 << p % 8)]) + content[p // 8 + 1 :] for p in places]


def test_no_flipped_bit_passes_silently(tmp_path: Path) -> None:
    batch, clicks = random_requests(40)
    path = write_one(tmp_path / "whole.parquet", batch, clicks, row_group_requests=20)
    rows, broken = batch.to_rows(), tmp_path / "broken.parquet"
    messages = []
    for content in flips(path):
        broken.write_bytes(content)
        try:
            parts = list(read_requests(broken))
        except DataError as error:
            messages.append(str(error))
        else:
            assert RequestBatch.concat([part for part, _ in parts]).to_rows() == rows
            assert np.array_equal(np.concatenate([found for _, found in parts]), clicks)
    assert all(re.search(r"broken\.parquet(, row group [01]|: not a)", message) for message in messages)
    assert len(messages) > 0.8 * N_FLIPS


def test_saboteur_without_checksums_flipped_bits_are_read_as_data(tmp_path: Path) -> None:
    batch, clicks = random_requests(40)
    path = write_one(tmp_path / "whole.parquet", batch, clicks, row_group_requests=20)
    table = pq.read_table(path)
    pq.write_table(table, path, compression="NONE", write_page_checksum=False)
    broken, n_silent = tmp_path / "broken.parquet", 0
    for content in flips(path):
        broken.write_bytes(content)
        try:
            n_silent += not pq.read_table(broken).equals(table)
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            continue
    assert n_silent > 0.2 * N_FLIPS, "the checksums would protect from nothing"


def test_saboteur_our_files_carry_checksums_that_a_reader_may_ignore(tmp_path: Path) -> None:
    """The same flips, our own files, verification off: what the reader's switch is for."""
    batch, clicks = random_requests(40)
    path = write_one(tmp_path / "whole.parquet", batch, clicks, row_group_requests=20)
    whole, broken, n_unseen = pq.read_table(path), tmp_path / "broken.parquet", 0
    for content in flips(path):
        broken.write_bytes(content)
        try:
            n_unseen += not pq.read_table(broken, page_checksum_verification=False).equals(whole)
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            continue
    assert n_unseen > 0


def test_a_field_that_a_batch_lacks_is_missing() -> None:
    batch, clicks = random_requests(3)
    slim = RequestBatch.from_rows([{**row, "context": {}} for row in batch.to_rows()])
    assert to_table(slim, clicks, file_columns(SCHEMA)).column("context.device").null_count == 3
