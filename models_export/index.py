"""The FAISS index from which the service recalls candidates near a trigger.

`models_export.export` builds it over the vectors of the catalogue and puts it at `catalogue/recall.faiss` of the
bundle; `service.retriever` searches it. It stores unit vectors as int8, so its inner products rank by cosine; they are
approximate, and whoever needs a similarity takes the exact one from `Catalogue.similarity`.

A query is an item's int8 codes as float32. It must be whole numbers in [-128, 127]: where the width is a multiple of
16, FAISS truncates queries to bytes, and a unit vector becomes zero. Its length does not matter to the order.

Never here: related behaviours (the encoder compares those exactly), choosing candidates (the retriever does).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from models_export.errors import ExportError
from service.contract.catalogue import Catalogue
from service.contract.rules import LEAST_RECALL

INDEX_FILE = "recall.faiss"
RECALL_AT = 200
N_RECALL_QUERIES = 200

_QUANTISER = faiss.ScalarQuantizer.QT_8bit_direct_signed
_LINKS = 32
_EF_CONSTRUCTION = 80
_EFFORTS_HNSW = (200, 400, 800, 1_600)  # efSearch
_EFFORTS_IVF = (8, 16, 32, 64, 128, 256)  # nprobe
_ENOUGH = 0.97  # of the sampled queries: those who come are others
_POINTS_A_LIST = 64  # to place the centres of an IVF index by
_BLOCK = 16_384  # rows widened to float32 at a time
Kind = Literal["flat", "hnsw", "ivf"]


@dataclass(frozen=True)
class IndexSizes:
    """From how many items on a kind of index is taken.

    Flat search of 20,000 x 128 int8 vectors takes about half a millisecond. The links of an HNSW graph, 264 bytes an
    item, are each worker's own memory; an IVF index is mapped from disk and shared, and built in a tenth of the time.
    """

    flat_up_to: int = 20_000
    graph_up_to: int = 200_000

    def kind(self, n_items: int) -> Kind:
        """The kind for a catalogue with so many vectors."""
        return "flat" if n_items <= self.flat_up_to else "hnsw" if n_items <= self.graph_up_to else "ivf"


@dataclass(frozen=True)
class IndexReport:
    """What the manifest says about the index. `recall` is the share of the exact nearest `recall_at` that it finds.

    `effort` is efSearch of an HNSW index and nprobe of an IVF index: the least that reached enough.
    """

    type: Kind
    n_items: int
    dimensions: int
    recall_at: int
    recall: float
    effort: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Nearest:
    """Queries, and how similar the `RECALL_AT`-th nearest item of each is: what is as near is as good."""

    rows: Int64[np.ndarray, " Q"]
    at_least: Float32[np.ndarray, " Q"]


def build_index(catalogue: Catalogue, sizes: IndexSizes | None = None) -> tuple[Any, IndexReport] | None:
    """Index all items of `catalogue` that have a vector, under their catalogue rows; None if none has."""
    rows = np.flatnonzero(catalogue.norms > 0).astype(np.int64)
    if not len(rows):
        return None
    kind = (sizes or IndexSizes()).kind(len(rows))
    inner = _empty(kind, catalogue.dimensions, len(rows))
    inner.train(_sampled(catalogue, rows, inner))
    index = faiss.IndexIDMap(inner)
    for part, vectors in _stored(catalogue, rows):
        index.add_with_ids(vectors, part)
    nearest = exact_nearest(catalogue, rows)
    effort, recall = _tuned(index, inner, kind, catalogue, nearest)
    return index, IndexReport(kind, len(rows), catalogue.dimensions, min(RECALL_AT, len(rows)), recall, effort)


def write_index(index: Any, folder: Path) -> None:
    """Write `recall.faiss` into the catalogue's folder of a bundle."""
    faiss.write_index(index, str(folder / INDEX_FILE))


def check_recall(report: IndexReport, is_forced: bool) -> None:
    """Raises ExportError where an index misses too much of what is near, unless that is wanted."""
    if report.recall < LEAST_RECALL and not is_forced:
        raise ExportError(
            f"the {report.type} index over {report.n_items:,} items finds {report.recall:.3f} of the nearest "
            f"{report.recall_at}, need {LEAST_RECALL}: are many vectors equal or nearly zero? To export all the same, "
            "give --allow-low-recall"
        )


