"""The catalogue is encoded once: what is saved beside the encoder is mapped, and never taken for another one's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from service.contract import encoder as module
from service.contract.catalogue import Catalogue
from service.contract.encoder import ITEM_FIELDS, Encoder
from service.contract.errors import SchemaError
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import NumberBins, Vocabulary

NOW = 1_790_000_000_000
IDS = ["a", "b", "c", "d"]
SCHEMA = FeatureSchema(
    user=(Field("user", "user", "id"),),
    context=(),
    item=(Field("item", "item", "id"), Field("kind", "item", "category"), Field("price", "item", "number")),
)
VOCABULARIES = {
    "user.user": Vocabulary.from_values(["u"]),
    "item.item": Vocabulary.from_values(IDS[:3]),
    "item.kind": Vocabulary.from_values(["x", "y"]),
    "item.price": NumberBins(np.array([1, 2], np.float32)),
}
ROW = {
    "request_id": "r", "requested_at": NOW, "user": {"user": "u"}, "context": {}, "trigger": "b",
    "behaviours": [{"item": "c", "at": NOW - 60_000, "type": "click"}], "candidates": [*IDS, "nobody"],
}  # fmt: skip


def catalogue(ids: list[str] = IDS, kinds: tuple[object, ...] = ("x", "y", None, "z"), title: str = "t") -> Catalogue:
    fields = {"kind": list(kinds), "price": [0.5, None, 1.5, 7.0], "title": [title] * len(ids)}
    return Catalogue.build(ids, fields, vectors=np.eye(4, dtype=np.float32) + np.float32(0.5))


def encoder_over(items: Catalogue) -> Encoder:
    return Encoder(SCHEMA, VOCABULARIES, HistoryRules(), SimilarityScale(0.0, 1.0, 4), items)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    encoder_over(catalogue()).save(tmp_path)
    return tmp_path


def assert_same(found: Encoder, expected: Encoder) -> None:
    np.testing.assert_array_equal(found._item_fields, expected._item_fields)
    batch = RequestBatch.from_rows([ROW])
    for one, other in zip(found.encode(batch), expected.encode(batch), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def rewritten(folder: Path, items: np.ndarray) -> None:
    """Another file, and an encoder.json that says so."""
    np.save(folder / ITEM_FIELDS, items)
    description = json.loads((folder / "encoder.json").read_text())
    description["items"]["sha256"] = hashlib.sha256(np.ascontiguousarray(items).data).hexdigest()
    (folder / "encoder.json").write_text(json.dumps(description))


def test_what_was_saved_is_mapped_and_gives_the_same_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoder_over(catalogue())
    monkeypatch.setattr(Encoder, "_encode_catalogue", lambda _: pytest.fail("the catalogue is encoded once more"))
    opened = Encoder.open(folder, catalogue())
    assert isinstance(opened._item_fields.base, np.memmap)
    assert opened._item_fields.dtype == np.int32
    assert opened.fingerprint == expected.fingerprint
    assert_same(opened, expected)


OTHERS = {
    "another order": lambda: catalogue(["b", "a", "c", "d"]),
    "another item": lambda: catalogue(["a", "b", "e", "d"]),
    "another value": lambda: catalogue(kinds=("x", "x", None, "z")),
    "none for a value": lambda: catalogue(kinds=("x", "y", None, None)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_catalogue_is_encoded_anew(folder: Path, other: str) -> None:
    items = OTHERS[other]()
    assert_same(Encoder.open(folder, items), encoder_over(items))


@pytest.mark.parametrize("other", OTHERS)
def test_saboteur_without_the_digest_the_saved_ones_would_be_taken(
    folder: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = module._items_digest(SCHEMA, catalogue())
    monkeypatch.setattr(module, "_items_digest", lambda *_: digest)
    items = OTHERS[other]()
    with pytest.raises(AssertionError):
        assert_same(Encoder.open(folder, items), encoder_over(items))


def test_a_field_that_is_not_encoded_does_not_matter(folder: Path) -> None:
    opened = Encoder.open(folder, catalogue(title="another"))
    assert isinstance(opened._item_fields.base, np.memmap)


def test_an_encoder_of_before_is_read(folder: Path) -> None:
    description = json.loads((folder / "encoder.json").read_text())
    del description["items"]
    (folder / "encoder.json").write_text(json.dumps(description))
    (folder / ITEM_FIELDS).unlink()
    assert_same(Encoder.open(folder, catalogue()), encoder_over(catalogue()))


def test_an_altered_file_is_named(folder: Path) -> None:
    items = np.load(folder / ITEM_FIELDS)
    items[1, 1] = 1
    np.save(folder / ITEM_FIELDS, items)
    with pytest.raises(SchemaError, match=ITEM_FIELDS):
        Encoder.open(folder, catalogue())


@pytest.mark.parametrize("wrong", [-1, 5], ids=["below", "above"])
def test_an_id_that_no_table_has_is_refused_whoever_vouches_for_it(folder: Path, wrong: int) -> None:
    items = np.load(folder / ITEM_FIELDS)
    assert items.max() < 5
    items[2, 1] = wrong
    rewritten(folder, items)
    with pytest.raises(SchemaError, match=ITEM_FIELDS):
        Encoder.open(folder, catalogue())


@pytest.mark.parametrize(
    "change", [lambda a: a[:-1], lambda a: a.astype(np.int64), lambda a: a[:, :2], np.asfortranarray, lambda a: a[0]]
)
def test_another_shape_or_type_is_refused_or_read_right(folder: Path, change: object) -> None:
    items = change(np.load(folder / ITEM_FIELDS))  # type: ignore[operator]
    rewritten(folder, items)
    if items.shape == (len(IDS) + 1, 3) and items.dtype == np.int32:
        assert_same(Encoder.open(folder, catalogue()), encoder_over(catalogue()))
    else:
        with pytest.raises(SchemaError, match=ITEM_FIELDS):
            Encoder.open(folder, catalogue())


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / ITEM_FIELDS).unlink()
    with pytest.raises(SchemaError, match=ITEM_FIELDS):
        Encoder.open(folder, catalogue())
