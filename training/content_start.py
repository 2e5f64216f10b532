"""Lets the tables of item ids start from the items' content. Called by `training.train` when a recipe asks for it.

Where most pairs of trigger and candidate are rare, an id's vector that starts as noise has to learn from a handful of
clicks what the item is about, though the catalogue knows. The leading principal components of the catalogue's vectors
tell it from the first step; training then moves the rows as any others. Items without a vector, and the rows for
"nothing" and "unknown", keep their small random start: to DAIAN's norm ratio they still look as weak as they are.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from training.layers.embedding import BehaviourTables

FITTED_ROWS = 50_000  # items that the components are fitted on
_CHUNK = 16_384


def start_from_content(model: nn.Module, encoder: Encoder, spread: float) -> None:
    """Writes content into the item id tables of every network of the model: standard deviation `spread` over all rows.

    Raises ValueError when the catalogue has no vectors.
    """
    tables = [module for module in model.modules() if isinstance(module, BehaviourTables)]
    rows = np.flatnonzero(encoder.catalogue.has_vector)
    if not len(rows):
        raise ValueError("content_start: no item of the catalogue has a vector; run `daian embed` or set it to 0")
    ids = encoded_ids(encoder, rows)
    known = ids > 1
    rows, ids = rows[known], ids[known]
    for module in tables:
        content = components(encoder.catalogue, rows, module.id_width)
        with torch.no_grad():
            module.item_ids.weight[ids] = torch.from_numpy(content * (spread / content.std()))


def encoded_ids(encoder: Encoder, rows: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """The id that each item has in the tables: the encoder is asked as for the candidates of a page."""
    items = encoder.catalogue.ids(rows)
    user = {"user": None}
    page = {"request_id": "content", "requested_at": 0, "user": user, "trigger": items[0], "candidates": items}
    ids: Int64[np.ndarray, " M"] = encoder.encode(RequestBatch.from_rows([page])).candidate_fields[:, 0]
    return ids


def components(catalogue: Catalogue, rows: Int64[np.ndarray, " M"], n: int) -> Float32[np.ndarray, "M n"]:
    """The `n` leading principal components of the unit vectors of some items; zeros beyond the vectors' dimensions."""
    sample = rows[:: max(1, len(rows) // FITTED_ROWS)]
    vectors = _unit(catalogue, sample)
    mean = vectors.mean(axis=0)
    covariance = (vectors - mean).T @ (vectors - mean)
    axes = np.linalg.eigh(covariance.astype(np.float64))[1][:, ::-1][:, :n].astype(np.float32)
    found = np.zeros((len(rows), n), np.float32)
    for start in range(0, len(rows), _CHUNK):
        found[start : start + _CHUNK, : axes.shape[1]] = (_unit(catalogue, rows[start : start + _CHUNK]) - mean) @ axes
    return found


def _unit(catalogue: Catalogue, rows: Int64[np.ndarray, " M"]) -> Float32[np.ndarray, "M D"]:
    vectors: Float32[np.ndarray, "M D"] = catalogue.codes[rows].astype(np.float32) / catalogue.norms[rows][:, None]
    return vectors
