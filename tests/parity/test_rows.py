"""Every row of the table of rivals gives in ONNX Runtime what it gives in PyTorch: variants, halves and ablations too.

`test_torch_and_onnx.py` does the same, and more, for every model as its config has it by default. A row that is the
same network in other sizes, or trained otherwise, is not exported once more: `SPOKEN_FOR` has the config that is.
"""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models_export.errors import ParityError
from models_export.graph import export_graphs
from models_export.parity import TOLERANCE, check_parity
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.file_guard import check_graph
from tests.unit.training.random_inputs import SIZES, TINY, with_large_weights
from training.data.dataset import split_files
from training.data.request_files import read_requests
from training.models import MODELS, build_model
from training.rows import ROWS, Size

PAPERS = {name: row.config(Size()) for name, row in ROWS.items()}  # at the sizes that models have by default
OF_TRAINING = ("dropout", "intention_loss", "three_stages")  # no graph knows of them


def network_of(config: Any) -> tuple[object, ...]:
    """What a config says beside sizes: its switches, and which of its numbers are 0, for that may switch off a part."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in OF_TRAINING}
    switches = {name: value if isinstance(value, bool | str) else bool(value) for name, value in values.items()}
    return (type(config), *switches.items())


def speakers() -> dict[str, Any]:
    """For each row the config that is compared in its place: its model's default, an earlier row's, or its own."""
    first: dict[tuple[object, ...], Any] = {network_of(spec.config()): spec.config() for spec in MODELS.values()}
    return {name: first.setdefault(network_of(config), config) for name, config in PAPERS.items()}


SPOKEN_FOR = {name: config for name, config in speakers().items() if config is not PAPERS[name]}
COMPARED = [name for name in ROWS if name not in SPOKEN_FOR]


@pytest.fixture(scope="module")
def requests(world: Path) -> RequestBatch:
    batch, _ = next(iter(read_requests(split_files(world, "validation")[0])))
    return batch


def smallest(row: str) -> Any:
    """The row's config at the sizes of the tests; a recurrent layer is exported step by step, so it has few."""
    config = ROWS[row].config(TINY)
    return replace(config, n_steps=4) if hasattr(config, "n_steps") else config


@pytest.fixture(scope="module", params=COMPARED)
def exported(
    request: pytest.FixtureRequest, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """The network of a row, small, and the folder of its graphs."""
    model = with_large_weights(build_model(smallest(request.param), encoder.sizes), spread=0.2).eval()
    folder = tmp_path_factory.mktemp(request.param)
    export_graphs(model, encoder.sizes, {}, min_table_bytes=1).save(folder)
    return model, folder


def test_same_logits_for_every_odd_request(
    exported: tuple[nn.Module, Path], encoder: Encoder, requests: RequestBatch
) -> None:
    report = check_parity(*exported, encoder, requests)
    assert report.n_cases == 3 * 5 * 3
    assert report.max_difference <= TOLERANCE


def heaviest_weight(model: nn.Module, encoder: Encoder, requests: RequestBatch) -> tuple[Tensor, int]:
    """A matrix of the network and the place in it on which the logits of a few requests depend most."""
    inputs = encoder.encode(requests.take(np.arange(5))).map(torch.from_numpy)
    model.score(model.encode_request(inputs), inputs).logits.sum().backward()
    found = [p for p in model.parameters() if p.dim() == 2 and p.grad is not None]
    weight = max(found, key=lambda p: p.grad.to_dense().abs().max().item())
    return weight.detach().view(-1), int(weight.grad.to_dense().abs().argmax())


def test_one_changed_weight_is_found(
    exported: tuple[nn.Module, Path], encoder: Encoder, requests: RequestBatch
) -> None:
    """The saboteur: what was exported and what is compared with it differ in a single number."""
    model, folder = exported
    weights, place = heaviest_weight(model, encoder, requests)
    weights[place] += 0.01
    try:
        with pytest.raises(ParityError, match="logits differ by"):
            check_parity(model, folder, encoder, requests)
    finally:
        weights[place] -= 0.01
        model.zero_grad()


def test_the_service_would_let_its_graphs_in(exported: tuple[nn.Module, Path]) -> None:
    _, folder = exported
    for name in ("request.onnx", "candidates.onnx"):
        check_graph(name, (folder / name).read_bytes())


def parts_of(model: nn.Module) -> set[tuple[str, type]]:
    """Submodules and parameters by name and type, whatever their number: what a network is but for sizes and depth."""
    modules = {(name, type(module)) for name, module in model.named_modules() if not isinstance(module, nn.Dropout)}
    parameters: set[tuple[str, type]] = {(name, Tensor) for name, _ in model.named_parameters()}
    return {(re.sub(r"\.\d+\b", ".#", name), kind) for name, kind in modules | parameters}


@pytest.mark.parametrize("row", SPOKEN_FOR)
def test_who_speaks_for_a_row_has_the_same_parts(row: str) -> None:
    assert parts_of(build_model(SPOKEN_FOR[row], SIZES)) == parts_of(build_model(PAPERS[row], SIZES))


def test_a_row_of_another_network_is_not_spoken_for() -> None:
    """The twin: what tells rows apart is seen by the test above, and by `network_of`."""
    whole, halved = PAPERS["dian"], PAPERS["tan"]
    assert network_of(whole) != network_of(halved)
    assert parts_of(build_model(whole, SIZES)) != parts_of(build_model(halved, SIZES))
    assert {"din_2ta", "dien_2ta", "tan", "tfn", "din", "daian_no_uim", "daian_no_die", "dihn_no_hsm"} <= set(COMPARED)
