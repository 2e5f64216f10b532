"""Facts of the training split, recounted by hand from the raw requests; later days never enter."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from tests.unit.training.data.shop import prepare_small
from training import facts as facts_module
from training.content_start import encoded_ids
from training.data.dataset import SPLITS, split_files
from training.data.fit_encoder import fit_encoder
from training.data.request_files import read_requests
from training.facts import training_facts


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "data"
    prepare_small(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(shop: Path) -> Encoder:
    return fit_encoder(shop)


def user_id(encoder: Encoder, user: str | None) -> int:
    page = {"request_id": "r", "requested_at": 0, "user": {"user": user}, "trigger": "i0", "candidates": []}
    return int(encoder.encode_request(RequestBatch.from_rows([page])).user_fields[0, 0])


def check(shop: Path, encoder: Encoder) -> None:
    shown: Counter[str] = Counter()
    clicked: Counter[tuple[str | None, str]] = Counter()
    for path in sorted((shop / "train").glob("*.parquet")):
        for batch, clicks in read_requests(path):
            at = iter(clicks.tolist())
            for row in batch.to_rows():
                for item in row["candidates"]:  # type: ignore[attr-defined]
                    shown[item] += 1
                    if next(at):
                        clicked[row["user"]["user"], item] += 1  # type: ignore[index]
    found = training_facts(shop, encoder)
    assert len(clicked) > 20
    assert any(user is None for user, _ in clicked)
    for row, item in enumerate(encoder.catalogue.ids(np.arange(1, encoder.catalogue.n_items + 1)), 1):
        place = encoded_ids(encoder, np.array([row]))[0]
        assert place > 1
        assert found.item_impressions[place] == shown[item]
        assert found.item_clicks[place] == sum(n for (_, other), n in clicked.items() if other == item)
    names = {(user, item): (user_id(encoder, user), item) for user, item in clicked}
    places = {item: int(encoded_ids(encoder, encoder.catalogue.rows([item]))[0]) for _, item in clicked}
    pairs = Counter(zip(found.click_user.tolist(), found.click_item.tolist(), strict=True))
    expected: Counter[tuple[int, int]] = Counter()
    for key, n in clicked.items():
        expected[names[key][0], places[key[1]]] += n
    assert pairs == expected


def test_impressions_clicks_and_who_clicked(shop: Path, encoder: Encoder) -> None:
    check(shop, encoder)


def test_later_days_would_be_seen(shop: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        facts_module, "split_files", lambda folder, _: [path for split in SPLITS for path in split_files(folder, split)]
    )
    with pytest.raises(AssertionError):
        check(shop, encoder)


def test_files_and_chunks_add_up(shop: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training_facts(shop, encoder)
    monkeypatch.setattr(facts_module, "read_requests", lambda path: read_requests(path, batch_requests=7))
    pieces = training_facts(shop, encoder)
    for one, other in zip(vars(whole).values(), vars(pieces).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_item_that_the_encoder_does_not_know_counts_as_unknown(shop: Path, tmp_path: Path) -> None:
    """An encoder of fewer training days knows fewer items; none is lost from the sum."""
    prepare_small(tmp_path / "few", n_train=1)
    short = fit_encoder(tmp_path / "few")
    found = training_facts(shop, short)
    assert len(found.item_impressions) == short.sizes.item[0]
    assert found.item_impressions[0] == 0
    assert found.item_impressions[1] > 0
    assert found.item_impressions.sum() == sum(batch.n_candidates for batch, _ in read_requests(shop / "train"))


def test_every_item_with_an_id_has_its_fields(shop: Path, encoder: Encoder) -> None:
    found = training_facts(shop, encoder).item_fields
    names = encoder.catalogue.ids(np.arange(1, encoder.catalogue.n_items + 1))
    page = {"request_id": "r", "requested_at": 0, "user": {"user": None}, "trigger": "i0", "candidates": names}
    expected = encoder.encode(RequestBatch.from_rows([page])).candidate_fields
    assert len(np.unique(expected[:, 0])) == len(names)
    np.testing.assert_array_equal(found[expected[:, 0]], expected)
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == [1, 1, 1]


def test_items_are_encoded_in_chunks(shop: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training_facts(shop, encoder).item_fields
    monkeypatch.setattr(facts_module, "_CHUNK", 7)
    np.testing.assert_array_equal(training_facts(shop, encoder).item_fields, whole)
