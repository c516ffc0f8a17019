"""What each operator makes of the small integer tensors that shapes are computed with, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from . import dims as d
from . import graph
from .dims import Dim

if TYPE_CHECKING:
    from .shape_values import ShapeValues

MOST = 64
"""Elements up to which a tensor is followed; shapes are shorter."""

Elements = np.ndarray[Any, np.dtype[np.object_]]
"""Each element an int, a Poly, True, False, or None where nothing is known."""


def _arrays(values: ShapeValues, node: ir.Node) -> list[Elements] | None:
    found = [values.elements(v) for v in node.inputs]
    return None if any(f is None for f in found) else [f for f in found if f is not None]


def _each(function: Callable[..., Any]) -> Callable[[ShapeValues, ir.Node], Elements | None]:
    """A rule that applies `function` element by element, with broadcasting; unknown in, unknown out."""

    def one(*args: Any) -> Any:
        return None if any(a is None for a in args) else function(*args)

    def rule(values: ShapeValues, node: ir.Node) -> Elements | None:
        arrays = _arrays(values, node)
        if not arrays:
            return None
        if len(arrays) > 2 and node.op_type != "Where":
            return None
        return np.asarray(np.frompyfunc(one, len(arrays), 1)(*arrays), dtype=object)

    return rule


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if condition is None:
        return a if a == b else None
    return a if condition else b


def _where(values: ShapeValues, node: ir.Node) -> Elements | None:
    arrays = _arrays(values, node)
    return None if arrays is None else np.asarray(np.frompyfunc(_choose, 3, 1)(*arrays), dtype=object)


def _extreme(node_max: bool) -> Callable[[Any, Any], Any]:
    def pick(a: Dim, b: Dim) -> Any:
        smaller = d.less(a, b)
        if smaller is None:
            smaller = None if d.less(b, a) is None and a != b else a == b
        if smaller is None:
            return d.atom(("max" if node_max else "min", *sorted((a, b), key=repr)))
        return (b if smaller else a) if node_max else (a if smaller else b)

    return pick


def _shape(values: ShapeValues, node: ir.Node) -> Elements | None:
    dims = values.dims(node.inputs[0])
    if dims is None:
        return None
    end = graph.attr(node, "end")
    return _array(dims[graph.attr(node, "start", 0) : len(dims) if end is None else end])


def _size(values: ShapeValues, node: ir.Node) -> Elements | None:
    dims = values.dims(node.inputs[0])
    return None if dims is None else _scalar(d.product(dims))


def _array(items: Sequence[Any]) -> Elements:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _scalar(item: Any) -> Elements:
    array = np.empty((), dtype=object)
    array[()] = item
    return array


def _plain(array: Elements | None) -> list[int] | None:
    """The elements, if all are numbers."""
    if array is None or not all(isinstance(e, int | np.integer) for e in array.flat):
        return None
    return [int(e) for e in array.flat]


def _input(values: ShapeValues, node: ir.Node, index: int) -> list[int] | None:
    return _plain(values.elements(node.inputs[index])) if index < len(node.inputs) else None


def _gather(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, indices = values.elements(node.inputs[0]), values.elements(node.inputs[1])
    chosen = _plain(indices)
    axis = graph.attr(node, "axis", 0)
    if data is None or chosen is None or indices is None or not data.ndim:
        return None
    if any(not -data.shape[axis] <= i < data.shape[axis] for i in chosen):
        return None
    taken: Any = np.take(data, np.array(chosen, np.int64).reshape(indices.shape), axis=axis)
    return taken if isinstance(taken, np.ndarray) else _scalar(taken)


def _slice(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, starts, ends = values.elements(node.inputs[0]), _input(values, node, 1), _input(values, node, 2)
    if data is None or starts is None or ends is None:
        return None
    has_axes, has_steps = (len(node.inputs) > i and node.inputs[i] is not None for i in (3, 4))
    axes = _input(values, node, 3) if has_axes else list(range(len(starts)))
    steps = _input(values, node, 4) if has_steps else [1] * len(starts)
    if axes is None or steps is None:
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        if step < 0 and end < -size:
            stop: int | None = None
        else:
            stop = end
        index: list[slice] = [slice(None)] * data.ndim
        index[axis] = slice(start, stop, step)
        data = data[tuple(index)]
    return data


def _concat(values: ShapeValues, node: ir.Node) -> Elements | None:
    arrays = _arrays_or_unknown(values, node)
    return None if arrays is None else np.concatenate(arrays, axis=graph.attr(node, "axis"))


def _arrays_or_unknown(values: ShapeValues, node: ir.Node) -> list[Elements] | None:
    """Inputs of which only the length is known become that many unknowns."""
    found = []
    for v in node.inputs:
        array = values.elements(v)
        if array is None:
            dims = graph.static_shape(v)
            if dims is None or len(dims) != 1 or dims[0] > MOST:
                return None
            array = np.full(dims, None, dtype=object)
        found.append(array)
    return found


def _reshape(values: ShapeValues, node: ir.Node) -> Elements | None:
    """Reshape, Squeeze, Unsqueeze, Flatten: the result's shape is known by inference or by the constant argument."""
    data = values.elements(node.inputs[0])
    target = graph.static_shape(node.outputs[0])
    if data is None:
        return None
    if target is None and node.op_type == "Reshape":
        wanted = _input(values, node, 1)
        return None if wanted is None or 0 in wanted else data.reshape(wanted)
    return None if target is None else data.reshape(target)


