"""How large the results are of operators that move data: slices, what is put together, taken apart and repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim, Poly
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, axes_of, given, join, plain, sizes_of

if TYPE_CHECKING:
    from .sizes import Sizes


def _concat(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    shapes = [s for v in node.inputs if (s := sizes.dims(v)) is not None]
    if len(shapes) < len(node.inputs):
        return None
    axis = attr(node, "axis") % len(shapes[0])
    total: Dim = 0
    for s in shapes:
        total = d.add(total, s[axis])
    # The other axes are equal in all; a number among them says most.
    columns = [next((x for x in column if isinstance(x, int)), column[0]) for column in zip(*shapes, strict=True)]
    return [[total if i == axis else dim for i, dim in enumerate(columns)]]


def _split(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis, count = attr(node, "axis", 0) % len(dims), len(node.outputs)
    value = given(node, 1)
    named = sizes_of(sizes, value) if value is not None else attr(node, "split")
    if named is None and value is None:
        chunk = bounds.ceil_div(dims[axis], count)
        named = [chunk] * (count - 1) + [d.sub(dims[axis], d.mul(chunk, count - 1))]
    parts: Sequence[Dim | None] = named or [None] * count
    return [[part if i == axis else dim for i, dim in enumerate(dims)] for part in parts]


def _slice(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    starts, ends, steps = (_slice_argument(sizes, node, i, name) for i, name in ((1, "starts"), (2, "ends"), (4, "")))
    axes = axes_of(sizes, node, 3, len(dims))
    if axes is None:
        return [[None] * len(dims)]
    result: list[Dim | None] = list(dims)
    if starts is None or ends is None or (steps is None and given(node, 4) is not None):
        return [[None if i in axes else dim for i, dim in enumerate(dims)]]
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=False):
        result[axis] = _sliced(dims[axis], start, end, step)
    return [result]


def _slice_argument(sizes: Sizes, node: ir.Node, index: int, name: str) -> Sequence[Dim | None] | None:
    """Starts, ends or steps: inputs, or attributes up to opset 9."""
    value = given(node, index)
    return sizes_of(sizes, value) if value is not None else attr(node, name)


def _sliced(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many elements of `size` a slice takes: ceil((end - start) / step), both clamped to what there is."""
    if start is None or end is None or not isinstance(step, int) or step == 0:
        return None
    first = _clamped(size, start, step)
    last = _clamped(size, end, step)
    if first is None or last is None:
        return None
    span = d.sub(last, first) if step > 0 else d.sub(first, last)
    return bounds.maximum([bounds.ceil_div(span, abs(step)), 0])


END = 10**9
"""From here on, exporters mean "to the end" by a slice's end: no tensor is that long."""


def _clamped(size: Dim, index: Dim, step: int) -> Dim | None:
    """Where a slice starts or ends: negative indices count from the end; clamped to [0, n], backwards to [-1, n-1]."""
    least, most = (0, size) if step > 0 else (-1, d.sub(size, 1))
    if isinstance(index, int) and abs(index) >= END:
        return most if index > 0 else least
    if bounds.at_least(index, 0):
        return bounds.minimum([index, most])
    if bounds.at_least(d.mul(index, -1), 1):
        return bounds.maximum([d.add(size, index), least])
    return None


def _gather(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    data, indices = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if data is None or indices is None:
        return None
    axis = attr(node, "axis", 0) % len(data)
    return [[*data[:axis], *indices, *data[axis + 1 :]]]


def _gather_nd(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    data, indices = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if data is None or indices is None or not isinstance(indices[-1], int):
        return None
    return [[*indices[:-1], *data[attr(node, "batch_dims", 0) + indices[-1] :]]]


def _like(index: int) -> Rule:
    return lambda sizes, node: [plain(sizes.dims(node.inputs[index]))]


def _filled(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [sizes_of(sizes, node.inputs[0])]


def _expand(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    source, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if source is None or target is None:
        return None
    rank = max(len(source), len(target))
    columns = zip([1] * (rank - len(source)) + source, [1] * (rank - len(target)) + target, strict=True)
    return [[None if b is None else join([a, b]) for a, b in columns]]


def _tile(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, repeats = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if dims is None or repeats is None:
        return None
    return [[None if r is None else d.mul(dim, r) for dim, r in zip(dims, repeats, strict=True)]]


def _pad(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    pads = sizes_of(sizes, given(node, 1)) if given(node, 1) is not None else attr(node, "pads")
    axes = None if dims is None else axes_of(sizes, node, 3, len(dims))
    if dims is None or axes is None:
        return None
    result: list[Dim | None] = list(dims)
    for i, axis in enumerate(axes):
        before, after = (pads[i], pads[i + len(axes)]) if pads else (None, None)
        result[axis] = None if before is None or after is None else d.add(dims[axis], d.add(before, after))
    return [result]


def _range(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    start, end, step = (_bound(sizes, v) for v in node.inputs)
    if start is None or end is None or step is None or step == 0:
        return [[None]]
    if isinstance(start, Poly) or isinstance(end, Poly) or isinstance(step, Poly):
        if not isinstance(step, int) or isinstance(start, float) or isinstance(end, float):
            return [[None]]
        span = d.sub(end, start) if step > 0 else d.sub(start, end)
        return [[bounds.maximum([bounds.ceil_div(span, abs(step)), 0])]]
    return [[max(math.ceil((end - start) / step), 0)]]


def _bound(sizes: Sizes, value: ir.Value | None) -> Dim | float | None:
    found = sizes.number(value)
    tensor = sizes.tensor(value) if found is None else None
    if tensor is None or tensor.size != 1:
        return found
    number = float(tensor.numpy().reshape(()))
    return int(number) if number.is_integer() else number


def _one_hot(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, depth = sizes.dims(node.inputs[0]), _bound(sizes, node.inputs[1])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % (len(dims) + 1)
    return [[*dims[:axis], None if isinstance(depth, float) else depth, *dims[axis:]]]


def _shape(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return [[None]]
    end = attr(node, "end")
    return [[len(dims[attr(node, "start", 0) : len(dims) if end is None else end])]]


def _constant(_: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    for a in node.attributes.data.values():
        if a.type == ir.AttributeType.TENSOR:
            return [list(a.value.shape.numpy())]
        if a.name.startswith("value_"):
            return [[len(a.value)] if a.name.endswith("s") else []]
    return None


def _center_crop_pad(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if dims is None or target is None:
        return None
    axes = [a % len(dims) for a in attr(node, "axes") or range(len(dims))]
    named = dict(zip(axes, target, strict=True))
    return [[named.get(i, dim) for i, dim in enumerate(dims)]]


RULES: dict[str, Rule] = {
    "CenterCropPad": _center_crop_pad,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _like(1),
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
}
"""Operator → the rule for its outputs' dimensions."""
