"""What is done to a traced graph before it is published: axes named, inputs pruned, tables taken out, metadata stamped.

Called by `models_export.graph` alone. It works on the ONNX protobuf and never changes what the graph computes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from jaxtyping import Float
from onnx import ModelProto
from torch import nn

from models_export.errors import ExportError
from service.contract.encoder import CONTRACT_VERSION

OPSET = 18
EXPORTER = "torch.onnx.export(dynamo=True)"
TABLE_PREFIX = "table."


def name_axes(proto: ModelProto, free: Mapping[str, Mapping[int, str]]) -> None:
    """Give the free axes the letters of the contract; a free axis that became a number is an error."""
    letters: dict[str, str] = {}
    for value in proto.graph.input:
        for i, letter in free.get(value.name, {}).items():
            axis = value.type.tensor_type.shape.dim[i]
            if not axis.dim_param:
                raise ExportError(f"axis {i} of {value.name} became {axis.dim_value}: the model fixes {letter}")
            letters[axis.dim_param] = letter
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = letters.get(axis.dim_param, axis.dim_param)
    del proto.graph.value_info[:]  # shapes in between: only the old names, and the runtime infers them anyway


def drop_unread_inputs(proto: ModelProto) -> frozenset[str]:
    """Remove inputs that no node reads (a model without related history has no use for it); return the names left."""
    read = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    kept = [value for value in proto.graph.input if value.name in read]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return frozenset(value.name for value in kept)


def table_parameters(model: nn.Module, min_bytes: int) -> dict[str, tuple[str, Float[np.ndarray, "rows width"]]]:
    """Initialiser name -> (input name, array) of each embedding table worth mapping; a shared table has one name."""
    names: dict[int, str] = {}
    tables: dict[str, tuple[str, np.ndarray]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Embedding) or module.weight.nbytes < min_bytes:
            continue
        name = names.setdefault(id(module.weight), TABLE_PREFIX + path)
        tables[f"model.{path}.weight"] = (name, module.weight.detach().cpu().numpy().astype(np.float32))
    return tables


def take_tables_out(proto: ModelProto, tables: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Turn the initialisers of `tables` into graph inputs; return those that this graph reads."""
    graph, taken = proto.graph, {}
    kept = []
    for initialiser in graph.initializer:
        if initialiser.name not in tables:
            kept.append(initialiser)
            continue
        name, table = tables[initialiser.name]
        _rename_input(proto, initialiser.name, name)
        if name not in taken:
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, table.shape))
        taken[name] = table
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return taken


def _rename_input(proto: ModelProto, old: str, new: str) -> None:
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def finish(proto: ModelProto, metadata: Mapping[str, str]) -> None:
    """Strip traces of the machine, refuse what the service would refuse, stamp the metadata, check the whole."""
    for node in proto.graph.node:
        if node.domain or any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(f"operator {node.domain}::{node.op_type} is not plain ONNX: the service refuses it")
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    if proto.functions:
        raise ExportError(f"the graph keeps local functions {[f.name for f in proto.functions]}: they must be inlined")
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    stamped = {"contract_version": str(CONTRACT_VERSION), "opset": str(OPSET), "exporter": EXPORTER}
    onnx.helper.set_model_props(proto, dict(sorted({**metadata, **stamped, **versions}.items())))
    onnx.checker.check_model(proto)


def describe(proto: ModelProto) -> dict[str, Any]:
    return {
        "inputs": [_signature(value) for value in proto.graph.input],
        "outputs": [_signature(value) for value in proto.graph.output],
        "operators": sorted({node.op_type for node in proto.graph.node}),
        "n_nodes": len(proto.graph.node),
    }


def _signature(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return {"name": value.name, "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, "shape": shape}
