"""What the model servers are given: the same arrays in each body, and the graphs as our own sessions run them."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.model_servers import named
from benchmarks.servers import graph_files
from benchmarks.servers.known import SERVERS, as_argument, plain, v2
from benchmarks.training_turns.turns import one_turn
from service.contract.encoder import ModelInputs
from service.contract.requests import RequestBatch
from tests.small_bundle import HandMade, item_ids, make_encoder, row, write_small_bundle


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    batch = RequestBatch.from_rows([row(item_ids()[:7], behaviours=[("i8", 60), ("i3", 7200)])])
    return make_encoder().encode(batch)


def test_bodies_hold_the_same_arrays(inputs: ModelInputs) -> None:
    given = named(inputs)
    listed = {"plain": json.loads(plain(given)), "argument": json.loads(as_argument(given))["inputs"]}
    tensors = json.loads(v2(given))["inputs"]
    listed["v2"] = {one["name"]: np.reshape(one["data"], one["shape"]).tolist() for one in tensors}
    for body in listed.values():
        read = graph_files.arrays_of(body)
        assert read.keys() == given.keys()
        for name, values in read.items():
            np.testing.assert_array_equal(values, given[name])
            assert values.dtype == given[name].dtype
    assert {one["datatype"] for one in tensors} == {"FP32", "INT64"}


def test_the_pair_scores_as_the_model_does(
    tmp_path: Path, inputs: ModelInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_small_bundle(tmp_path)
    monkeypatch.setenv(graph_files.FOLDER, str(bundle.path))
    monkeypatch.setenv(graph_files.KIND, "pair")
    encoder = make_encoder()
    expected = HandMade.for_encoder(encoder).logits(encoder, row(item_ids()[:7], behaviours=[("i8", 60), ("i3", 7200)]))
    np.testing.assert_allclose(graph_files.open_graphs()(named(inputs)), expected, atol=1e-6)


def test_the_tiled_graph_gets_the_request_for_every_candidate(
    tmp_path: Path, inputs: ModelInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """logit = similarity + the request's first similarity: wrong unless each row has its request's."""
    nodes = [
        helper.make_node("ReduceMax", ["history_similarity", "one"], ["top"], keepdims=0),
        helper.make_node("Add", ["top", "candidate_similarity"], ["logits"]),
    ]
    given = [("history_similarity", ["N", "L"]), ("candidate_similarity", ["N"])]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N"])],
        [onnx.numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "tiled.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setenv(graph_files.FOLDER, str(tmp_path))
    monkeypatch.setenv(graph_files.KIND, "tiled")
    expected = inputs.history_similarity.max() + inputs.candidate_similarity
    np.testing.assert_allclose(graph_files.open_graphs()(named(inputs)), expected, atol=1e-6)


def test_every_server_has_a_module_of_its_own_that_is_there() -> None:
    folder = Path(graph_files.__file__).parent
    for server in SERVERS.values():
        modules = [part for part in server.command if part.startswith("benchmarks.servers.")]
        assert len(modules) == 1, server.name
        assert (folder / f"{modules[0].partition(':')[0].rpartition('.')[2]}.py").is_file()
        assert all("==" in package or "<" in package for package in server.packages), "versions are pinned"


def test_mlserver_is_started_in_the_folder_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed here: a command in its place leaves the file where MLServer would leave `.metrics`."""
    for name, words in {
        "mlserver": ("MLModel",),
        "mlserver.codecs": ("NumpyCodec",),
        "mlserver.types": ("InferenceRequest", "InferenceResponse"),
    }.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(words, object))
        monkeypatch.setitem(sys.modules, name, module)
    with_mlserver = importlib.import_module("benchmarks.servers.with_mlserver")
    del sys.modules["benchmarks.servers.with_mlserver"]  # what stands in is for this test alone
    command = tmp_path / "mlserver"
    command.write_text('#!/bin/sh\necho "$1 $2 $PYTHONPATH" > .metrics\n')
    command.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("BENCH_PORT", "1")
    monkeypatch.setenv("BENCH_WORKERS", "2")
    settings = tmp_path / "settings"
    with_mlserver.write_settings(settings)
    assert with_mlserver.serve(settings) == 0
    assert (settings / ".metrics").read_text() == f"start {settings} {Path.cwd()}\n"
    assert {path.name for path in settings.iterdir()} == {".metrics", "settings.json", "model-settings.json"}


def test_a_turn_takes_whole_steps_and_at_least_one() -> None:
    steps = iter([5, 7, 9])
    assert one_turn(steps, 0.0)["candidates"] == 5
    with pytest.raises(StopIteration):
        one_turn(steps, 10.0)
