"""fit_encoder: from the training days alone, counted right, with the range and threshold that the data asks for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from tests.unit.training.data.shop import SCHEMA, START_MS, prepare_small, random_requests, small_items
from training.data.dataset import Dataset, Items, PreparedWriter, open_catalogue
from training.data.errors import DataError
from training.data.fit_encoder import NumberSample, fit_encoder, number_bins

PAD, OOV = 0, 1
RANGED = Dataset("d", SCHEMA, HistoryRules(), similarity_range=(0.0, 1.0))


def batch_of(trigger: str, candidates: list[str], behaviours: list[str] = [], user: str | None = "u0") -> RequestBatch:  # noqa: B006
    row = {"request_id": "r", "requested_at": START_MS, "user": {"user": user}, "trigger": trigger}
    past = [{"item": item, "at": START_MS - 1, "type": "click"} for item in behaviours]
    return RequestBatch.from_rows([row | {"candidates": candidates, "behaviours": past}])


def write(folder: Path, dataset: Dataset, items: Items, *batches: RequestBatch) -> Path:
    with PreparedWriter(folder, dataset, items) as writer:
        for batch in batches:
            writer.write("train", batch, np.zeros(batch.n_candidates, np.int8))
    return folder


def item_ids(folder: Path, *items: str) -> list[int]:
    encoder = fit_encoder(folder)
    return encoder.encode(batch_of("i0", list(items))).candidate_fields[:, 0].tolist()


def test_items_of_the_training_days_are_known_the_others_are_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", RANGED, small_items(), batch_of("i1", ["i2"], ["i3"]))
    found = item_ids(folder, "i1", "i2", "i3", "i4", "never heard of")
    assert all(number > OOV for number in found[:3])
    assert found[3:] == [OOV, OOV]


def test_later_days_change_nothing(tmp_path: Path) -> None:
    prepare_small(tmp_path / "a")
    with PreparedWriter(tmp_path / "b", Dataset("small", SCHEMA, HistoryRules()), small_items()) as writer:
        writer.write("train", *random_requests(60, seed=1))
        writer.write("validation", *random_requests(50, seed=9))
    assert fit_encoder(tmp_path / "a").fingerprint == fit_encoder(tmp_path / "b").fingerprint


def test_values_seen_less_often_than_min_count_are_unknown(tmp_path: Path) -> None:
    schema = FeatureSchema(
        user=(Field("user", "user", "id", min_count=2),),
        context=(),
        item=(Field("item", "item", "id", min_count=2), Field("leaf", "item", "category", min_count=3)),
    )
    requests = [
        batch_of("i1", ["i2", "i5"], user="often"),
        batch_of("i1", ["i2"], user="often"),
        batch_of("i1", [], user="once"),
    ]
    folder = write(tmp_path / "d", replace(RANGED, schema=schema), small_items(), *requests)
    encoder = fit_encoder(folder)
    encoded = encoder.encode(RequestBatch.concat([*requests, batch_of("i9", ["i1", "i2", "i5"])]))
    assert encoded.candidate_fields[-3:, 0].tolist() == [2, 3, OOV], "i1 three times, i2 twice, i5 once"
    assert encoded.candidate_fields[-3:, 1].tolist() == [2, OOV, 2], "leaf1 holds i1 and i5: four times; leaf2 twice"
    assert encoded.user_fields[:3, 0].tolist() == [2, 2, OOV]


def test_missing_is_pad_and_unknown_is_oov(tmp_path: Path) -> None:
    prepare_small(tmp_path / "d")
    row = random_requests(1)[0].to_rows()[0]
    stranger = {**row, "user": {"user": "stranger", "age": None}, "context": {"device": "toaster"}, "trigger": "i0"}
    encoded = fit_encoder(tmp_path / "d").encode(RequestBatch.from_rows([stranger]))
    assert encoded.user_fields[0].tolist() == [OOV, PAD]
    assert encoded.context_fields[0].tolist() == [OOV]
    assert encoded.trigger_fields[0, 2] == PAD, "i0 has no price"


def test_the_range_is_the_data_sets_or_the_quantiles_of_the_training_days(tmp_path: Path) -> None:
    prepare_small(tmp_path / "fixed", similarity_range=(0.0, 1.0))
    scale = fit_encoder(tmp_path / "fixed").scale
    assert (scale.low, scale.high, scale.n_levels) == (0.0, 1.0, 6)
    prepare_small(tmp_path / "fitted", n_levels=4)
    scale = fit_encoder(tmp_path / "fitted").scale
    catalogue, (batch, _) = open_catalogue(tmp_path / "fitted"), random_requests(60, seed=1)
    triggers = catalogue.rows(batch.trigger.tolist())[batch.candidate_request]
    similarity = catalogue.similarity(triggers, catalogue.rows(batch.candidate.tolist()))
    low, high = np.quantile(similarity[similarity >= -1], (0.01, 0.99), method="inverted_cdf")
    assert (scale.low, scale.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_the_related_threshold_is_the_lower_edge_of_the_second_highest_level(tmp_path: Path) -> None:
    prepare_small(tmp_path / "a", similarity_range=(0.0, 1.0))
    assert fit_encoder(tmp_path / "a").rules.related_threshold == pytest.approx(4 / 6)
    prepare_small(tmp_path / "b", related_threshold=0.3)
    assert fit_encoder(tmp_path / "b").rules.related_threshold == 0.3


def test_items_without_vectors_still_make_an_encoder(tmp_path: Path) -> None:
    items = Items(["a", "b"], {"leaf": ["x", "y"], "price": [None, None]})
    folder = write(tmp_path / "d", replace(RANGED, similarity_range=None), items, batch_of("a", ["b"]))
    encoded = fit_encoder(folder).encode(batch_of("a", ["b"]))
    assert encoded.candidate_similarity.tolist() == [-2.0]
    assert encoded.candidate_fields[0].tolist() == [3, 3, PAD]


def test_vectors_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    items = small_items()
    alike = Items(items.ids, items.fields, np.ones((len(items.ids), 8), np.float32))
    folder = write(tmp_path / "d", replace(RANGED, similarity_range=None), alike, random_requests(20)[0])
    with pytest.raises(DataError, match="narrow"):
        fit_encoder(folder)


def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    items = small_items()
    texts = Items(items.ids, {**items.fields, "price": ["cheap"] * len(items.ids)}, items.vectors)
    folder = write(tmp_path / "d", RANGED, texts, random_requests(5)[0])
    with pytest.raises(DataError, match="price"):
        fit_encoder(folder)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32)), st.integers(2, 20))
def test_bins_are_in_order_within_their_number_and_none_is_empty(values: np.ndarray, n_bins: int) -> None:
    bins = number_bins(values, n_bins)
    assert (np.diff(bins.edges) > 0).all()
    assert len(bins.edges) < n_bins
    used = np.bincount(bins.encode(values.tolist()), minlength=bins.n_ids)[2:]
    assert (used > 0).all()


def test_bins_of_even_values_hold_equal_shares() -> None:
    bins = number_bins(np.arange(1600, dtype=np.float64), 16)
    assert np.bincount(bins.encode(list(range(1600))))[2:].tolist() == [100] * 16


def test_a_count_that_is_mostly_zero_keeps_its_large_values_apart() -> None:
    """Plain quantiles put everything into one bin here."""
    values = np.array([0.0] * 980 + [1.0] * 15 + [50.0] * 5)
    assert len(np.unique(np.quantile(values, np.arange(1, 16) / 16))) == 1
    assert number_bins(values, 16).encode([0, 1, 50]).tolist() == [2, 3, 4]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_the_number_sample_is_even_whatever_the_pieces(lengths: list[int], size: int) -> None:
    sample, stream = NumberSample(size), np.arange(sum(lengths), dtype=np.float64)
    for piece in np.split(stream, np.cumsum(lengths)):
        sample.add(piece)
    assert len(sample.values) <= size
    whole = NumberSample(size)
    whole.add(stream)
    assert np.array_equal(sample.values, whole.values)
    steps = np.diff(sample.values)
    assert len(set(steps.tolist())) <= 1
    assert len(stream) == 0 or len(sample.values) > 0
    if len(stream) > size:
        assert len(sample.values) * 2 + 2 >= size
