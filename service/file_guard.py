"""What a graph or an index holds, read from its bytes before ONNX Runtime or FAISS parses them.

Called by the runtime with bytes that were hashed. A graph may use the operators that our exporter writes, from ONNX's
own domain, with all weights inside; an index may be one of the two kinds that we build. Reads the outlines of both
formats and never a weight: a walk over the fields of a message, no generated code, no recursion without an end.
"""

from collections.abc import Iterator, Mapping, Sequence

from service.contract.errors import BundleError

# Arithmetic on tensors. No control flow (If, Loop, Scan), no randomness, no strings, no operators of other domains.
OPERATORS = frozenset(
    {"Abs", "Acos", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "Cast", "CastLike", "Ceil", "Clip", "Compress",
     "Concat", "Constant", "ConstantOfShape", "Conv", "Cos", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum",
     "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements",
     "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
     "Identity", "IsInf", "IsNaN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
     "LogSoftmax", "MatMul", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or",
     "PRelu", "Pad", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round",
     "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax",
     "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "Tile", "TopK", "Transpose",
     "Trilu", "Unsqueeze", "Where", "Xor"}
)  # fmt: skip
DOMAINS = (b"", b"ai.onnx")
MAX_DEPTH = 8  # messages inside messages: a model, its graph, a node, an attribute, a tensor

# Numbers of the fields that matter, by message (onnx.proto3); everything else is skipped unread.
_MODEL = {7: "graph", 8: "opset", 20: "training", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_NODE = {4: "operator", 5: "attribute", 7: "domain"}
_ATTRIBUTE = {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"}
_TENSOR = {13: "external", 14: "location"}
_SPARSE = {1: "tensor", 2: "tensor"}
_OPSET = {1: "domain"}
_FIELDS = {
    "model": _MODEL, "graph": _GRAPH, "node": _NODE, "attribute": _ATTRIBUTE, "tensor": _TENSOR, "sparse": _SPARSE,
    "opset": _OPSET,
}  # fmt: skip
_REFUSED = {
    "training": "training information",
    "function": "functions of its own",
    "subgraph": "a graph inside a node",
    "external": "weights outside the file",
    "location": "weights outside the file",
}

# FAISS writes four letters and 33 bytes of head (dimensions, count, two reserved, trained, metric), then the inner one.
_INDEX_HEAD = 37
INDEX_WRAPPER = b"IxMp"  # IndexIDMap; IndexIDMap2 keeps a table of its own in every worker
INDEX_KINDS = (b"IxSQ", b"IHNs", b"IwSq")  # IndexScalarQuantizer, IndexHNSWSQ, IndexIVFScalarQuantizer


def check_graph(name: str, content: bytes) -> None:
    """Raises BundleError, naming the file, for a graph with anything but our operators and weights of its own."""
    try:
        _check_message(name, memoryview(content), "model", 0)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{name} is not an ONNX graph ({error}): export the bundle again") from error


def check_index(name: str, content: bytes) -> None:
    """Raises BundleError, naming the file, for an index that is not of a kind that `daian export` writes."""
    wrapper, kind = content[:4], content[_INDEX_HEAD : _INDEX_HEAD + 4]
    if wrapper != INDEX_WRAPPER or kind not in INDEX_KINDS:
        known = ", ".join(one.decode() for one in INDEX_KINDS)
        raise BundleError(
            f"{name} is a FAISS index of kind {wrapper!r} over {kind!r}, allowed is {INDEX_WRAPPER.decode()} over "
            f"{known}: export the bundle again"
        )


def check_signature(name: str, found: Mapping[str, Sequence[Mapping[str, object]]], declared: object) -> None:
    """Compares what ONNX Runtime sees (`Graph.describe`) with what the manifest says of inputs and outputs.

    A manifest that says nothing of them is of an older exporter and passes. Raises BundleError at the first difference.
    """
    if declared is None:
        return
    if not isinstance(declared, Mapping):
        raise BundleError(f"{name}: the manifest's description of it is no object: export the bundle again")
    for side in ("inputs", "outputs"):
        stated = {_typed(one) for one in declared.get(side, ())}
        seen = {_typed(one) for one in found[side]}
        if stated != seen:
            odd = ", ".join(sorted(f"{one} {dtype}" for one, dtype, _ in stated ^ seen))
            raise BundleError(f"{name}: {side} differ from the manifest's ({odd}): export the bundle again")


_ORT_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(int64)": "int64",
              "tensor(int32)": "int32", "tensor(bool)": "bool"}  # fmt: skip


def _typed(node: object) -> tuple[str, str, int]:
    """Name, type and number of axes of an input or output, as either side spells it."""
    if not isinstance(node, Mapping) or not isinstance(node.get("shape"), Sequence):
        return ("(unreadable)", "", 0)
    dtype = str(node.get("dtype") or node.get("datatype"))
    return str(node.get("name")), _ORT_TYPES.get(dtype, dtype), len(node["shape"])


def _check_message(name: str, content: memoryview, kind: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("messages too deep")
    for number, value in _fields(content):
        what = _FIELDS[kind].get(number)
        if what in _REFUSED:
            if what == "location" and value == 0:  # said aloud that the weights are inside
                continue
            raise BundleError(f"{name} holds {_REFUSED[what]}: bundles hold plain graphs, export again")
        if what == "operator":
            _check_word(name, "operator", value, bytes(_bytes(value)).decode("utf-8", "replace") in OPERATORS)
        elif what == "domain":
            _check_word(name, "domain", value, bytes(_bytes(value)) in DOMAINS)
        elif what is not None:
            _check_message(name, _bytes(value), what, depth + 1)


def _check_word(name: str, what: str, value: memoryview | int, is_allowed: bool) -> None:
    if not is_allowed:
        word = bytes(_bytes(value)[:64]).decode("utf-8", "replace")
        raise BundleError(f"{name} uses the {what} {word!r}, which is not on the list of service/file_guard.py")


def _bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field numbers and values of one message. Raises ValueError for what protobuf does not allow, and for groups."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        if key >> 32:
            raise ValueError("a field number that does not fit")
        wire = key & 7
        if wire == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if wire == 2:
            length, place = _varint(content, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(content):
            raise ValueError("cut short")
        yield key >> 3, content[place : place + length]
        place += length


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number without an end")
