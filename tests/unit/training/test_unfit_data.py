"""`daian train` and `daian compare` refuse data that would teach a model something wrong, by file and reason.

Told not to look, they begin on each of them: what is refused here is found by nobody else.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service import cli
from tests.unit.training.data.shop import DAY_MS, prepare_small
from training import commands
from training.data.errors import DataError

Rows = list[dict[str, Any]]
Spoil = Callable[[Path], None]
SHARD = "train/00000.parquet"


def rewritten(folder: Path, change: Callable[[Rows], Rows], *shards: str) -> None:
    """Request files with other rows, behind the writer's back and with checksums that fit."""
    for shard in shards:
        table = pq.read_table(folder / shard)
        other = pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema)
        pq.write_table(other, folder / shard, write_page_checksum=True)


def future_behaviour(folder: Path) -> None:
    def late(rows: Rows) -> Rows:
        rows[4] |= {"behaviour_item": ["i1"], "behaviour_at": [rows[4]["requested_at"] + DAY_MS]}
        return [*rows[:4], rows[4] | {"behaviour_type": ["click"]}, *rows[5:]]

    rewritten(folder, late, SHARD)


def label_among_behaviours(folder: Path) -> None:
    """What was clicked on the page stands in the history of the same request."""

    def telling(row: dict[str, Any]) -> dict[str, Any]:
        clicked = [item for item, click in zip(row["candidate"], row["clicked"], strict=True) if click]
        told = {"behaviour_item": clicked, "behaviour_at": [row["requested_at"] - 1] * len(clicked)}
        return row | told | {"behaviour_type": ["click"] * len(clicked)}

    rewritten(folder, lambda rows: [telling(row) for row in rows], SHARD, "validation/00000.parquet")


def number_that_is_none(value: float) -> Spoil:
    return lambda folder: rewritten(folder, lambda rows: [*rows[:2], rows[2] | {"user.age": value}, *rows[3:]], SHARD)


def click_of_two(folder: Path) -> None:
    rewritten(folder, lambda rows: [rows[0] | {"clicked": [2] * len(rows[0]["clicked"])}, *rows[1:]], SHARD)


def repeated_request(folder: Path) -> None:
    rewritten(folder, lambda rows: [rows[0], rows[1] | {"request_id": rows[0]["request_id"]}, *rows[2:]], SHARD)


def missing_column(folder: Path) -> None:
    table = pq.read_table(folder / SHARD).drop_columns(["context.device"])
    pq.write_table(table, folder / SHARD, write_page_checksum=True)


def empty_shard(folder: Path) -> None:
    rewritten(folder, lambda _: [], "validation/00000.parquet")


