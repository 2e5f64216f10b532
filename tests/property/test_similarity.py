"""Similarity is one number: numpy, FAISS and torch agree bit for bit, in any order and any batch shape."""

import faiss
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.contract.catalogue import Catalogue
from service.contract.rules import SimilarityScale

int8 = st.integers(-127, 127)
matrices = st.tuples(st.integers(2, 12), st.sampled_from([1, 3, 64, 384, 1024])).flatmap(
    lambda shape: arrays.arrays(np.int8, shape, elements=int8, fill=int8)
)


def exact(codes: np.ndarray) -> np.ndarray:
    """All inner products in whole numbers."""
    return codes.astype(np.int64) @ codes.astype(np.int64).T


@given(matrices)
def test_products_are_whole_numbers_everywhere(codes: np.ndarray) -> None:
    wide = codes.astype(np.float32)
    order = np.random.default_rng(0).permutation(codes.shape[1])
    by_faiss, places = faiss.knn(wide, wide, len(wide), metric=faiss.METRIC_INNER_PRODUCT)
    torch_wide = torch.from_numpy(wide)
    want = exact(codes)
    assert (wide @ wide.T == want).all()
    assert (wide[:, order] @ wide[:, order].T == want).all()
    assert ((torch_wide @ torch_wide.T).numpy() == want).all()
    assert (np.take_along_axis(want, places, axis=1) == by_faiss).all()


@given(matrices)
def test_faiss_int8_storage_gives_the_same_products(codes: np.ndarray) -> None:
    index = faiss.IndexScalarQuantizer(
        codes.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
    )
    index.add(codes.astype(np.float32))
    found, places = index.search(codes.astype(np.float32), len(codes))
    assert (np.take_along_axis(exact(codes), places, axis=1) == found).all()


@given(matrices)
def test_similarity_of_pairs_is_that_of_one_against_many(codes: np.ndarray) -> None:
    catalogue = Catalogue.build([str(k) for k in range(len(codes))], {}, codes=codes)
    everyone = np.arange(len(codes) + 1)
    pairs = catalogue.similarity(np.repeat(everyone, len(everyone)), np.tile(everyone, len(everyone)))
    alone = np.concatenate([catalogue.similarity(np.array([row]), everyone) for row in everyone])
    assert pairs.tobytes() == alone.tobytes()
    assert (pairs.reshape(len(everyone), -1) == pairs.reshape(len(everyone), -1).T).all()
    assert ((pairs == -2) | ((pairs >= -1) & (pairs <= 1))).all()


@given(arrays.arrays(np.float32, 20, elements=st.floats(-2, 2, width=32)), st.integers(2, 9))
def test_levels_in_numpy_and_torch(similarity: np.ndarray, n_levels: int) -> None:
    scale = SimilarityScale(-0.25, 0.75, n_levels)
    inner = torch.from_numpy(scale.edges[1:-1])
    by_torch = 1 + (torch.from_numpy(similarity)[:, None] >= inner).sum(dim=1)
    by_torch[torch.from_numpy(similarity) == -2] = 0
    assert (scale.level(similarity) == by_torch.numpy()).all()
