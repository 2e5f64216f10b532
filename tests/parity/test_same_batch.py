"""The trainer's batch and the service's batch of one row are the same numbers, bit for bit.

The trainer encodes many requests at a time out of parquet; the service encodes one, with an encoder that went through a
bundle, in two steps (the candidates come after the request).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.bundle import Bundle
from service.contract.encoder import CANDIDATE_SIDE, REQUEST_SIDE, Encoder, ModelInputs
from service.contract.requests import RequestBatch
from service.contract.rules import MISSING
from training.data.batches import Batches, BatchPlan
from training.data.dataset import split_files
from training.data.request_files import read_requests

N_COMPARED = 60


@pytest.fixture(scope="module")
def trained_on(world: Path, encoder: Encoder) -> list[tuple[ModelInputs, int]]:
    """(inputs of the batch, row) of every validation request as the training loop gets them, short histories first."""
    plan = BatchPlan(batch_candidates=400, shuffle=False)
    found: dict[int, tuple[ModelInputs, int]] = {}
    for batch in Batches(split_files(world, "validation"), encoder, plan).epoch():
        inputs = batch.inputs.map(lambda tensor: tensor.numpy())
        found |= {int(group): (inputs, row) for row, group in enumerate(batch.request_group)}
    return list(found.values())


@pytest.fixture(scope="module")
def rows(world: Path) -> list[dict[str, Any]]:
    batch, _ = next(iter(read_requests(split_files(world, "validation")[0])))
    return batch.to_rows()


def as_served(encoder: Encoder, row: dict[str, Any]) -> ModelInputs:
    batch = RequestBatch.from_rows([row])
    return encoder.encode_candidates(encoder.encode_request(batch), batch)


def request_of(inputs: ModelInputs, r: int) -> ModelInputs:
    """Request `r` of a batch, alone: its rows, without the padding that longer neighbours brought."""
    length = max(1, int((inputs.history_age[r] > 0).sum()))
    related = max(1, int((inputs.related_age[r] > 0).sum()))
    width = {"history": length, "related": related}
    own = inputs.candidate_request == r
    sides = {name: getattr(inputs, name)[r : r + 1] for name in REQUEST_SIDE}
    cut = {name: array[:, : width[name.split("_")[0]]] if name.split("_")[0] in width else array
           for name, array in sides.items()}  # fmt: skip
    candidates = {name: getattr(inputs, name)[own] for name in CANDIDATE_SIDE}
    return ModelInputs(**cut, **candidates)._replace(candidate_request=np.zeros(int(own.sum()), np.int64))


def served_of(
    trained_on: list[tuple[ModelInputs, int]], rows: list[dict[str, Any]], encoder: Encoder
) -> list[tuple[ModelInputs, ModelInputs | None]]:
    """Each trained request with the served one that has the same bytes in every array; None where there is none."""

    def key(inputs: ModelInputs) -> bytes:
        return b"".join(str(array.shape).encode() + array.tobytes() for array in inputs)

    served = {key(inputs): inputs for inputs in (as_served(encoder, row) for row in rows)}
    pairs: list[tuple[ModelInputs, ModelInputs | None]] = []
    for inputs, r in trained_on[-N_COMPARED:]:
        alone = request_of(inputs, r)
        pairs.append((alone, served.get(key(alone))))
    return pairs


def test_every_trained_request_is_served_as_the_same_numbers(
    trained_on: list[tuple[ModelInputs, int]], rows: list[dict[str, Any]], bundle: Bundle
) -> None:
    pairs = served_of(trained_on, rows, bundle.open_encoder())
    assert len(pairs) == N_COMPARED
    assert all(served is not None for _, served in pairs)
    assert any((trained.history_age > 0).any() for trained, _ in pairs)
    assert any((trained.related_age > 0).any() for trained, _ in pairs)
    assert any((trained.candidate_similarity > MISSING).any() for trained, _ in pairs)


def test_a_service_that_cuts_histories_itself_is_found(
    trained_on: list[tuple[ModelInputs, int]], rows: list[dict[str, Any]], bundle: Bundle
) -> None:
    """The saboteur: a store that forgets each user's newest behaviours makes numbers of its own.

    Two of them: the very newest is the click that opened the page, which is not counted on either side.
    """
    forgetful = [{**row, "behaviours": sorted(row["behaviours"], key=lambda b: b["at"])[:-2]} for row in rows]
    pairs = served_of(trained_on, forgetful, bundle.open_encoder())
    assert any(served is None for _, served in pairs)
