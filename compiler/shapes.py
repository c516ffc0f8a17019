"""Shapes are inferred, never believed: 2 of 70 shipped models declare wrong ones for intermediate values."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from .errors import ModelError
from .session import slim_proto
from .shape_values import name_sizes

UNINFERRED = frozenset({"GroupNormalization"})
"""Operators that onnx 1.23 infers no shape for: what the pass that made them knew is kept."""


def infer(model: ir.Model, *, forget: bool = True) -> None:
    """Fill in the type and shape of every value, in place, by onnx's strict inference with data propagation.

    With `forget`, what intermediate values claim is dropped first. Model inputs, and outputs' element types, are kept.
    Raises ModelError, naming node and operator, when shapes are inconsistent.
    """
    if forget:
        outputs = set(model.graph.outputs)
        for node in model.graph.all_nodes():
            for out in node.outputs:
                if out not in outputs and node.op_type not in UNINFERRED:
                    out.shape = None
                    out.type = None
    proto, _ = slim_proto(model)
    if forget:
        for output in proto.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
    try:
        inferred = _inferred(proto)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        raise ModelError(f"shapes don't fit together: {_reason(e)}") from e
    _copy(model.graph, inferred.graph)
    name_sizes(model)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # Propagating data takes [1,6] minus [4,1] for vectors of 6 and 4, and calls a right model wrong.
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=False)


def _copy(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    found = {v.name: v for v in proto.value_info}
    found.update({v.name: v for v in proto.output})
    for node, node_proto in zip(graph, proto.node, strict=True):
        for out in node.outputs:
            info = found.get(out.name or "")
            if info is None:
                continue
            dtype = ir.serde.deserialize_type_proto_for_type(info.type)
            if dtype is not None:
                out.type = dtype
            dims = ir.serde.deserialize_type_proto_for_shape(info.type)
            if dims is not None:
                out.shape = dims
        for attribute in node_proto.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _copy(node.attributes[attribute.name].value, attribute.g)
            for sub, sub_proto in zip(
                node.attributes[attribute.name].value if attribute.graphs else (), attribute.graphs, strict=True
            ):
                _copy(sub, sub_proto)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