def flipped(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


TABLE: dict[str, tuple[Spoil, str]] = {
    "a behaviour from the future": (future_behaviour, f"{SHARD}, row 5, column behaviour_at: .* not before its"),
    "the label in the history": (label_among_behaviours, "candidate in the history alone tells the clicks"),
    "NaN": (number_that_is_none(float("nan")), f"{SHARD}, row 3, column user.age: a number that is NaN or infinite"),
    "infinity": (number_that_is_none(float("inf")), f"{SHARD}, row 3, column user.age: a number that is NaN or inf"),
    "a click of 2": (click_of_two, f"{SHARD}, row 1, column clicked: neither 0 nor 1"),
    "a repeated request": (repeated_request, "1 requests carry the request_id of another"),
    "a missing column": (missing_column, f"{SHARD}: column context.device is missing"),
    "an empty shard": (empty_shard, "validation/00000.parquet: no requests in it"),
    "a flipped bit in a shard": (flipped(SHARD), f"{SHARD}.*: damaged"),
    "a flipped bit in a later shard": (flipped("test/00000.parquet"), "test/00000.parquet.*: (damaged|not a readable)"),
    "a flipped bit in a vector": (flipped("catalogue/codes.npy"), "catalogue/codes.npy: damaged or changed"),
}  # fmt: skip
each_fault = pytest.mark.parametrize(("spoil", "said"), TABLE.values(), ids=TABLE)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "data"
    prepare_small(folder, similarity_range=(0.0, 1.0))
    return folder


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data that a training began on; none is trained here."""
    found: list[Path] = []

    def begin(_config: object, data: Path, *_rest: object) -> dict[str, float]:
        found.append(data)
        return {}

    monkeypatch.setattr("training.train.train", begin)
    monkeypatch.setattr(commands, "note_drift", lambda *_: [])  # of a run that is none
    return found


def train(data: Path, out: Path, **given: bool) -> None:
    commands.train("din_demo", data=data, out=out, **given)


@each_fault
def test_e4_e5_e6_e7_it_is_refused_before_the_first_step(
    sound: Path, tmp_path: Path, begun: list[Path], spoil: Spoil, said: str
) -> None:
    data = shutil.copytree(sound, tmp_path / "data")
    spoil(data)
    with pytest.raises(DataError, match=said):
        train(data, tmp_path / "runs" / "one")
    assert begun == []
    assert not (tmp_path / "runs").exists()


@each_fault
def test_saboteur_unasked_training_begins_on_it(
    sound: Path, tmp_path: Path, begun: list[Path], spoil: Spoil, said: str
) -> None:
    del said
    data = shutil.copytree(sound, tmp_path / "data")
    spoil(data)
    train(data, tmp_path / "run", check=False)
    assert begun == [data]


def test_sound_data_are_trained_on(sound: Path, tmp_path: Path, begun: list[Path]) -> None:
    train(sound, tmp_path / "run")
    assert begun == [sound]


def test_all_that_is_wrong_is_said_at_once(
    sound: Path, tmp_path: Path, begun: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(sound, tmp_path / "data")
    for spoil in (number_that_is_none(float("nan")), future_behaviour, click_of_two):
        spoil(data)
    assert cli.run(["train", "din_demo", "--data", str(data), "--out", str(tmp_path / "run")]) == cli.FAILED
    told = capsys.readouterr().err
    assert [word in told for word in ("user.age", "behaviour_at", "clicked", "3 problems", "--no-check")] == [True] * 5
    assert begun == []


def test_a_run_that_goes_on_has_been_through_it(sound: Path, tmp_path: Path, begun: list[Path]) -> None:
    data = shutil.copytree(sound, tmp_path / "data")
    number_that_is_none(float("nan"))(data)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    train(data, tmp_path / "run")
    assert begun == [data]


def test_a_handful_of_clicks_is_no_leak(tmp_path: Path, begun: list[Path]) -> None:
    """Few clicks are told from the rest by almost anything: by chance."""
    prepare_small(tmp_path / "data", similarity_range=(0.0, 1.0))

    def few(rows: Rows) -> Rows:
        for number, row in enumerate(rows):
            row["clicked"] = [int(number < 3 and place == 0) for place in range(len(row["clicked"]))]
        return rows

    rewritten(tmp_path / "data", few, SHARD, "validation/00000.parquet")
    label_among_behaviours(tmp_path / "data")
    train(tmp_path / "data", tmp_path / "run")
    assert begun == [tmp_path / "data"]
    assert np.sum([sum(row["clicked"]) for row in pq.read_table(tmp_path / "data" / SHARD).to_pylist()]) == 3


@pytest.mark.parametrize("check", [True, False])
def test_a_comparison_is_refused_before_its_first_row(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    data, begun = shutil.copytree(sound, tmp_path / "data"), list[object]()
    future_behaviour(data)
    monkeypatch.setattr("training.compare.compare", lambda *given: begun.append(given) or {})
    monkeypatch.setattr("training.report.write_report", lambda *_: [])
    if check:
        with pytest.raises(DataError, match="behaviour_at"):
            commands.compare("small", data=data, out=tmp_path / "table", check=check)
    else:
        commands.compare("small", data=data, out=tmp_path / "table", check=check)
    assert len(begun) == (not check)
    assert not (tmp_path / "table").exists()
