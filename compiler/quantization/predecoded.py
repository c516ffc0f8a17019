"""Weights that a session gets decoded: what the functions of domain `edgec` make of stored bytes, computed beforehand.

Only where their bodies in the model are ours, word for word: a file may say anything under these names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from ..functions import BODIES, DOMAIN, function
from ..graph import const_tensor
from ..weights import SMALL
from .decoding import DECODERS, Bits, Part, plain

MOST = 512 << 20
"""Bytes of decoded weights that a session may hold; those beyond are left to onnxruntime, one at a time."""


def predecode(model: ir.Model, proto: onnx.ModelProto, tensors: dict[str, ir.TensorProtocol], place: str) -> None:
    """Put decoded weights in the place of the nodes of the main graph that make them, in `proto` and `tensors`.

    `proto` is `model` with its big weights in `tensors`, as external data in a file `place`.
    """
    known = {op for op in DECODERS if _is_ours(model, op)}
    chosen = _chosen(model, known) if known else []
    gone: set[ir.Node] = set()
    made = proto.graph.initializer
    for root in chosen:
        try:
            array = plain(_decoded(root))
        except (ValueError, IndexError):
            continue  # Bytes that don't fit together: onnxruntime says what is wrong with them.
        name = root.outputs[0].name or ""
        tensor = made.add(name=name, data_type=int(ir.DataType.from_numpy(array.dtype)), dims=array.shape)
        if array.nbytes <= SMALL:
            tensor.raw_data = array.tobytes()
        else:
            tensors[name] = ir.Tensor(array, name=name)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", place), ("offset", "0"), ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=value)
        gone.update(_needless(root, gone))
    if gone:
        _drop(proto, tensors, gone)


def decoded(model: ir.Model, value: ir.Value, chain: Sequence[ir.Node]) -> np.ndarray | None:
    """The weight `value` that these nodes make; None where one is no function of ours, or the bytes don't fit."""
    ops = {n.op_type if n.domain == DOMAIN and not n.overload else "" for n in chain}
    node = value.producer()
    if node is None or not all(op in DECODERS and _is_ours(model, op) for op in ops):
        return None
    try:
        return plain(_decoded(node))
    except (ValueError, IndexError):
        return None


def _chosen(model: ir.Model, known: set[str]) -> list[ir.Node]:
    """The nodes that hand a weight to others than decoding nodes, as many as there is memory for."""
    good: dict[ir.Node, None] = {}
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in known and not node.overload:
            ready = all(v is not None and (_stored(v) or v.producer() in good) for v in node.inputs)
            if ready and not node.outputs[0].is_graph_output():
                good[node] = None
    left, found = MOST, []
    for node in good:
        out = node.outputs[0]
        if all(user in good for user, _ in out.uses()):
            continue
        size = math.prod(_dims(node)) * 4
        if size <= left:
            left -= size
            found.append(node)
    return found


def _dims(node: ir.Node) -> Sequence[int]:
    """The shape of what a decoding node makes: its own attribute, or that of what it scales."""
    if "shape" in node.attributes:
        return node.attributes["shape"].as_ints()
    (source, *_) = node.inputs
    assert source is not None
    maker, tensor = source.producer(), const_tensor(source)
    if maker is not None:
        return _dims(maker)
    return () if tensor is None else tensor.shape.numpy()


def _stored(value: ir.Value) -> bool:
    return const_tensor(value) is not None


def _decoded(node: ir.Node) -> Part:
    inputs = []
    for value in node.inputs:
        assert value is not None
        maker = value.producer()
        inputs.append(_constant(value) if maker is None else _decoded(maker))
    return DECODERS[node.op_type](inputs, {a.name: a.value for a in node.attributes.values()})


def _constant(value: ir.Value) -> Part:
    tensor = const_tensor(value)
    assert tensor is not None
    if tensor.dtype in (ir.DataType.UINT2, ir.DataType.UINT4):
        return Bits(np.frombuffer(tensor.tobytes(), np.uint8), tensor.dtype.bitwidth, tuple(tensor.shape.numpy()))
    array = tensor.numpy()
    return array.astype(np.int8) if tensor.dtype in (ir.DataType.INT2, ir.DataType.INT4) else array


def _needless(root: ir.Node, gone: set[ir.Node]) -> Iterator[ir.Node]:
    """The nodes that nobody needs when the result of `root` is there."""
    yield root
    gone.add(root)
    for value in root.inputs:
        maker = None if value is None else value.producer()
        if value is not None and maker is not None and all(user in gone for user, _ in value.uses()):
            yield from _needless(maker, gone)


def _drop(proto: onnx.ModelProto, tensors: dict[str, ir.TensorProtocol], gone: set[ir.Node]) -> None:
    """Leave out these nodes, and the constants that only they read."""
    names = {n.outputs[0].name for n in gone}
    read = {v for n in gone for v in n.inputs if v is not None and all(user in gone for user, _ in v.uses())}
    unread = {v.name for v in read if _stored(v) and not v.is_graph_output()}
    kept = [n for n in proto.graph.node if n.output[0] not in names]
    left = [t for t in proto.graph.initializer if t.name not in unread]
    copy = onnx.GraphProto(node=kept, initializer=left)
    for field in ("node", "initializer"):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(getattr(copy, field))
    for name in unread & tensors.keys():
        del tensors[name or ""]


def _is_ours(model: ir.Model, op: str) -> bool:
    """Whether the function's body in the model is the one of compiler/functions.py."""
    found = model.functions.get((DOMAIN, op, ""))
    return found is not None and _text(found) == _ours(op)


@functools.cache
def _ours(op: str) -> bytes:
    assert op in BODIES
    return _text(function(op))


def _text(function: ir.Function) -> bytes:
    """All that counts of a function."""
    proto = ir.serde.serialize_function(function)
    for field in ("doc_string", "value_info", "metadata_props"):
        proto.ClearField(field)
    for node in proto.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    return bytes(proto.SerializeToString(deterministic=True))
