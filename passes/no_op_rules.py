"""When a node hands on what it gets: a rule per operator, from constants, known shapes, types and ranges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.shape_values import LAST, slice_args
from .value_ranges import at_least, clip_bounds


def _same_dims(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether the two have provably equal dimensions: the same numbers and the same symbols."""
    dims = graph.shape(a)
    return dims is not None and None not in dims and dims == graph.shape(b)


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _same_shape(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if _same_dims(node.inputs[0], node.outputs[0]) else None


def _only_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: ir.Node) -> ir.Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return node.inputs[0] if training is None or graph.scalar(training) == 0 else None


def _filled_with(value: ir.Value | None, number: float) -> bool:
    """Whether all elements of a constant equal `number`. Big ones are looked at, too, the first element first."""
    tensor = None if value is None else graph.const_tensor(value)
    if tensor is None or tensor.size == 0 or tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy()
    return bool(array.flat[0] == number) and bool(np.all(array == number))


def _neutral(number: float, *sides: int) -> Callable[[ir.Node], ir.Value | None]:
    """A rule for binary operators: the input on one of these `sides` is all `number`, and doesn't widen the other."""

    def rule(node: ir.Node) -> ir.Value | None:
        for side in sides:
            other = node.inputs[1 - side]
            if _filled_with(node.inputs[side], number) and _keeps_shape(node, node.inputs[side], other):
                return other
        return None

    return rule


def _keeps_shape(node: ir.Node, constant: ir.Value | None, other: ir.Value | None) -> bool:
    dims, rank = graph.static_shape(constant), graph.rank(other)
    if dims is not None and rank is not None and len(dims) <= rank and all(d == 1 for d in dims):
        return True
    return _same_dims(other, node.outputs[0])


def _pad(node: ir.Node) -> ir.Value | None:
    pads = graph.ints(node.inputs[1])
    return node.inputs[0] if pads is not None and not any(pads) else None


def _slice(node: ir.Node) -> ir.Value | None:
    args = slice_args(node)
    dims = graph.shape(node.inputs[0])
    if args is None or dims is None:
        return None
    for start, end, axis, step in zip(*args, strict=True):
        size = dims[axis]
        all_of_it = end >= (size if isinstance(size, int) else LAST)
        if not (step == 1 and all_of_it and (start == 0 or (isinstance(size, int) and start <= -size))):
            return None
    return node.inputs[0]


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = graph.attr(node, "perm")
    return node.inputs[0] if perm is not None and list(perm) == sorted(perm) else None


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    same = source is not None and source.dtype is not None and int(source.dtype) == graph.attr(node, "to")
    return source if same else None


def _relu(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if at_least(node.inputs[0], 0) else None


def _clip(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    low, high = clip_bounds(node)
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return None
    if low == -np.inf and high == np.inf:
        return source
    before = graph.producer(source, "Clip")
    if before is not None:
        low0, high0 = clip_bounds(before)
        return source if low0 is not None and high0 is not None and low <= low0 <= high0 <= high else None
    unit = graph.producer(source, "Sigmoid", "HardSigmoid", "Softmax")
    return source if unit is not None and low <= 0 and high >= 1 else None


def _involution(node: ir.Node) -> ir.Value | None:
    before = graph.producer(node.inputs[0], node.op_type)
    return before.inputs[0] if before is not None else None


def _idempotent(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if graph.producer(node.inputs[0], node.op_type) is not None else None


def _where(node: ir.Node) -> ir.Value | None:
    condition = node.inputs[0]
    for number, chosen in ((1, node.inputs[1]), (0, node.inputs[2])):
        if _filled_with(condition, number) and _same_dims(chosen, node.outputs[0]):
            return chosen
    return node.inputs[1] if node.inputs[1] is node.inputs[2] and _same_dims(node.inputs[1], node.outputs[0]) else None


def _split(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _concat(node: ir.Node) -> ir.Value | None:
    """One input; or all outputs of a Split along the same axis, in their order."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    split = graph.producer(node.inputs[0], "Split")
    if split is None or list(split.outputs) != list(node.inputs):
        return None
    rank = graph.rank(split.inputs[0])
    axes = [graph.attr(split, "axis", 0), graph.attr(node, "axis")]
    if rank is None or axes[0] % rank != axes[1] % rank:
        return None
    return split.inputs[0]


def _resize(node: ir.Node) -> ir.Value | None:
    """The same size, with a sampling grid that then is the identity."""
    grid = graph.attr(node, "coordinate_transformation_mode", "half_pixel")
    if grid in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return None
    scales = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        return node.inputs[0] if bool(np.all(scales == 1)) else None
    dims = graph.static_shape(node.inputs[0])
    return node.inputs[0] if dims is not None and dims == graph.static_shape(node.outputs[0]) else None


def _reduce(node: ir.Node) -> ir.Value | None:
    """Over axes of length 1 that are kept, or over none at all."""
    axes = graph.ints(node.inputs[1]) if len(node.inputs) > 1 else []
    if axes == [] and graph.attr(node, "noop_with_empty_axes", 0):
        return node.inputs[0]
    dims = graph.shape(node.inputs[0])
    if not axes or dims is None or not graph.attr(node, "keepdims", 1):
        return None
    return node.inputs[0] if all(dims[a] == 1 for a in axes) else None


def _pool(node: ir.Node) -> ir.Value | None:
    """Windows of one element, at every position."""
    kernel, pads = graph.attr(node, "kernel_shape", ()), graph.attr(node, "pads", ())
    one = all(k == 1 for k in kernel) and all(s == 1 for s in graph.attr(node, "strides", ())) and not any(pads)
    return node.inputs[0] if one and _same_dims(node.inputs[0], node.outputs[0]) else None


def _global_pool(node: ir.Node) -> ir.Value | None:
    dims = graph.shape(node.inputs[0])
    return node.inputs[0] if dims is not None and all(d == 1 for d in dims[2:]) else None


RULES: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Add": _neutral(0, 0, 1),  # -0.0 + 0.0 is +0.0: equal as a number; only 1/x or a sign bit could tell
    "And": _neutral(1, 0, 1),
    "AveragePool": _pool,
    "BitwiseNot": _involution,
    "Cast": _cast,
    "Ceil": _idempotent,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _neutral(1, 1),
    "Dropout": _dropout,
    "Expand": _same_shape,
    "Flatten": _same_shape,
    "Floor": _idempotent,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Identity": _first,
    "Max": _only_input,
    "MaxPool": _pool,
    "Mean": _only_input,
    "Min": _only_input,
    "Mul": _neutral(1, 0, 1),
    "Neg": _involution,
    "Not": _involution,
    "Or": _neutral(0, 0, 1),
    "Pad": _pad,
    "Pow": _neutral(1, 1),
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Relu": _relu,
    "Reshape": _same_shape,
    "Resize": _resize,
    "Round": _idempotent,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _same_shape,
    "Sub": _neutral(0, 1),
    "Sum": _only_input,
    "Tile": _same_shape,
    "Transpose": _transpose,
    "Unsqueeze": _same_shape,
    "Where": _where,
    "Xor": _neutral(0, 0, 1),
}
"""Per operator: the input that its output always equals, or None where that can't be told."""
