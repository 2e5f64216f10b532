"""Catalogue: built, saved, mapped, looked up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.contract.catalogue import Catalogue
from service.contract.errors import SchemaError


def small() -> Catalogue:
    return Catalogue.build(
        ["a", "b", "é"],
        {"category": ["x", None, "x"], "price": [1.5, None, 3]},
        vectors=np.array([[1, 0], [0, 0], [0.6, 0.8]], np.float32),
        popularity=np.array([5, 1, 0], np.float32),
    )


def test_what_is_saved_is_what_is_mapped(tmp_path: Path) -> None:
    small().save(tmp_path)
    there = Catalogue.open(tmp_path)
    assert there.rows(["é", "e\u0301", "nobody", None]).tolist() == [3, 3, 0, 0]
    assert there.ids([1, 3, 0]) == ["a", "é", ""]
    assert there.raw(1) == {"category": "x", "price": 1.5}
    assert there.raw(2) == there.raw(0) == {"category": None, "price": None}
    assert there.popularity.tolist() == [0, 5, 1, 0]
    assert there.has_vector.tolist() == [False, True, False, True]
    assert there.similarity(np.array([1]), np.array([1, 2, 3, 0])).tolist() == [1, -2, pytest.approx(0.6, abs=0.01), -2]


def test_an_empty_catalogue_knows_nothing(tmp_path: Path) -> None:
    Catalogue.build([], {"category": []}).save(tmp_path)
    there = Catalogue.open(tmp_path)
    assert there.rows(["a"]).tolist() == [0]
    assert there.similarity(np.array([0]), np.array([0])).tolist() == [-2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"item_ids": ["a", "a"], "fields": {}}, "one id"),
        ({"item_ids": ["\u00e9", "e\u0301"], "fields": {}}, "one id"),
        ({"item_ids": ["a"], "fields": {"price": [1, 2]}}, "2 values for 1 items"),
        ({"item_ids": ["a", "b"], "fields": {"price": [1, "x"]}}, "item field price"),
        ({"item_ids": ["a"], "fields": {}, "vectors": np.array([[np.nan]], np.float32)}, "NaN"),
        ({"item_ids": ["a"], "fields": {}, "vectors": np.zeros((1, 1025), np.float32)}, "at most 1024"),
        ({"item_ids": ["a"], "fields": {}, "vectors": np.zeros((2, 3), np.float32)}, "2 vectors for 1 items"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        Catalogue.build(**arguments)


def test_a_folder_without_a_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=str(tmp_path)):
        Catalogue.open(tmp_path)


def saved(folder: Path) -> Path:
    ids = ["a", "b\u00e9", "c"]
    Catalogue.build(ids, {"brand": ["x", "y", None], "price": [1.0, 2.0, 3.0]}, np.eye(3, dtype=np.float32)).save(
        folder
    )
    return folder


def spoil(path: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    array = np.load(path) if path.suffix == ".npy" else np.fromfile(path, np.uint8)
    changed = change(array)
    array = array if changed is None else changed
    np.save(path, array) if path.suffix == ".npy" else array.tofile(path)


SPOILT: list[tuple[str, Callable[[np.ndarray], np.ndarray | None]]] = [
    ("ids.positions.npy", lambda array: array.__setitem__(1, 3)),
    ("ids.positions.npy", lambda array: array.__setitem__(1, -1)),
    ("ids.positions.npy", lambda array: array[:-1]),
    ("field.brand.codes.npy", lambda array: array.__setitem__(2, 3)),
    ("field.brand.codes.npy", lambda array: array.__setitem__(2, -1)),
    ("field.price.numbers.npy", lambda array: array[:-1]),
    ("ids.offsets.npy", lambda array: array.__setitem__(2, 99)),
    ("ids.offsets.npy", lambda array: array.__setitem__(-1, 3)),
    ("ids.bin", lambda array: array.__setitem__(0, 0xFF)),
    ("ids.bin", lambda array: array.__setitem__(2, 0x41)),
]


@pytest.mark.parametrize(("name", "change"), SPOILT)
def test_what_would_fail_in_the_middle_of_a_request_is_refused_at_the_start(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray | None]
) -> None:
    Catalogue.open(saved(tmp_path))
    spoil(tmp_path / name, change)
    with pytest.raises(SchemaError, match=str(tmp_path)):
        Catalogue.open(tmp_path)


def test_without_the_look_a_request_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "_check", lambda *_: None)
    spoil(saved(tmp_path) / "ids.bin", SPOILT[-1][1])
    with pytest.raises(UnicodeDecodeError):
        Catalogue.open(tmp_path).ids([2])


def test_ids_come_back_as_they_were_given_from_memory_and_from_disk(tmp_path: Path) -> None:
    given = ["a", "e\u0301", "\ud800", "\U0001f600", "z" * 300]
    built = Catalogue.build(given, {})
    built.save(tmp_path)
    for known in (built, Catalogue.open(tmp_path)):
        assert known.ids(np.array([5, 1, 0, 3, 2, 4])) == [given[4], given[0], "", given[2], given[1], given[3]]
        assert known.ids([]) == []
