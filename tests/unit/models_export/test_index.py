"""The recall index: catalogue rows by cosine, whatever the length of the vectors."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from models_export.index import INDEX_FILE, MAX_FLAT_ITEMS, build_index, measure_recall, write_index
from service.contract.catalogue import Catalogue


def catalogue(n_items: int = 500, dimensions: int = 32) -> Catalogue:
    """Clustered vectors of very different lengths; every tenth item has none."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, dimensions))
    vectors = centres[random.integers(0, 12, n_items)] + 0.7 * random.normal(size=(n_items, dimensions))
    vectors *= random.uniform(0.2, 1.0, (n_items, 1))
    vectors[::10] = 0
    return Catalogue.build([f"i{i}" for i in range(n_items)], {}, vectors=vectors.astype(np.float32))


@pytest.mark.parametrize("dimensions", [32, 20], ids=["multiple of 16", "not a multiple"])
@pytest.mark.parametrize(("max_flat", "kind"), [(MAX_FLAT_ITEMS, "flat"), (100, "hnsw")])
def test_it_finds_nearly_all_of_the_exact_nearest(dimensions: int, max_flat: int, kind: str) -> None:
    items = catalogue(dimensions=dimensions)
    built = build_index(items, max_flat)
    assert built is not None
    index, report = built
    assert (report.type, report.n_items, report.dimensions) == (kind, 450, dimensions)
    assert report.recall > 0.97
    assert index.ntotal == 450


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
    items = catalogue()
    built = build_index(items)
    assert built is not None
    rows = np.flatnonzero(items.norms > 0)
    assert measure_recall(built[0], items, rows) > 0.97
    shuffled = np.random.default_rng(1).permutation(rows).astype(np.int64)
    faiss.copy_array_to_vector(shuffled, built[0].id_map)
    assert measure_recall(built[0], items, rows) < 0.5


def test_vectors_not_made_unit_length_would_rank_by_length() -> None:
    """Why the index normalises: over the raw codes the longest vectors win."""
    items = catalogue()
    rows = np.flatnonzero(items.norms > 0)
    raw = faiss.IndexIDMap2(faiss.IndexFlatIP(items.dimensions))
    raw.add_with_ids(items.codes[rows].astype(np.float32), rows)
    assert measure_recall(raw, items, rows) < 0.9


def test_a_catalogue_without_vectors_has_no_index() -> None:
    assert build_index(Catalogue.build(["a", "b"], {})) is None
