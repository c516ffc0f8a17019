"""Operators with weights, sums and products: where factors begin, meet and end. See `channel_gains`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from .channel_gains import FAR, Ids, Rule, Trace, Unscalable
from .gain_views import same, size_of


def _prelu(trace: Trace, node: ir.Node) -> Ids:
    if not g.is_const(node.inputs[1]):
        raise Unscalable
    return same(trace, node)


def _clip(trace: Trace, node: ir.Node) -> Ids:
    """A Relu; with an upper bound there would have to be one for each channel."""
    low, high = ((node.inputs[i] if i < len(node.inputs) else None) for i in (1, 2))
    top = math.inf if high is None else g.scalar(high)
    ids = same(trace, node)
    if low is None or g.scalar(low) != 0 or top is None or top < np.finfo(np.float32).max:
        if ids.any():
            trace.ctx.note(
                f"{node.name}: {node.op_type} has one bound for all channels, so these keep their ranges before it"
            )
        raise Unscalable
    return ids


def _linear(trace: Trace, node: ir.Node) -> Ids:
    at, data = (0, 1) if node.op_type == "MatMul" and g.is_const(node.inputs[0]) else (1, 0)
    tensor = None if node.inputs[at] is None else g.const_tensor(node.inputs[at])  # type: ignore[arg-type]
    if tensor is None and node.op_type == "MatMul":
        return _product(trace, node)
    dims, x, depth = () if tensor is None else tuple(tensor.shape.numpy()), node.inputs[data], g.rank(node.outputs[0])
    if len(dims) < 2 or x is None or depth is None or g.rank(x) != depth or (at == 0 and len(dims) != 2):
        raise Unscalable
    view, read, made, axis, out = _places(node, dims, at, depth)
    ids = _along(trace.ids(x), axis, math.prod(view[a] for a in read))
    trace.use(node, at, -_over(ids, view, read), "read", view, x)
    fresh = trace.fresh(math.prod(view[a] for a in made))
    trace.use(node, at, _over(fresh, view, made), "made", view)
    if at == 1 and len(node.inputs) > 2:
        _shift(trace, node, fresh)
    return fresh.reshape([-1 if a == out else 1 for a in range(depth)])


def _shift(trace: Trace, node: ir.Node, ids: Ids) -> None:
    """A bias, constant or computed."""
    value = node.inputs[2]
    if value is not None and g.is_const(value):
        trace.use(node, 2, ids, "shift")
    elif value is not None:
        trace.tie(ids, trace.ids(value))


def _places(
    node: ir.Node, dims: tuple[int, ...], at: int, depth: int
) -> tuple[tuple[int, ...], Sequence[int], Sequence[int], int, int]:
    """A view of the weight, its axes that are read and made, and the axes of these channels in input and output."""
    n, groups = len(dims), g.attr(node, "group", 1)
    match node.op_type:
        case "Conv":
            return (groups, dims[0] // groups, dims[1], math.prod(dims[2:])), (0, 2), (0, 1), 1, 1
        case "ConvTranspose":
            return (groups, dims[0] // groups, dims[1], math.prod(dims[2:])), (0, 1), (0, 2), 1, 1
        case "Gemm":
            turned = int(bool(g.attr(node, "transB", 0)))
            return dims, (turned,), (1 - turned,), 0 if g.attr(node, "transA", 0) else 1, 1
    return (dims, (n - 2,), (n - 1,), depth - 1, depth - 1) if at else (dims, (1,), (0,), depth - 2, depth - 2)


def _along(ids: Ids, axis: int, count: int) -> Ids:
    """Ids over one axis. Raises Unscalable where factors differ along others."""
    if ids.size != ids.shape[axis]:
        raise Unscalable
    return np.broadcast_to(ids.reshape(-1), (count,))


def _over(ids: Ids, view: tuple[int, ...], axes: Sequence[int]) -> Ids:
    return ids.reshape([d if a in axes else 1 for a, d in enumerate(view)])


def _product(trace: Trace, node: ir.Node) -> Ids:
    """Of two activations: what is summed over has inverse factors (queries and keys); else those of the second pass."""
    (a, b), depth = (trace.ids(v) for v in node.inputs), g.rank(node.outputs[0])
    if min(a.ndim, b.ndim) < 2 or depth is None or b.shape[-2:].count(1) == 0:
        raise Unscalable
    if a.shape[-2] != 1 or b.shape[-1] != 1:
        trace.fix(a)
        a = np.zeros((1, 1), np.int64)
    if b.shape[-1] != 1:
        return b.reshape((1,) * (depth - b.ndim) + b.shape)
    trace.tie(a[..., 0, :], -b[..., :, 0])
    return np.zeros((1,) * depth, np.int64)


def _norm(trace: Trace, node: ir.Node) -> Ids:
    """What a normalisation reads is fixed; what it makes has the factors of its scale."""
    for value in node.inputs:
        trace.fix(trace.ids(value))
    depth, size = g.rank(node.outputs[0]), g.static_shape(node.inputs[1])
    if depth is None or size is None or len(size) != 1:
        raise Unscalable
    axis = 1
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        axis = depth - 1
        if g.attr(node, "axis", -1) % depth != axis:
            raise Unscalable
    fresh = trace.fresh(size[0])
    trace.use(node, 1, fresh, "made")
    if len(node.inputs) > 2:
        _shift(trace, node, fresh)
    return fresh.reshape([-1 if a == axis else 1 for a in range(depth)])


def _sum(trace: Trace, node: ir.Node) -> Ids:
    """What is added up has one factor, constants as well; of Where all but the condition."""
    first = 1 if node.op_type == "Where" else 0
    varying = [v for v in node.inputs[first:] if v is not None and not g.is_const(v)]
    depth = g.rank(node.outputs[0])
    if depth is None or any(g.rank(v) is None for v in varying) or not varying:
        raise Unscalable
    ids, *others = (trace.ids(v) for v in varying)
    for other in others:
        trace.tie(ids, other)
        ids = np.where(np.broadcast_to(ids == 0, np.broadcast_shapes(ids.shape, other.shape)), other, ids)
    for at, value in enumerate(node.inputs):
        if at >= first and value is not None and g.is_const(value):
            _add_constant(trace, node, at, value, ids)
    return ids.reshape((1,) * (depth - ids.ndim) + ids.shape)


def _add_constant(trace: Trace, node: ir.Node, at: int, value: ir.Value, ids: Ids) -> None:
    tensor = g.const_tensor(value)
    assert tensor is not None
    own = len(tensor.shape)
    if not ids.any() or (tensor.nbytes <= FAR and not tensor.numpy().any()):
        return
    front = ids.shape[: max(0, ids.ndim - own)]
    if any(n != 1 for n in front):
        trace.fix(ids)
    else:
        trace.use(node, at, ids.reshape(ids.shape[len(front) :]), "shift")


def _scaled(trace: Trace, node: ir.Node) -> Ids:
    """Mul and Div: a constant, or the other operand, only scales; its own factors are fixed."""
    a, b = node.inputs
    depth = g.rank(node.outputs[0])
    if depth is None or g.rank(a) is None or g.rank(b) is None or a is b:
        raise Unscalable
    at = 1 if g.is_const(b) else 0
    size = g.static_shape(node.inputs[at])
    if node.op_type == "Mul" and g.is_const(node.inputs[at]) and size and sum(n > 1 for n in size) == 1:
        return _per_channel(trace, node, at, size, depth)
    ids, other = trace.ids(a), trace.ids(b)
    if node.op_type == "Mul" and not ids.any():
        ids, other = other, ids
    trace.fix(other)
    return ids.reshape((1,) * (depth - ids.ndim) + ids.shape)


def _per_channel(trace: Trace, node: ir.Node, at: int, size: tuple[int, ...], depth: int) -> Ids:
    """A constant for each channel takes in old factors and gives others, as a layer of a number for each channel."""
    view, ids = (1,) * (depth - len(size)) + size, trace.ids(node.inputs[1 - at])
    ids, axis = ids.reshape((1,) * (depth - ids.ndim) + ids.shape), int(np.argmax(view))
    if ids.size != ids.shape[axis]:
        raise Unscalable
    trace.use(node, at, -ids, "read", view)
    fresh = trace.fresh(view[axis]).reshape(view)
    trace.use(node, at, fresh, "made", view)
    return fresh


def _attention(trace: Trace, node: ir.Node) -> Ids:
    """Queries and keys have inverse factors, the result those of the values; heads that share them are tied."""
    cached = any(v is not None for v in node.inputs[4:6])
    if cached or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unscalable
    for value in node.inputs[3:]:
        trace.fix(trace.ids(value))
    q, k, v = (_heads(trace, node, i, name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")))
    repeats = len(q) // len(k)
    trace.tie(q, -np.repeat(k, repeats, 0))
    found = np.repeat(v, repeats, 0)
    return found.reshape(1, 1, -1) if g.rank(node.inputs[0]) == 3 else found[None, :, None]


def _heads(trace: Trace, node: ir.Node, i: int, name: str) -> Ids:
    """Ids over heads and their dimensions."""
    value = node.inputs[i]
    ids, depth = trace.ids(value), g.rank(value)
    if depth == 4:
        if ids.shape[0] != 1 or ids.shape[2] != 1:
            raise Unscalable
        return np.broadcast_to(ids[0, :, 0], (size_of(value, 1), size_of(value, 3)))
    heads = g.attr(node, name)
    if depth != 3 or not heads or ids.shape[:2] != (1, 1):
        raise Unscalable
    return np.broadcast_to(ids[0, 0], (size_of(value, 2),)).reshape(heads, -1)


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _linear),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
        _norm,
    ),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Mean", "Where"), _sum),
    **dict.fromkeys(("Mul", "Div"), _scaled),
    "PRelu": _prelu,
    "Clip": _clip,
    "Attention": _attention,
}
