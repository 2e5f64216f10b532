"""The FAISS index from which the service recalls candidates near a trigger.

`models_export.export` builds it over the vectors of the catalogue and puts it at `catalogue/recall.faiss` of the
bundle; `service.retriever` searches it. It stores unit vectors as int8, so its inner products rank by cosine; they are
approximate, and whoever needs a similarity takes the exact one from `Catalogue.similarity`.

A query is an item's int8 codes as float32. It must be whole numbers in [-128, 127]: where the width is a multiple of
16, FAISS truncates queries to bytes, and a unit vector becomes zero. Its length does not matter to the order.

Never here: related behaviours (the encoder compares those exactly), choosing candidates (the retriever does).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from service.contract.catalogue import Catalogue

INDEX_FILE = "recall.faiss"
# Flat search of 20,000 x 128 int8 vectors takes about half a millisecond; a graph above it costs seconds to build.
MAX_FLAT_ITEMS = 20_000
RECALL_AT = 100
N_RECALL_QUERIES = 200

_LINKS = 32
_EF_CONSTRUCTION = 80
_EF_SEARCH = 200


@dataclass(frozen=True)
class IndexReport:
    """What the manifest says about the index. `recall` is the share of the exact nearest `RECALL_AT` that it finds."""

    type: Literal["flat", "hnsw"]
    n_items: int
    dimensions: int
    recall_at: int
    recall: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)


def build_index(catalogue: Catalogue, max_flat_items: int = MAX_FLAT_ITEMS) -> tuple[Any, IndexReport] | None:
    """Index all items of `catalogue` that have a vector, under their catalogue rows; None if none has.

    Up to `max_flat_items` items the search is exhaustive (exact but for the rounding to int8), above it HNSW.
    """
    rows = np.flatnonzero(catalogue.norms > 0).astype(np.int64)
    if not len(rows):
        return None
    vectors = _stored(_units(catalogue, rows))
    flat = len(rows) <= max_flat_items
    inner = _flat(vectors.shape[1]) if flat else _hnsw(vectors.shape[1])
    inner.train(vectors)
    index = faiss.IndexIDMap2(inner)
    index.add_with_ids(vectors, rows)
    recall = measure_recall(index, catalogue, rows)
    return index, IndexReport("flat" if flat else "hnsw", len(rows), vectors.shape[1], RECALL_AT, recall)


def write_index(index: Any, folder: Path) -> None:
    """Write `recall.faiss` into the catalogue's folder of a bundle."""
    faiss.write_index(index, str(folder / INDEX_FILE))


def measure_recall(index: Any, catalogue: Catalogue, rows: Int64[np.ndarray, " M"]) -> float:
    """Share of the exact nearest neighbours by cosine that the index returns, over a fixed sample of queries."""
    queries = np.random.default_rng(0).choice(rows, min(N_RECALL_QUERIES, len(rows)), replace=False)
    k = min(RECALL_AT, len(rows))
    _, found = index.search(catalogue.codes[queries].astype(np.float32), k)
    shares = [_share_as_near(catalogue, rows, int(query), hits) for query, hits in zip(queries, found, strict=True)]
    return float(np.mean(shares))


def _share_as_near(
    catalogue: Catalogue, rows: Int64[np.ndarray, " M"], query: int, hits: Int64[np.ndarray, " k"]
) -> float:
    """Hits at least as similar as the k-th nearest: items with equal vectors are as good as each other."""
    exact = catalogue.similarity(np.array([query]), rows)
    at_least = np.partition(exact, len(exact) - len(hits))[len(exact) - len(hits)]
    hits = hits[hits >= 0]
    return float(np.sum(catalogue.similarity(np.array([query]), hits) >= at_least)) / min(RECALL_AT, len(rows))


def _units(catalogue: Catalogue, rows: Int64[np.ndarray, " M"]) -> Float32[np.ndarray, "M D"]:
    """Unit vectors of the items, from their int8 codes."""
    units: np.ndarray = catalogue.codes[rows].astype(np.float32) / catalogue.norms[rows, None]
    return units


def _stored(units: Float32[np.ndarray, "M D"]) -> Float32[np.ndarray, "M D"]:
    """Whole numbers in [-127, 127], one scale for all: the int8 storage keeps them as they are."""
    stored: np.ndarray = np.rint(units * (127.0 / np.abs(units).max()))
    return stored


def _flat(dimensions: int) -> Any:
    quantiser = faiss.ScalarQuantizer.QT_8bit_direct_signed
    return faiss.IndexScalarQuantizer(dimensions, quantiser, faiss.METRIC_INNER_PRODUCT)


def _hnsw(dimensions: int) -> Any:
    quantiser = faiss.ScalarQuantizer.QT_8bit_direct_signed
    index = faiss.IndexHNSWSQ(dimensions, quantiser, _LINKS, faiss.METRIC_INNER_PRODUCT)  # type: ignore[arg-type]
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.hnsw.efSearch = _EF_SEARCH
    return index
