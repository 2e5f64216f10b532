"""The two graphs: their names, their free axes, their tables, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import models_export.graph
from models_export.errors import ExportError, ParityError
from models_export.graph import Graphs, example_inputs, export_graphs
from models_export.parity import check_as_it_stands
from service.contract.encoder import CONTRACT_VERSION, REQUEST_SIDE
from tests.unit.models_export.two_phases import SIZES, Faults, TwoPhases


@pytest.fixture(scope="module")
def model() -> TwoPhases:
    torch.manual_seed(1)
    return TwoPhases().eval()


@pytest.fixture(scope="module")
def graphs(model: TwoPhases) -> Graphs:
    return export_graphs(model, SIZES, {"fingerprint": "f" * 64})


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_inputs_are_the_contract_s_names_and_unread_ones_are_left_out(graphs: Graphs) -> None:
    inputs = names(graphs.request.graph.input)
    assert set(inputs) == {"trigger_fields", "history_fields", "history_age", "table.items.0"}
    assert set(REQUEST_SIDE) > set(inputs) - {"table.items.0"}
    assert names(graphs.request.graph.output) == ["intent", "state.intent", "state.keys", "state.mask", "state.trigger"]
    assert names(graphs.candidates.graph.output) == ["logits", "gate"]
    assert graphs.state == ("intent", "keys", "mask", "trigger")


def test_free_axes_have_the_contract_s_letters(graphs: Graphs) -> None:
    shapes = {i["name"]: i["shape"] for i in graphs.describe()["candidates"]["inputs"]}
    assert shapes["candidate_fields"] == ["N", 2]
    assert shapes["state.keys"] == [1, "L", 8]
    assert {i["name"]: i["shape"] for i in graphs.describe()["request"]["inputs"]}["history_age"] == [1, "L"]


@pytest.mark.parametrize(("n_behaviours", "n_candidates"), [(1, 1), (5, 4), (9, 1), (1, 33), (50, 700)])
def test_two_graphs_give_torch_s_numbers_at_any_size(
    graphs: Graphs, model: TwoPhases, n_behaviours: int, n_candidates: int
) -> None:
    inputs = example_inputs(SIZES, n_behaviours, 1, n_candidates, seed=n_behaviours)
    state = model.encode_request(inputs)
    given = {name: value.numpy() for name, value in inputs._asdict().items()} | dict(graphs.tables)
    found = run(graphs.request, given)
    np.testing.assert_allclose(found["intent"], state["intent"].detach().numpy(), atol=1e-6)
    logits = run(graphs.candidates, given | found)["logits"]
    np.testing.assert_allclose(logits, model.score(state, inputs).logits.detach().numpy(), rtol=0, atol=1e-5)


def run(graph: onnx.ModelProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {node.name: given[node.name] for node in session.get_inputs()}
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, feed), strict=True))


def test_a_large_table_is_outside_once_under_one_name_and_a_small_one_inside(graphs: Graphs, tmp_path: Path) -> None:
    """`same_items` is `items` under a second name; both graphs read it."""
    assert list(graphs.tables) == ["table.items.0"]
    for graph in (graphs.request, graphs.candidates):
        assert "table.items.0" in names(graph.graph.input)
        assert 600 * 8 not in [int(np.prod(initial.dims)) for initial in graph.graph.initializer]
    graphs.save(tmp_path)
    mapped = np.load(tmp_path / "tables" / "table.items.0.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, graphs.tables["table.items.0"])


def test_every_table_is_outside_when_asked(model: TwoPhases) -> None:
    assert set(export_graphs(model, SIZES, {}, min_table_bytes=1).tables) == {
        "table.items.0",
        "table.items.1",
        "table.age",
    }


def test_metadata_is_stamped_and_nothing_of_this_machine_is_left(graphs: Graphs) -> None:
    for graph, name in ((graphs.request, "request"), (graphs.candidates, "candidates")):
        metadata = {entry.key: entry.value for entry in graph.metadata_props}
        assert metadata["fingerprint"] == "f" * 64
        assert metadata["contract_version"] == str(CONTRACT_VERSION)
        assert (metadata["opset"], metadata["graph"]) == ("18", name)
        assert {"torch", "onnx", "onnxscript", "exporter"} <= set(metadata)
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
        assert str(Path(__file__).parents[3]).encode() not in graph.SerializeToString()


def test_a_model_comes_back_in_the_mode_it_was_given() -> None:
    model = TwoPhases(Faults(extra_name="logits")).train()
    with pytest.raises(ExportError):
        export_graphs(model, SIZES, {})
    assert model.training


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(epsilon=1e-8), r"adds the constant 1e-08.*clamp_min"),
        (Faults(reads_history_when_scoring=True), "score reads history_age"),
        (Faults(double_state=True), "state 'keys' is torch.float64"),
        (Faults(state_without_request=True), r"state 'trigger' has shape \(2, 8\)"),
        (Faults(extra_name="logits"), "takes a name of the graphs"),
        (Faults(extra_name="state.keys"), "takes a name of the graphs"),
    ],
    ids=["vanishing constant", "other side", "dtype", "no request axis", "extra logits", "extra state"],
)
def test_what_cannot_be_exported_is_refused_with_its_reason(faults: Faults, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_graphs(TwoPhases(faults), SIZES, {})


def test_a_module_without_two_phases_is_refused() -> None:
    with pytest.raises(ExportError, match="needs encode_request and score"):
        export_graphs(nn.Linear(2, 2), SIZES, {})


def test_without_the_check_a_vanishing_constant_divides_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur of the check above: torch gives numbers, ONNX Runtime does not."""
    monkeypatch.setattr(models_export.graph, "_refuse_vanishing_constants", lambda _: None)
    with pytest.raises(ParityError, match="logits of ONNX Runtime are not finite"):
        check_as_it_stands(TwoPhases(Faults(epsilon=1e-8)), SIZES)
    assert check_as_it_stands(TwoPhases(Faults(epsilon=1e-6)), SIZES).n_cases > 0


def test_a_fixed_length_is_found() -> None:
    """Such a model cannot even be asked for other lengths; it must not pass because the example has the right one."""
    with pytest.raises((ExportError, IndexError)):
        check_as_it_stands(TwoPhases(Faults(fixed_length=True)), SIZES)
