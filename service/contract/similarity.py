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
    value: Float32[np.ndarray, "*shape"] = np.divide(products, scale, out=np.zeros_like(products), where=scale != 0)
    np.minimum(np.maximum(value, np.float32(-1), out=value), np.float32(1), out=value)
    value[scale == 0] = MISSING
    return value


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


def similarity_to_trigger(
    codes: Int8[np.ndarray, "M D"], norms: Float32[np.ndarray, " M"], trigger: int, behaviours: Int64[np.ndarray, " B"]
) -> Float32[np.ndarray, " B"]:
    """Exact similarity of each of a user's behaviours (rows of the catalogue) to the trigger, by a FAISS search.

    FAISS searches the gathered rows (no index is built: 7 µs for 50 rows).
    """
    similarity = np.full(len(behaviours), MISSING, np.float32)
    if len(behaviours) and norms[trigger] > 0:
        query = codes[trigger : trigger + 1].astype(np.float32)
        rows = codes.take(behaviours, axis=0).astype(np.float32)
        # all of them: FAISS ranks by product, we cut by cosine, and the two orders differ where norms do
        products, positions = faiss.knn(query, rows, len(behaviours), metric=faiss.METRIC_INNER_PRODUCT)
        found = positions[0]
        similarity[found] = cosine(products[0], norms[trigger : trigger + 1], norms.take(behaviours.take(found)))
    return similarity


def most_similar(similarity: Float32[np.ndarray, " B"], threshold: float, at_most: int) -> Int64[np.ndarray, " K"]:
    """Positions of the `at_most` most similar of those at or above the threshold, ascending; of two that are equal the
    later one goes first.
    """
    near = np.flatnonzero(similarity >= np.float32(threshold))
    if len(near) > at_most:
        near = np.sort(near[np.lexsort((-near, -similarity[near]))[:at_most]])
    return near.astype(np.int64, copy=False)


def search_related(
    codes: Int8[np.ndarray, "M D"],
    norms: Float32[np.ndarray, " M"],
    trigger: int,
    behaviours: Int64[np.ndarray, " B"],
    threshold: float,
    at_most: int,
) -> tuple[Int64[np.ndarray, " K"], Float32[np.ndarray, " K"]]:
    """Which of a user's behaviours (rows of the catalogue, oldest first) are related to the trigger.

    Kept: similarity >= threshold, the `at_most` most similar, the newer one first where two are equal. Returns
    positions in `behaviours`, ascending (time order), and their exact similarities. Empty when the trigger has no
    vector.
    """
    if norms[trigger] == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    similarity = similarity_to_trigger(codes, norms, trigger, behaviours)
    found = most_similar(similarity, threshold, at_most)
    return found, similarity[found]
