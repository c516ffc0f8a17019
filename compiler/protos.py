"""A model as a protobuf that is run or checked, not kept: structure, types, small constants.

`ir.to_proto` keeps everything and takes many times as long; a compilation needs some forty of these. (It even asks of
every object which protocols it follows, so it is not used for the parts either.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
import onnx_ir as ir

from .weights import SMALL

PLACE = "weights"
"""The file, which doesn't exist, that big initializers point into."""

_FIELDS = {
    ir.AttributeType.INT: "i", ir.AttributeType.INTS: "ints", ir.AttributeType.FLOAT: "f",
    ir.AttributeType.FLOATS: "floats",
}  # fmt: skip

Tensors = dict[str, ir.TensorProtocol]


def bare_proto(
    model: ir.Model, declared: Callable[[ir.Node], bool] = lambda _: False
) -> tuple[onnx.ModelProto, Tensors]:
    """The model without big weights, texts and notes, and the big weights of its main graph by name.

    A weight above `weights.SMALL` bytes is external data in the file `PLACE`. The types and shapes of a node's outputs
    are written where `declared` says so; those of the model's own inputs and outputs always.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(ir.serde.serialize_function(function))
    big: Tensors = {}
    _graph(proto.graph, model.graph, declared, big)
    return proto, big


def is_big(tensor: ir.TensorProtocol) -> bool:
    """Whether a weight stays out. Vectors of integers never do: shape inference propagates what they hold."""
    if tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
        return False
    sizes = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and len(tensor.shape) < 2
    return not sizes or tensor.nbytes >= 1 << 22


def _graph(
    out: onnx.GraphProto, graph: ir.Graph, declared: Callable[[ir.Node], bool], big: Tensors | None = None
) -> None:
    """Fill `out`; without `big`, the graph is inside a node and all its initializers are written."""
    out.name = graph.name or "graph"
    out.input.extend(ir.serde.serialize_value(v) for v in graph.inputs)
    for v in graph.outputs:
        maker = v.producer()
        free = big is None and maker is not None and not declared(maker)
        out.output.append(onnx.ValueInfoProto(name=v.name) if free else ir.serde.serialize_value(v))
    for name, value in graph.initializers.items():
        if (tensor := value.const_value) is not None:
            _initializer(out.initializer.add(), name, tensor, big)
    for node in graph:
        _node(out.node.add(), node, declared)
        if declared(node):
            out.value_info.extend(_infos(node.outputs))


def _initializer(out: onnx.TensorProto, name: str, tensor: ir.TensorProtocol, big: Tensors | None) -> None:
    if tensor.dtype == ir.DataType.STRING:
        out.CopyFrom(ir.serde.serialize_tensor(tensor))
        out.name = name
        return
    out.name, out.data_type = name, int(tensor.dtype)
    out.dims.extend(tensor.shape.numpy())
    if big is not None and is_big(tensor):
        big[name] = tensor
        out.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", PLACE), ("offset", "0"), ("length", str(tensor.nbytes))):
            out.external_data.add(key=key, value=value)
    else:
        out.raw_data = tensor.tobytes()


def _node(out: onnx.NodeProto, node: ir.Node, declared: Callable[[ir.Node], bool]) -> None:
    out.op_type, out.domain, out.name, out.overload = node.op_type, node.domain, node.name or "", node.overload
    out.input.extend(["" if v is None else v.name or "" for v in node.inputs])
    names = [v.name or "" for v in node.outputs]
    while names and not names[-1]:
        names.pop()
    out.output.extend(names)
    for a in node.attributes.data.values():
        field = _FIELDS.get(a.type)
        if a.is_ref():
            ir.serde.serialize_reference_attribute_into(out.attribute.add(), a)
        elif field is not None:
            out.attribute.add(name=a.name, type=int(a.type), **{field: a.value})
        elif a.type == ir.AttributeType.GRAPH:
            inner = out.attribute.add(name=a.name, type=onnx.AttributeProto.GRAPH)
            _graph(inner.g, a.as_graph(), declared)
        else:
            out.attribute.append(ir.serde.serialize_attribute(a))


def _infos(values: Iterable[ir.Value]) -> list[onnx.ValueInfoProto]:
    found = []
    for value in values:
        if not value.name or value.is_graph_output() or (value.type is None and value.shape is None):
            continue
        dims = None if value.shape is None else value.shape.dims
        if isinstance(value.type, ir.TensorType) and dims is not None and all(isinstance(d, int) for d in dims):
            info = onnx.ValueInfoProto(name=value.name)
            info.type.tensor_type.elem_type = int(value.type.dtype)
            shape = info.type.tensor_type.shape
            shape.SetInParent()
            for d in dims:
                shape.dim.add(dim_value=d)
            found.append(info)
        else:
            found.append(ir.serde.serialize_value(value))
    return found
