"""From the batches that our models train on to `rows.Rows`. Called by `benchmarks.peers`; encodes nothing itself.

Everything is taken from `training.data.batches.Batches`, so a peer cannot see an id, a padding or a click that our
models do not see. Similarities, which the peers take as ids alone, become the bins that our models look up.
"""

from collections.abc import Iterable

import numpy as np
import torch

from benchmarks.peers.rows import Heights, Rows
from service.contract.encoder import EncoderSizes
from training.data.batches import Batch
from training.layers.similarity_bins import SimilarityBins


def heights(sizes: EncoderSizes, n_similarity_bins: int) -> Heights:
    """How many ids each field has; a similarity has one bin more, for "nothing to compare"."""
    return Heights(sizes.user, sizes.context, sizes.item, sizes.n_age_bins, n_similarity_bins + 1)


def rows_of(batches: Iterable[Batch], sizes: EncoderSizes, n_similarity_bins: int, n_history: int) -> Rows:
    """All requests of the batches. Raises ValueError when a history is longer than `n_history`."""
    bins = SimilarityBins(sizes.level_edges, n_similarity_bins, width=1)
    parts = [_rows(batch, bins, n_history) for batch in batches]
    before = np.cumsum([0, *(len(part.code) for part in parts)])
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    joined["request"] = np.concatenate([part.request + n for part, n in zip(parts, before, strict=False)])
    return _by_code(Rows(**joined))


def _rows(batch: Batch, bins: SimilarityBins, n_history: int) -> Rows:
    inputs = batch.inputs
    return Rows(
        user=_ids(inputs.user_fields),
        context=_ids(inputs.context_fields),
        trigger=_ids(inputs.trigger_fields),
        history=_to_length(_ids(inputs.history_fields), n_history),
        age=_to_length(_ids(inputs.history_age), n_history),
        code=batch.request_group,
        candidate=_ids(inputs.candidate_fields),
        similarity=_ids(bins.bins(inputs.candidate_similarity)),
        request=_ids(inputs.candidate_request),
        click=batch.clicks.numpy().astype(np.float32),
    )


def _ids(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.int32)


def _to_length(padded: np.ndarray, n_history: int) -> np.ndarray:
    found = padded.shape[1]
    if found > n_history:
        raise ValueError(f"a history has {found} places, the rows have {n_history}; give the rows more")
    after = [(0, 0), (0, n_history - found), *[(0, 0)] * (padded.ndim - 2)]
    return np.pad(padded, after)


def _by_code(rows: Rows) -> Rows:
    """Requests by ascending code, and candidates by request."""
    place = np.argsort(rows.code, kind="stable")
    new_row = np.empty_like(place)
    new_row[place] = np.arange(len(place))
    request = new_row[rows.request].astype(np.int32)
    order = np.argsort(request, kind="stable")
    return Rows(
        **{name: getattr(rows, name)[place] for name in ("user", "context", "trigger", "history", "age", "code")},
        **{name: getattr(rows, name)[order] for name in ("candidate", "similarity", "click")},
        request=request[order],
    )
