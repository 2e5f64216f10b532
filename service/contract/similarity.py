"""Exact similarity of item vectors and the FAISS search for related behaviours.

Used by Catalogue and Encoder; outside the contract only by training.data.labels (an import rule keeps it so).

Vectors are int8 codes with one scale a catalogue. A product of two codes vectors of at most 1,024 dimensions is a whole
number of at most 1024 * 127 * 127 < 2^24, so float32 arithmetic over it is exact in any order: numpy, BLAS, FAISS and
torch give the same number on every machine and in every batch shape. Similarity is that product over the product of
the two norms, clipped to [-1, 1]; an item without a vector has similarity MISSING to everything.
"""

import faiss
import numpy as np
from jaxtyping import Float32, Int8, Int64

from service.contract.errors import SchemaError
from service.contract.rules import MISSING

MAX_DIMENSIONS = 1024
_CHUNK = 16_384  # rows widened to float32 at a time: bounds the memory of a large training batch


def quantise(vectors: Float32[np.ndarray, "M D"]) -> tuple[Int8[np.ndarray, "M D"], float]:
    """Codes and the one scale: code = round(vector / scale), scale = largest magnitude / 127.

    Rows of zeros stay zero: no vector. Raises SchemaError for NaN, infinity or more than 1,024 dimensions.
    """
    if vectors.shape[1] > MAX_DIMENSIONS:
        raise SchemaError(
            f"vectors have {vectors.shape[1]} dimensions, at most {MAX_DIMENSIONS} stay exact: project them"
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise SchemaError(f"vector {row} holds NaN or infinity: leave the vector out instead")
    largest = float(np.abs(vectors).max(initial=0.0))
    scale = largest / 127.0 if largest > 0 else 1.0
    return np.rint(vectors / np.float32(scale)).clip(-127, 127).astype(np.int8), scale


def norms_of(codes: Int8[np.ndarray, "M D"]) -> Float32[np.ndarray, " M"]:
    """Euclidean norm of each row of codes; 0 marks an item without a vector."""
    norms = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _CHUNK):
        part = codes[start : start + _CHUNK].astype(np.float32)
        norms[start : start + _CHUNK] = np.sqrt(np.einsum("md,md->m", part, part))
    return norms


def cosine(
    products: Float32[np.ndarray, "*shape"],
    left_norms: Float32[np.ndarray, "*#shape"],
    right_norms: Float32[np.ndarray, "*#shape"],
) -> Float32[np.ndarray, "*shape"]:
    """Similarity from exact products: product / (norm * norm), clipped; MISSING where a norm is 0."""
    scale = left_norms * right_norms
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(products / scale, np.float32(-1), np.float32(1))
    return np.where(scale == 0, np.float32(MISSING), value).astype(np.float32, copy=False)


def products_of_pairs(
    codes: Int8[np.ndarray, "M D"], left: Int64[np.ndarray, " P"], right: Int64[np.ndarray, " P"]
) -> Float32[np.ndarray, " P"]:
    """Exact inner product of codes[left[p]] and codes[right[p]] for each pair of rows."""
    products = np.empty(len(left), np.float32)
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        a, b = codes[left[part]].astype(np.float32), codes[right[part]].astype(np.float32)
        products[part] = np.einsum("pd,pd->p", a, b)
    return products


def products_with_one(
    codes: Int8[np.ndarray, "M D"], one: int, others: Int64[np.ndarray, " P"]
) -> Float32[np.ndarray, " P"]:
    """The same when one side is a single row: one matrix-vector product, as in a live request."""
    products: Float32[np.ndarray, " P"] = codes.take(others, axis=0).astype(np.float32) @ codes[one].astype(np.float32)
    return products


def search_related(
    codes: Int8[np.ndarray, "M D"],
    norms: Float32[np.ndarray, " M"],
    trigger: int,
    behaviours: Int64[np.ndarray, " B"],
    threshold: float,
    at_most: int,
) -> tuple[Int64[np.ndarray, " K"], Float32[np.ndarray, " K"]]:
    """Which of a user's behaviours (rows of the catalogue, oldest first) are related to the trigger.

    FAISS searches the gathered rows (no index is built: 7 µs for 50 rows). Kept: similarity >= threshold, the
    `at_most` most similar, the newer one first where two are equal. Returns positions in `behaviours`, ascending (time
    order), and their exact similarities. Empty when the trigger has no vector.
    """
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    if len(behaviours) == 0 or norms[trigger] == 0:
        return nothing
    query = codes[trigger : trigger + 1].astype(np.float32)
    rows = codes.take(behaviours, axis=0).astype(np.float32)
    # all of them: FAISS ranks by product, we cut by cosine, and the two orders differ where norms do
    products, positions = faiss.knn(query, rows, len(behaviours), metric=faiss.METRIC_INNER_PRODUCT)
    positions = positions[0]
    similarity = cosine(products[0], norms[trigger : trigger + 1], norms[behaviours[positions]])
    near = similarity >= np.float32(threshold)
    positions, similarity = positions[near], similarity[near]
    best = np.lexsort((-positions, -similarity))[:at_most]
    best = best[np.argsort(positions[best])]
    return positions[best].astype(np.int64), similarity[best]