def exact_nearest(catalogue: Catalogue, rows: Int64[np.ndarray, " M"], n_queries: int = N_RECALL_QUERIES) -> Nearest:
    """A fixed sample of queries with their exact threshold, by one pass over all vectors."""
    queries = np.random.default_rng(0).choice(rows, min(n_queries, len(rows)), replace=False)
    wide = catalogue.codes[queries].astype(np.float32).T
    k = min(RECALL_AT, len(rows))
    best = np.full((0, len(queries)), -np.inf, np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        products = catalogue.codes[part].astype(np.float32) @ wide
        cosines = np.clip(products / (catalogue.norms[part][:, None] * catalogue.norms[queries]), -1, 1)
        best = np.concatenate([best, cosines])
        best = np.partition(best, len(best) - min(k, len(best)), axis=0)[len(best) - min(k, len(best)) :]
    return Nearest(queries, best.min(axis=0).astype(np.float32))


def measure_recall(index: Any, catalogue: Catalogue, nearest: Nearest) -> float:
    """Share of the exact nearest neighbours by cosine that the index returns; items with equal vectors are alike."""
    k = min(RECALL_AT, index.ntotal)
    _, found = index.search(catalogue.codes[nearest.rows].astype(np.float32), k)
    near = [
        catalogue.similarity(np.array([query]), hits[hits >= 0]) >= at_least
        for query, hits, at_least in zip(nearest.rows, found, nearest.at_least, strict=True)
    ]
    return float(np.mean([one.sum() / k for one in near]))


def _empty(kind: Kind, dimensions: int, n_items: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexScalarQuantizer(dimensions, _QUANTISER, metric)
    if kind == "hnsw":
        graph = faiss.IndexHNSWSQ(dimensions, _QUANTISER, _LINKS, metric)  # type: ignore[arg-type]
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
        return graph
    n_lists = 1 << round(np.log2(4 * n_items**0.5))
    centres = faiss.IndexFlatIP(dimensions)
    lists = faiss.IndexIVFScalarQuantizer(centres, dimensions, n_lists, _QUANTISER, metric, False)
    lists.cp.spherical = True
    return lists


def _tuned(index: Any, inner: Any, kind: Kind, catalogue: Catalogue, nearest: Nearest) -> tuple[int, float]:
    """Sets the least effort of search that finds enough, else the most; gives it with the recall."""
    if kind == "flat":
        return 0, measure_recall(index, catalogue, nearest)
    effort, recall = 0, 0.0
    for effort in _EFFORTS_HNSW if kind == "hnsw" else _EFFORTS_IVF:
        if kind == "hnsw":
            inner.hnsw.efSearch = effort
        else:
            inner.nprobe = effort
        recall = measure_recall(index, catalogue, nearest)
        if recall >= _ENOUGH:
            break
    return effort, recall


def _sampled(catalogue: Catalogue, rows: Int64[np.ndarray, " M"], inner: Any) -> Float32[np.ndarray, "T D"]:
    """What to train on: for an IVF index points around every centre, for others any (int8 needs no training)."""
    n_points = _POINTS_A_LIST * getattr(inner, "nlist", 1)
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(n_points, len(rows)), replace=False))
    return next(vectors for _, vectors in _stored(catalogue, chosen, len(chosen)))


def _stored(
    catalogue: Catalogue, rows: Int64[np.ndarray, " M"], block: int = _BLOCK
) -> Iterator[tuple[Int64[np.ndarray, " b"], Float32[np.ndarray, "b D"]]]:
    """Unit vectors as whole numbers, one scale for all: the int8 storage keeps them as they are.

    A unit vector's largest component is at most 1, so 127 fits; the scale is that of the whole catalogue.
    """
    scale = 127.0 / _largest(catalogue)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        yield part, np.rint(catalogue.codes[part].astype(np.float32) / catalogue.norms[part, None] * scale)


def _largest(catalogue: Catalogue) -> float:
    """The largest component of any unit vector."""
    largest = 0.0
    for start in range(1, len(catalogue.norms), _BLOCK):
        part = slice(start, start + _BLOCK)
        norms = catalogue.norms[part]
        components = np.abs(catalogue.codes[part].astype(np.float32)).max(axis=1, initial=0.0)
        largest = max(largest, float((components[norms > 0] / norms[norms > 0]).max(initial=0.0)))
    return largest
