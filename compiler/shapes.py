"""Shapes are inferred, never believed: 2 of 70 shipped models declare wrong ones for intermediate values."""

from __future__ import annotations

from collections.abc import Set

import onnx
import onnx_ir as ir

from .errors import ModelError
from .graph import subgraphs
from .protos import bare_proto
from .shape_values import name_sizes

UNINFERRED = frozenset({"GroupNormalization"})
"""Operators that onnx 1.23 infers no shape for: what the pass that made them knew is kept."""


def infer(model: ir.Model, *, forget: bool = True) -> None:
    """Fill in the type and shape of every value, in place, by onnx's strict inference with data propagation.

    With `forget`, what intermediate values claim is dropped first. Model inputs, and outputs' element types, are kept.
    Raises ModelError, naming node and operator, when shapes are inconsistent.
    """
    proto, _ = bare_proto(model, (lambda n: n.op_type in UNINFERRED) if forget else (lambda _: True))
    if forget:
        for output in proto.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
    try:
        inferred = _inferred(proto)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        raise ModelError(f"shapes don't fit together: {_reason(e)}") from e
    _copy(model.graph, inferred.graph, set(model.graph.outputs) if forget else None)
    name_sizes(model)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # Propagating data takes [1,6] minus [4,1] for vectors of 6 and 4, and calls a right model wrong.
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=False)


def _copy(graph: ir.Graph, proto: onnx.GraphProto, kept: Set[ir.Value] | None) -> None:
    """Take over what was inferred. What wasn't is forgotten, but for the values `kept`; with None, nothing is."""
    found = {v.name: v.type for v in proto.value_info}
    found.update({v.name: v.type for v in proto.output})
    for node, node_proto in zip(graph, proto.node, strict=True):
        for out in node.outputs:
            info = found.get(out.name or "")
            forget = kept is not None and out not in kept and node.op_type not in UNINFERRED
            if info is not None:
                _set(out, info, forget)
            elif forget:
                out.type = out.shape = None
        if subgraphs(node):
            for attribute in node_proto.attribute:
                inner = node.attributes[attribute.name]
                if inner.type == ir.AttributeType.GRAPH:
                    _copy(inner.as_graph(), attribute.g, kept)
                elif inner.type == ir.AttributeType.GRAPHS:
                    for sub, sub_proto in zip(inner.as_graphs(), attribute.graphs, strict=True):
                        _copy(sub, sub_proto, kept)


def _set(value: ir.Value, proto: onnx.TypeProto, forget: bool) -> None:
    """Give `value` an inferred type and shape. Making a Shape is slow, so an equal one stays."""
    tensor = proto.tensor_type
    dims = tuple(d.dim_value for d in tensor.shape.dim) if proto.HasField("tensor_type") else (0,)
    if tensor.elem_type and tensor.HasField("shape") and all(d > 0 for d in dims):
        if value.dtype is None or value.dtype != tensor.elem_type or not isinstance(value.type, ir.TensorType):
            value.type = ir.TensorType(ir.DataType(tensor.elem_type))
        if value.shape is None or value.shape.dims != dims:
            value.shape = ir.Shape(dims)
        return
    kind = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if kind is not None or forget:
        value.type = kind
    if shape is not None or forget:
        value.shape = shape


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
