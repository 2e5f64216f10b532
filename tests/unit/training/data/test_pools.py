"""Kept pools: the same batches bit for bit as those read and encoded at each use, within their bound of memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.contract.encoder import Encoder
from tests.unit.training.data.shop import SCHEMA, prepare_small, random_requests
from training.data import pools as pools_module
from training.data.batches import Batch, Batches, BatchPlan
from training.data.fit_encoder import fit_encoder
from training.data.pools import FreshPools, KeptPools
from training.data.request_files import write_requests

PLAN = BatchPlan(batch_candidates=40, pool_requests=32, seed=3)
PLANS = [PLAN, replace(PLAN, requests="clicked"), replace(PLAN, shuffle=False), replace(PLAN, batch_candidates=1)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder") / "data"
    prepare_small(folder)
    return fit_encoder(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of 60 requests in row groups of 8."""
    folder = tmp_path_factory.mktemp("files")
    for seed in (1, 2):
        with write_requests(folder / f"{seed}.parquet", SCHEMA, row_group_requests=8) as writer:
            writer.write(*random_requests(60, seed=seed))
    return sorted(folder.glob("*.parquet"))


def same(left: Batch, right: Batch) -> bool:
    tensors = zip((*left.inputs, *left[1:4]), (*right.inputs, *right[1:4]), strict=True)
    return (
        left.after == right.after
        and np.array_equal(left.user_group, right.user_group)
        and np.array_equal(left.request_group, right.request_group)
        and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in tensors)
    )


@pytest.mark.parametrize("plan", PLANS)
def test_kept_pools_give_the_same_batches_bit_for_bit(encoder: Encoder, files: list[Path], plan: BatchPlan) -> None:
    kept = KeptPools(encoder)
    for _ in range(2):  # encoded now, then found in memory
        fresh = list(Batches(files, encoder, plan).epoch())
        from_memory = list(Batches(files, encoder, plan, kept).epoch())
        assert len(fresh) == len(from_memory) > 3
        assert all(same(*pair) for pair in zip(fresh, from_memory, strict=True))


def test_without_trimming_to_the_longest_they_would_differ(
    encoder: Encoder, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = pools_module.Ragged.padded
    monkeypatch.setattr(
        pools_module.Ragged,
        "padded",
        lambda self, indices: tuple(np.concatenate([a, a[:, -1:]], axis=1) for a in padded(self, indices)),
    )
    pairs = zip(
        Batches(files, encoder, PLAN).epoch(), Batches(files, encoder, PLAN, KeptPools(encoder)).epoch(), strict=True
    )
    assert not all(same(*pair) for pair in pairs)


def test_every_group_is_encoded_once(encoder: Encoder, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = pools_module.encode_labelled
    monkeypatch.setattr(pools_module, "encode_labelled", lambda *args: (encoded.append(1), encode(*args))[1])
    kept = KeptPools(encoder)
    for _ in range(3):
        list(Batches(files, encoder, PLAN, kept).epoch())
    assert len(encoded) == 16  # two files of 60 requests in groups of 8


def test_what_does_not_fit_is_encoded_at_each_use_and_never_kept(encoder: Encoder, files: list[Path]) -> None:
    whole = KeptPools(encoder)
    list(Batches(files, encoder, PLAN, whole).epoch())
    bounded = KeptPools(encoder, max_bytes=whole.n_bytes // 2)
    for _ in range(2):
        pairs = zip(Batches(files, encoder, PLAN).epoch(), Batches(files, encoder, PLAN, bounded).epoch(), strict=True)
        assert all(same(*pair) for pair in pairs)
        assert 0 < bounded.n_bytes <= bounded.max_bytes


def test_a_source_of_another_encoder_is_refused(encoder: Encoder, files: list[Path]) -> None:
    other = Encoder(encoder.schema, encoder._vocabularies, encoder.rules, encoder.scale, encoder.catalogue)
    with pytest.raises(ValueError, match="another encoder"):
        Batches(files, encoder, PLAN, FreshPools(other))
