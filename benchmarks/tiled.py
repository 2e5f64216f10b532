"""The same model as one graph with one row per (user, candidate) pair: what a model server is usually given.

Called by the parts `graphs` and `servers`. Every input is repeated for every candidate and so is every product with it.
Nothing is made worse than it must be: where the two-phase form would cost more with a single candidate a request (the
attention unit's weights by behaviour, the padded layout), the plain form takes its place. The weights are in the graph.
Used for comparison alone, never exported into a bundle.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim

from models_export.graph import LOGITS, example_inputs
from models_export.graph import _no_shape_checks as no_shape_checks
from models_export.graph import _quiet_exporter as quiet_exporter
from models_export.surgery import OPSET
from service.contract.encoder import CANDIDATE_SIDE, REQUEST_SIDE, EncoderSizes, ModelInputs
from training.layers.attention import DinAttention
from training.layers.ragged import CandidateRows

TILED_GRAPH = "tiled.onnx"
GIVEN = (*REQUEST_SIDE, *(name for name in CANDIDATE_SIDE if name != "candidate_request"))


class TiledModel(nn.Module):
    """Rows of N pairs in, N logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arrays: Tensor) -> Tensor:
        given = dict(zip(GIVEN, arrays, strict=True))
        similarity = given["candidate_similarity"]
        inputs = ModelInputs(**given, candidate_request=torch.arange(similarity.shape[0]))
        with one_candidate_a_request():
            logits: Tensor = self.model.score(self.model.encode_request(inputs), inputs).logits
        return logits


@contextmanager
def one_candidate_a_request() -> Iterator[None]:
    """Row n of the requests has row n of the candidates: no gather, no padding, no product that nobody shares."""

    def rows_of(request: Tensor, n_requests: int) -> CandidateRows:
        return CandidateRows(n_requests, request, None, 1)

    layout = patch.multiple(
        CandidateRows,
        of=staticmethod(rows_of),
        per_candidate=lambda _, x: x,
        pad=lambda _, x: x.unsqueeze(1),
        unpad=lambda _, x: x.squeeze(1),
    )
    unit = patch.multiple(DinAttention, key_part=lambda unit, keys: unit.key_term(keys), _unit=unit_of_pairs)
    with layout, unit:
        yield


def unit_of_pairs(unit: DinAttention, q: Tensor, keys: Tensor, key_part: Tensor) -> Tensor:
    """DIN's unit for one query per request: [R 1 Q], [R L D], [R L E] to [R 1 L]."""
    products = (q * keys) @ unit.product_term.t()
    hidden = torch.relu(products + unit.query_term(q) + key_part)
    scores: Tensor = unit.rest(hidden).squeeze(-1).unsqueeze(1)
    return scores


def tiled_inputs(inputs: ModelInputs) -> dict[str, np.ndarray]:
    """The inputs of one request, the request's side repeated for each candidate."""
    n = len(inputs.candidate_similarity)
    repeated = {name: np.repeat(getattr(inputs, name), n, axis=0) for name in REQUEST_SIDE}
    return repeated | {name: getattr(inputs, name) for name in GIVEN if name not in REQUEST_SIDE}


def export_tiled(model: nn.Module, sizes: EncoderSizes, path: Path) -> ModelProto:
    """Writes the graph of a model in eval mode, N, L and K free. Returns it."""
    given = tiled_inputs(example_inputs(sizes, 5, 3, 4).map(Tensor.numpy))
    pairs, length, related = Dim("N", min=2), Dim("L", min=2), Dim("K", min=2)
    axes: list[dict[int, Any]] = []
    for name in GIVEN:
        sequence = {1: length} if name.startswith("history") else {1: related} if name.startswith("related") else {}
        axes.append({0: pairs, **sequence})
    arguments = tuple(torch.from_numpy(given[name]) for name in GIVEN)
    with torch.no_grad(), quiet_exporter(), no_shape_checks():
        program = torch.export.export(TiledModel(model), arguments, dynamic_shapes=(tuple(axes),), strict=False)
        converted = torch.onnx.export(
            program, arguments, dynamo=True, opset_version=OPSET, input_names=list(GIVEN), output_names=[LOGITS],
            optimize=True, external_data=False, verbose=False,
        )  # fmt: skip
    assert converted is not None
    proto = converted.model_proto
    path.write_bytes(proto.SerializeToString())
    return proto