def _cast(values: ShapeValues, node: ir.Node) -> Elements | None:
    data = values.elements(node.inputs[0])
    if data is None:
        return None
    if node.outputs[0].dtype == ir.DataType.BOOL:
        return np.asarray(np.frompyfunc(_truth, 1, 1)(data), dtype=object)
    return np.asarray(np.frompyfunc(lambda e: int(e) if isinstance(e, bool) else e, 1, 1)(data), dtype=object)


def _truth(e: Any) -> bool | None:
    return None if e is None else (not same if (same := d.equal(e, 0)) is not None else None)


def _constant_of_shape(values: ShapeValues, node: ir.Node) -> Elements | None:
    sizes = _input(values, node, 0)
    if sizes is None or np.prod(sizes, dtype=np.float64) > MOST:
        return None
    fill = graph.attr(node, "value")
    return np.full(sizes, 0 if fill is None else fill.numpy().reshape(-1)[0].item(), dtype=object)


def _expand(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, sizes = values.elements(node.inputs[0]), _input(values, node, 1)
    if data is None or sizes is None or np.prod(sizes, dtype=np.float64) > MOST:
        return None
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(sizes)))


def _tile(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, repeats = values.elements(node.inputs[0]), _input(values, node, 1)
    if data is None or repeats is None or data.size * np.prod(repeats, dtype=np.float64) > MOST:
        return None
    return np.tile(data, repeats)


def _range(values: ShapeValues, node: ir.Node) -> Elements | None:
    bounds = [_input(values, node, i) for i in range(3)]
    if any(b is None for b in bounds):
        return None
    start, end, step = (b[0] for b in bounds if b is not None)
    return _array(list(range(start, end, step))) if step and abs(end - start) <= MOST * abs(step) else None


def _reduce(combine: Callable[[Any, Any], Any]) -> Callable[[ShapeValues, ir.Node], Elements | None]:
    def rule(values: ShapeValues, node: ir.Node) -> Elements | None:
        data = values.elements(node.inputs[0])
        if data is None or data.ndim != 1 or not data.size or any(e is None for e in data):
            return None
        if graph.attr(node, "noop_with_empty_axes", 0) and len(node.inputs) < 2:
            return None
        result = data[0]
        for e in data[1:]:
            result = combine(result, e)
        return _array([result]) if graph.attr(node, "keepdims", 1) else _scalar(result)

    return rule


def _split(values: ShapeValues, node: ir.Node) -> list[Elements] | None:
    data = values.elements(node.inputs[0])
    if data is None or data.ndim != 1:
        return None
    sizes = [graph.static_shape(o) for o in node.outputs]
    if any(s is None for s in sizes):
        return None
    ends = np.cumsum([s[0] for s in sizes if s is not None])
    return list(np.split(data, ends[:-1]))


def _identity(values: ShapeValues, node: ir.Node) -> Elements | None:
    return values.elements(node.inputs[0])


RULES: dict[str, Callable[[ShapeValues, ir.Node], Elements | list[Elements] | None]] = {
    "Add": _each(d.add),
    "And": _each(lambda a, b: a and b),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _each(d.div),
    "Equal": _each(d.equal),
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Greater": _each(lambda a, b: d.less(b, a)),
    "GreaterOrEqual": _each(lambda a, b: None if (x := d.less(a, b)) is None else not x),
    "Identity": _identity,
    "Less": _each(d.less),
    "LessOrEqual": _each(lambda a, b: None if (x := d.less(b, a)) is None else not x),
    "Max": _each(_extreme(True)),
    "Min": _each(_extreme(False)),
    "Mod": _each(d.mod),
    "Mul": _each(d.mul),
    "Neg": _each(lambda a: d.mul(a, -1)),
    "Not": _each(lambda a: not a),
    "Or": _each(lambda a, b: a or b),
    "Range": _range,
    "ReduceMax": _reduce(_extreme(True)),
    "ReduceMin": _reduce(_extreme(False)),
    "ReduceProd": _reduce(d.mul),
    "ReduceSum": _reduce(d.add),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _each(d.sub),
    "Tile": _tile,
    "Unsqueeze": _reshape,
    "Where": _where,
}
"""The elements of a node's outputs, or None where the rule can't say."""
