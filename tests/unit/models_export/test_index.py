"""The recall index: catalogue rows by cosine, whatever the length of the vectors."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from models_export.errors import ExportError
from models_export.index import (
    INDEX_FILE,
    IndexReport,
    IndexSizes,
    build_index,
    check_recall,
    exact_nearest,
    measure_recall,
    write_index,
)
from service.contract.catalogue import Catalogue


def catalogue(n_items: int = 500, dimensions: int = 32) -> Catalogue:
    """Clustered vectors of very different lengths; every tenth item has none."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, dimensions))
    vectors = centres[random.integers(0, 12, n_items)] + 0.7 * random.normal(size=(n_items, dimensions))
    vectors *= random.uniform(0.2, 1.0, (n_items, 1))
    vectors[::10] = 0
    return Catalogue.build([f"i{i}" for i in range(n_items)], {}, vectors=vectors.astype(np.float32))


SMALL = {
    "flat": IndexSizes(),
    "hnsw": IndexSizes(flat_up_to=100),
    "ivf": IndexSizes(flat_up_to=100, graph_up_to=100),
}


@pytest.mark.parametrize("dimensions", [32, 20], ids=["multiple of 16", "not a multiple"])
@pytest.mark.parametrize("kind", SMALL)
def test_it_finds_nearly_all_of_the_exact_nearest(dimensions: int, kind: str) -> None:
    items = catalogue(2_000, dimensions)
    built = build_index(items, SMALL[kind])
    assert built is not None
    index, report = built
    assert (report.type, report.n_items, report.dimensions) == (kind, 1_800, dimensions)
    assert (report.recall_at, index.ntotal) == (200, 1_800)
    assert report.recall > 0.97
    assert (report.effort > 0) == (kind != "flat")


def test_the_kind_follows_the_size_of_the_catalogue() -> None:
    sizes = IndexSizes()
    assert [sizes.kind(n) for n in (1, 20_000, 20_001, 200_000, 200_001)] == ["flat", "flat", "hnsw", "hnsw", "ivf"]


@pytest.mark.parametrize("kind", SMALL)
def test_a_mapped_index_finds_what_the_one_in_memory_found(tmp_path: Path, kind: str) -> None:
    items = catalogue()
    built = build_index(items, SMALL[kind])
    assert built is not None
    write_index(built[0], tmp_path)
    mapped = faiss.read_index(str(tmp_path / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
    queries = items.codes[1:30].astype(np.float32)
    np.testing.assert_array_equal(mapped.search(queries, 50)[1], built[0].search(queries, 50)[1])


def test_the_threshold_is_that_of_exact_search() -> None:
    items = catalogue()
    rows = np.flatnonzero(items.norms > 0)
    nearest = exact_nearest(items, rows, 5)
    for query, at_least in zip(nearest.rows, nearest.at_least, strict=True):
        exact = np.sort(items.similarity(np.array([query]), rows))
        assert at_least == pytest.approx(exact[-200], abs=1e-6)


def test_an_index_that_misses_too_much_is_not_exported_unless_that_is_wanted() -> None:
    poor = IndexReport("ivf", 1_000, 32, 200, 0.9)
    with pytest.raises(ExportError, match=r"finds 0\.900 of the nearest 200, need 0\.95"):
        check_recall(poor, is_forced=False)
    check_recall(poor, is_forced=True)
    check_recall(replace(poor, recall=0.95), is_forced=False)


def test_it_answers_catalogue_rows_nearest_first_without_the_vectorless(tmp_path: Path) -> None:
    items = catalogue()
    built = build_index(items)
    assert built is not None
    write_index(built[0], tmp_path)
    index = faiss.read_index(str(tmp_path / INDEX_FILE))
    _, found = index.search(items.codes[7:8].astype(np.float32), 20)
    assert found[0, 0] == 7
    assert (items.norms[found[0]] > 0).all()
    similarity = items.similarity(np.array([7]), found[0])
    assert (np.diff(similarity) < 0.02).all()


def test_recall_notices_an_index_over_other_vectors() -> None:
    """The saboteur: the same items under each other's rows."""
    items = catalogue(4_000)
    built = build_index(items)
    assert built is not None
    rows = np.flatnonzero(items.norms > 0)
    nearest = exact_nearest(items, rows)
    assert measure_recall(built[0], items, nearest) > 0.97
    shuffled = np.random.default_rng(1).permutation(rows).astype(np.int64)
    faiss.copy_array_to_vector(shuffled, built[0].id_map)
    assert measure_recall(built[0], items, nearest) < 0.5


def test_vectors_not_made_unit_length_would_rank_by_length() -> None:
    """Why the index normalises: over the raw codes the longest vectors win."""
    items = catalogue(4_000)
    rows = np.flatnonzero(items.norms > 0)
    raw = faiss.IndexIDMap(faiss.IndexFlatIP(items.dimensions))
    raw.add_with_ids(items.codes[rows].astype(np.float32), rows)
    assert measure_recall(raw, items, exact_nearest(items, rows)) < 0.9


def test_a_catalogue_without_vectors_has_no_index() -> None:
    assert build_index(Catalogue.build(["a", "b"], {})) is None
