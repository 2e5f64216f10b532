"""Graphs and indexes are looked through before ONNX Runtime or FAISS see them."""

from collections.abc import Callable
from contextlib import suppress

import faiss
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.errors import BundleError
from service.file_guard import check_graph, check_index, check_signature
from tests.small_bundle import candidate_graph, request_graph

FILE = "/bundles/daian/v1/candidates.onnx"


def model(*nodes: onnx.NodeProto, **changes: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes) or [helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    made = helper.make_model(graph)
    for name, value in changes.items():
        getattr(made.graph, name).append(value)
    return made


def with_functions() -> onnx.ModelProto:
    made, plain = model(), helper.make_opsetid("", 18)
    made.functions.append(helper.make_function("own", "f", ["x"], ["y"], [], [plain]))
    return made


def with_domain() -> onnx.ModelProto:
    made = model()
    made.opset_import.append(helper.make_opsetid("com.stranger", 1))
    return made


def external(name: str) -> TensorProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def inner() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [])


STRANGERS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an operator": (lambda: model(helper.make_node("Loop", ["n"], ["y"])), "operator 'Loop'"),
    "an operator of nobody": (lambda: model(helper.make_node("Shell", ["n"], ["y"])), "operator 'Shell'"),
    "a domain": (lambda: model(helper.make_node("Add", ["a", "b"], ["y"], domain="com.microsoft")), "'com.microsoft'"),
    "a domain's import": (with_domain, "'com.stranger'"),
    "functions": (with_functions, "functions"),
    "a graph in a node": (lambda: model(helper.make_node("Identity", ["x"], ["y"], body=inner())), "inside a node"),
    "weights elsewhere": (lambda: model(initializer=external("table.bin")), "outside the file"),
    "weights above": (lambda: model(initializer=external("../../etc/passwd")), "outside the file"),
    "a constant elsewhere": (lambda: model(constant(external("x.bin"))), "outside the file"),
}


@pytest.mark.parametrize("content", [request_graph(4), candidate_graph(), candidate_graph(nan_for_item=1)])
def test_graphs_of_ours_pass(content: bytes) -> None:
    check_graph(FILE, content)


@pytest.mark.parametrize("name", STRANGERS)
def test_c4_c6_a_stranger_in_a_graph_is_refused_by_file_and_word(name: str) -> None:
    make, message = STRANGERS[name]
    with pytest.raises(BundleError, match=message) as refused:
        check_graph(FILE, make().SerializeToString())
    assert str(refused.value).startswith(FILE)


def test_weights_said_to_be_inside_are_inside() -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.data_location = TensorProto.DEFAULT
    check_graph(FILE, model(initializer=tensor).SerializeToString())


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_cut_graph_is_refused(cut: int) -> None:
    content = candidate_graph()
    with pytest.raises(BundleError, match="not an ONNX graph"):
        check_graph(FILE, content[: len(content) - cut])


@given(st.binary(max_size=300), st.integers(0, 200))
def test_whatever_comes_is_passed_or_refused_and_never_raises_anything_else(noise: bytes, place: int) -> None:
    content = candidate_graph()
    for mutant in (noise, content[:place] + noise + content[place:]):
        with suppress(BundleError):
            check_graph(FILE, mutant)


def serialised(index: faiss.Index) -> bytes:
    return bytes(faiss.serialize_index(index).tobytes())


def scalar() -> faiss.Index:
    return faiss.IndexScalarQuantizer(8, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)


def graph_index() -> faiss.Index:
    return faiss.IndexHNSWSQ(8, faiss.ScalarQuantizer.QT_8bit_direct_signed, 4, faiss.METRIC_INNER_PRODUCT)


def list_index() -> faiss.Index:
    quantiser = faiss.ScalarQuantizer.QT_8bit_direct_signed
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(8), 8, 2, quantiser, faiss.METRIC_INNER_PRODUCT, False)
    index.train(np.eye(8, dtype=np.float32)[[0, 1] * 39])
    return index


@pytest.mark.parametrize("make", [scalar, graph_index, list_index])
def test_indexes_of_ours_pass(make: Callable[[], faiss.Index]) -> None:
    check_index("recall.faiss", serialised(faiss.IndexIDMap(make())))


@pytest.mark.parametrize(
    "content",
    [
        serialised(scalar()),
        serialised(faiss.IndexIDMap(faiss.IndexFlatIP(8))),
        serialised(faiss.IndexIDMap2(scalar())),
        serialised(faiss.IndexPreTransform(faiss.IndexIDMap(scalar()))),
        b"",
        b"IxMp",
    ],
)
def test_another_kind_of_index_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"^recall\.faiss is a FAISS index of kind"):
        check_index("recall.faiss", content)


FOUND = {
    "inputs": [{"name": "x", "datatype": "tensor(float)", "shape": ["N", 2]}],
    "outputs": [{"name": "logits", "datatype": "tensor(float)", "shape": ["N"]}],
}
DECLARED = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 2]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N"]}],
}


@pytest.mark.parametrize("declared", [None, DECLARED])
def test_c4_the_declared_signature_passes(declared: object) -> None:
    check_signature(FILE, FOUND, declared)


@pytest.mark.parametrize(
    "declared",
    [
        "text",
        {**DECLARED, "inputs": []},
        {**DECLARED, "inputs": ["x"]},
        {**DECLARED, "inputs": [{"name": "x", "dtype": "int64", "shape": ["N", 2]}]},
        {**DECLARED, "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", 1]}]},
        {**DECLARED, "outputs": [*DECLARED["outputs"], {"name": "more", "dtype": "float32", "shape": []}]},
    ],
)
def test_c4_another_signature_is_refused(declared: object) -> None:
    with pytest.raises(BundleError, match=r"candidates\.onnx"):
        check_signature(FILE, FOUND, declared)
