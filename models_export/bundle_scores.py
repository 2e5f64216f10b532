"""A published bundle's scores on a split of a data folder: what is live, measured beside what might replace it.

`daian evaluate --against` finds `score_bundle` through the entry point daian.bundle_scores, for it lies above training.
Requests are encoded by the bundle's own encoder over its own catalogue, as the service would: an item that the bundle
does not know is an unknown item. The graphs run one request at a time, as they were exported.

Never here: metrics (`training.measures`), the running service.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from models_export.parity import ExportedModel
from service.contract.bundle import MANIFEST, Bundle, current_path, read_bundle
from service.contract.encoder import CANDIDATE_SIDE, Encoder, ModelInputs
from training.data.dataset import Split
from training.data.labels import make_labels
from training.data.request_files import read_requests
from training.scores import Scored, joined_scores

_BATCH_REQUESTS = 512


def score_bundle(path: Path, data_folder: Path, split: Split) -> tuple[str, Scored]:
    """The bundle's name and version, and its scores of every candidate of the split, in order.

    `path`: a bundle's folder, or the folder of bundles that holds `current`. Raises BundleError for a bundle that is
    not whole, DataError for a folder that is not prepared.
    """
    bundle = read_bundle(path if (path / MANIFEST).is_file() else current_path(path))
    found = joined_scores(list(_scored(bundle, bundle.open_encoder(), data_folder / split)))
    return f"{bundle.name}/{bundle.version}", found.in_order()


def _scored(bundle: Bundle, encoder: Encoder, folder: Path) -> Iterator[Scored]:
    model = ExportedModel(bundle.path)
    for batch, clicks in read_requests(folder, _BATCH_REQUESTS):
        inputs = encoder.encode(batch)
        labels = make_labels(batch, clicks, inputs.candidate_similarity, encoder.scale)
        found = [model.score(one) for one in one_by_one(inputs, batch.candidate_offsets)]
        intents = [scores.intent for scores in found if scores.intent is not None]
        yield Scored(
            logits=np.concatenate([scores.logits for scores in found]),
            clicks=labels.clicks,
            user=labels.user_group[batch.candidate_request],
            request=labels.request_group[batch.candidate_request],
            requests=labels.request_group,
            has_intent=labels.has_intent,
            intent_label=labels.intent,
            intent=np.stack(intents) if intents else None,
        )


def one_by_one(inputs: ModelInputs, offsets: Int64[np.ndarray, " R1"]) -> Iterator[ModelInputs]:
    """Each request of a batch as a batch of its own; candidates of request r are rows offsets[r] to offsets[r + 1]."""
    for r, (start, end) in enumerate(pairwise(offsets.tolist())):
        request = {name: array[r : r + 1] for name, array in inputs._asdict().items() if name not in CANDIDATE_SIDE}
        yield ModelInputs(
            **request,
            candidate_fields=inputs.candidate_fields[start:end],
            candidate_similarity=inputs.candidate_similarity[start:end],
            candidate_request=np.zeros(end - start, np.int64),
        )
