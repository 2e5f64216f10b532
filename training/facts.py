"""What the training split says about its items: impressions, clicks, who clicked, and the items' fields.

Made once a run by `training.train`, for models whose registry line asks for it (POSO, MWUF).

One pass over the request files. In memory: two numbers an item and two an observed click, never the impressions. Only
the training days are read: counts of later days would tell a model what it is tested on.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from training.data.dataset import split_files
from training.data.request_files import read_requests
from training.models.spec import TrainingFacts

UNKNOWN = 1  # the contract's id for an item that the vocabulary does not hold
_CHUNK = 16_384  # items encoded at once


def training_facts(data_folder: Path, encoder: Encoder) -> TrainingFacts:
    """Counts the training split of a prepared folder by the encoder's ids. Raises DataError when it cannot be read."""
    n_items = encoder.sizes.item[0]
    impressions, clicks = np.zeros(n_items, np.int64), np.zeros(n_items, np.int64)
    users, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for path in split_files(data_folder, "train"):
        for batch, clicked in read_requests(path):
            inputs = encoder.encode(without_behaviours(batch))
            shown, was_clicked = inputs.candidate_fields[:, 0], clicked > 0
            impressions += np.bincount(shown, minlength=n_items)
            clicks += np.bincount(shown[was_clicked], minlength=n_items)
            users.append(inputs.user_fields[inputs.candidate_request[was_clicked], 0])
            items.append(shown[was_clicked])
    return TrainingFacts(impressions, clicks, np.concatenate(users), np.concatenate(items), _item_fields(encoder))


def _item_fields(encoder: Encoder) -> Int64[np.ndarray, "M I"]:
    """The fields of every item that has an id of its own; the encoder is asked as for the candidates of a page."""
    fields = np.zeros((encoder.sizes.item[0], len(encoder.sizes.item)), np.int64)
    page = {"request_id": "items", "requested_at": 0, "user": {"user": None}, "trigger": "", "candidates": []}
    empty = RequestBatch.from_rows([page])
    request = encoder.encode_request(empty)
    for start in range(1, encoder.catalogue.n_items + 1, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, encoder.catalogue.n_items + 1))
        batch = empty.with_candidates(encoder.catalogue.ids(rows))
        found = encoder.encode_candidates(request, batch).candidate_fields
        fields[found[:, 0]] = found
    fields[UNKNOWN] = UNKNOWN  # the items that share this id have nothing else in common
    return fields


def without_behaviours(batch: RequestBatch) -> RequestBatch:
    """Nothing here asks for histories, and encoding them is most of the work."""
    return replace(
        batch,
        behaviour_item=batch.behaviour_item[:0],
        behaviour_at=batch.behaviour_at[:0],
        behaviour_type=batch.behaviour_type[:0],
        behaviour_offsets=np.zeros_like(batch.behaviour_offsets),
    )
