"""What is known of a split whatever ranks it: each candidate's item, level and leaf category; and of the training days:
which items were shown, which users were seen, what they clicked on.

Called by `training.evaluate` and whoever measures many runs on one split: read once, used for all of them. Everything
comes from raw requests and the catalogue. Never here: a model's scores (`training.scores`), any number of the report
(`training.measures`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int8, Int64

from service.contract.catalogue import Catalogue, TextColumn
from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale
from service.contract.schema import FeatureSchema
from training.data.dataset import open_catalogue, open_dataset
from training.data.labels import group_codes
from training.data.request_files import read_requests

DIVERSITY_DAYS = 7  # DAIAN section 5.2(5): the last week of the training data
NO_LEAF = 0  # the code of an item without a leaf category, which unknown items are too
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Items:
    """The catalogue as the measures see it: leaf category codes by row (all 0 without such a field), and levels."""

    catalogue: Catalogue
    scale: SimilarityScale
    leaf: Int64[np.ndarray, " M1"]

    @classmethod
    def open(cls, data_folder: Path, scale: SimilarityScale) -> "Items":
        """`scale`: the levels of the encoder whose model is measured. Raises DataError for no prepared folder."""
        catalogue = open_catalogue(data_folder)
        return cls(catalogue, scale, leaf_codes(catalogue, open_dataset(data_folder).schema))


def leaf_codes(catalogue: Catalogue, schema: FeatureSchema) -> Int64[np.ndarray, " M1"]:
    """The leaf category of every catalogue row as a code, 0 where there is none."""
    column = catalogue.columns.get(schema.leaf_category) if schema.leaf_category else None
    if not isinstance(column, TextColumn):
        return np.zeros(catalogue.n_items + 1, dtype=np.int64)
    return np.asarray(column.codes, dtype=np.int64)


@dataclass(frozen=True)
class Candidates:
    """The candidates of a split in the order of `Scored.in_order`: catalogue rows, leaf codes, levels (0 = no vector).

    `trigger_leaf` is that of the request's trigger, repeated.
    """

    request: Int64[np.ndarray, " N"]
    item: Int64[np.ndarray, " N"]
    leaf: Int64[np.ndarray, " N"]
    trigger_leaf: Int64[np.ndarray, " N"]
    level: Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class TrainingDays:
    """Counts by catalogue row and by user code; users ascending.

    `diversity`: leaf categories other than the trigger's among a request's clicks, the most of any request of the
    user's in the last week; -1 where no request tells. `level_clicks`: the user's clicks in every level.
    """

    shown: Int64[np.ndarray, " M1"]
    clicked: Int64[np.ndarray, " M1"]
    users: Int64[np.ndarray, " U"]
    diversity: Int64[np.ndarray, " U"]
    level_clicks: Int64[np.ndarray, "U S"]

    def place(self, users: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Where each user stands in `users`; -1 for one that the training days do not know."""
        if not len(self.users):
            return np.full(len(users), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        places: Int64[np.ndarray, " N"] = np.where(self.users[found] == users, found, -1)
        return places


def read_candidates(folder: Path, items: Items) -> Candidates:
    """The candidates of the request files in a folder. Raises DataError when there are none."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for batch, _ in read_requests(folder):
        trigger, row, level = _rows_and_levels(batch, items)
        _, codes = group_codes(batch)
        owner = batch.candidate_request
        found = (codes[owner], row, items.leaf[row], items.leaf[trigger][owner], level)
        for column, part in zip(columns, found, strict=True):
            column.append(part)
    joined = [np.concatenate(column) for column in columns]
    order = np.argsort(joined[0], kind="stable")
    return Candidates(*(column[order] for column in joined))


def read_training_days(data_folder: Path, items: Items) -> TrainingDays:
    """One pass over the training split. In memory: a few numbers an item, a few a request."""
    n_rows, n_levels = items.catalogue.n_items + 1, items.scale.n_levels
    shown, clicked = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
    requests: list[np.ndarray] = []
    last = 0
    for batch, clicks in read_requests(data_folder / "train"):
        trigger, row, level = _rows_and_levels(batch, items)
        shown += np.bincount(row, minlength=n_rows)
        clicked += np.bincount(row[clicks > 0], minlength=n_rows)
        user, _ = group_codes(batch)
        diversity = clicked_leaves(batch.candidate_request, items.leaf[row], items.leaf[trigger], clicks)
        by_level = _clicks_by_level(batch, clicks, level, n_levels)
        requests.append(np.column_stack([user, batch.requested_at, diversity, by_level]))
        last = max(last, int(batch.requested_at.max()))
    return _by_user(np.concatenate(requests), last - DIVERSITY_DAYS * _DAY_MS, shown, clicked)


def clicked_leaves(
    owner: Int64[np.ndarray, " N"],
    leaf: Int64[np.ndarray, " N"],
    trigger_leaf: Int64[np.ndarray, " R"],
    clicks: Int8[np.ndarray, " N"],
) -> Int64[np.ndarray, " R"]:
    """How many leaf categories other than the trigger's each request's clicks have (DAIAN section 5.2(5)).

    -1 for a request that does not tell: no click on an item with a category, or a trigger without one.
    """
    told = (clicks > 0) & (leaf != NO_LEAF) & (trigger_leaf[owner] != NO_LEAF)
    found = np.where(np.bincount(owner[told], minlength=len(trigger_leaf)) > 0, 0, -1)
    other = told & (leaf != trigger_leaf[owner])
    pairs = np.unique(np.column_stack([owner[other], leaf[other]]), axis=0)
    counted: Int64[np.ndarray, " R"] = found + np.bincount(pairs[:, 0], minlength=len(trigger_leaf))
    return counted


def _rows_and_levels(
    batch: RequestBatch, items: Items
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Catalogue rows of triggers and of candidates, and the candidates' levels, as the encoder has them."""
    trigger, row = items.catalogue.rows(batch.trigger.tolist()), items.catalogue.rows(batch.candidate.tolist())
    similarity: Float32[np.ndarray, " N"] = items.catalogue.similarity(trigger[batch.candidate_request], row)
    return trigger, row, items.scale.level(similarity)


def _clicks_by_level(
    batch: RequestBatch, clicks: Int8[np.ndarray, " N"], level: Int64[np.ndarray, " N"], n_levels: int
) -> Int64[np.ndarray, "R S"]:
    counted = (clicks > 0) & (level > 0)
    cell = batch.candidate_request[counted] * n_levels + level[counted] - 1
    return np.bincount(cell, minlength=batch.n_requests * n_levels).reshape(batch.n_requests, n_levels)


def _by_user(
    requests: Int64[np.ndarray, "R C"], since: int, shown: Int64[np.ndarray, " M1"], clicked: Int64[np.ndarray, " M1"]
) -> TrainingDays:
    """`requests`: user, time, diversity, clicks by level."""
    requests = requests[np.argsort(requests[:, 0], kind="stable")]
    users, starts = np.unique(requests[:, 0], return_index=True)
    recent = np.where(requests[:, 1] > since, requests[:, 2], -1)
    diversity = np.maximum.reduceat(recent, starts)
    return TrainingDays(shown, clicked, users, diversity, np.add.reduceat(requests[:, 3:], starts, axis=0))
