"""A model as a protobuf that is run or checked, not kept: structure, types, small constants.

`ir.to_proto` keeps everything and takes many times as long; a compilation needs some forty of these. (It even asks of
every object which protocols it follows, so it is not used for the parts either.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx
import onnx_ir as ir

from .rounding import Exact
from .weights import SMALL

PLACE = "weights"
"""The file, which doesn't exist, that big initializers point into."""

_FIELDS = {
    ir.AttributeType.INT: "i", ir.AttributeType.INTS: "ints", ir.AttributeType.FLOAT: "f",
    ir.AttributeType.FLOATS: "floats",
}  # fmt: skip

Tensors = dict[str, ir.TensorProtocol]
Declared = Callable[[ir.Node], bool]

ROUNDED = Exact()
"""The model as it is, with whatever it rounds."""


def nowhere(_: ir.Node) -> bool:
    """For `bare_proto`: declare the outputs of no node."""
    return False


def bare_proto(
    model: ir.Model, declared: Declared = nowhere, exact: Exact = ROUNDED
) -> tuple[onnx.ModelProto, Tensors]:
    """The model without big weights, texts and notes, and the big weights of its main graph by name.

    A weight above `weights.SMALL` bytes is external data in the file `PLACE`. The types and shapes of a node's outputs
    are written where `declared` says so; those of the model's own inputs and outputs always. With `exact`, see
    `rounding.exactly`, the rounding pairs are left out.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(ir.serde.serialize_function(function))
    big: Tensors = {}
    _graph(proto.graph, model.graph, declared, exact, big)
    return proto, big


def is_big(tensor: ir.TensorProtocol) -> bool:
    """Whether a weight stays out. Vectors of integers never do: shape inference propagates what they hold."""
    if tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
        return False
    sizes = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and len(tensor.shape) < 2
    return not sizes or tensor.nbytes >= 1 << 22


def _graph(out: onnx.GraphProto, graph: ir.Graph, declared: Declared, exact: Exact, big: Tensors | None = None) -> None:
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
    # By keywords, all at once: field by field takes three times as long.
    add, stands_for, gone = out.node.add, exact.stands_for, exact.gone
    for node in graph:
        if node in gone:
            continue
        inputs = node.inputs
        if stands_for:
            inputs = [v if v is None else stands_for.get(v, v) for v in inputs]
        names = [v.name or "" for v in node.outputs]
        while names and not names[-1]:
            names.pop()
        if node in exact.copies:
            add(op_type="Identity", name=node.name, input=[exact.copies[node].name or ""], output=names)
        else:
            made = add(
                op_type=node.op_type,
                name=node.name,
                input=["" if v is None else v.name or "" for v in inputs],
                output=names,
            )
            _rest(made, node, declared, exact)
        if declared is not nowhere and declared(node):
            _infos(out.value_info, node.outputs)


def _initializer(out: onnx.TensorProto, name: str, tensor: ir.TensorProtocol, big: Tensors | None) -> None:
    if tensor.dtype == ir.DataType.STRING:
        out.CopyFrom(ir.serde.serialize_tensor(tensor))
        out.name = name
        return
    stored = tensor.raw if isinstance(tensor, ir.TensorProtoTensor) else None
    if stored is not None and 0 < len(stored.raw_data) <= SMALL:
        # As it was read: asking it for type, size and bytes one by one takes ten times as long.
        out.CopyFrom(stored)
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


def _rest(out: onnx.NodeProto, node: ir.Node, declared: Declared, exact: Exact) -> None:
    """What few nodes have: a domain, an overload, attributes."""
    if node.domain:
        out.domain = node.domain
    if node.overload:
        out.overload = node.overload
    for a in node.attributes.data.values():  # `.data`: what the mapping around it does for each item takes long
        field = _FIELDS.get(a.type)
        if a.is_ref():
            ir.serde.serialize_reference_attribute_into(out.attribute.add(), a)
        elif field is not None:
            out.attribute.add(name=a.name, type=int(a.type), **{field: a.value})
        elif a.type == ir.AttributeType.GRAPH:
            inner = out.attribute.add(name=a.name, type=onnx.AttributeProto.GRAPH)
            _graph(inner.g, a.as_graph(), declared, exact)
        else:
            out.attribute.append(ir.serde.serialize_attribute(a))


def _infos(out: Any, values: Iterable[ir.Value]) -> None:
    """Add the types and shapes of the values that are no outputs of a graph to `out`, a repeated field."""
    for value in values:
        kind, shape = value.type, value.shape
        if not value.name or value.is_graph_output() or (kind is None and shape is None):
            continue
        dims = None if shape is None else shape.dims
        if isinstance(kind, ir.TensorType) and dims is not None and all(isinstance(d, int) for d in dims):
            tensor = out.add(name=value.name).type.tensor_type
            tensor.elem_type = kind.dtype.value
            tensor.shape.SetInParent()
            add = tensor.shape.dim.add
            for d in dims:
                add(dim_value=d)
        else:
            out.append(ir.serde.serialize_value(value))
