"""What is known, before anything runs, of the small integer tensors that shapes are computed with.

An evaluator goes over the graph once and gives, for every such value, an array of elements: an int, a `Poly` in the
symbols of symbolic dimensions, True or False, or None where nothing is known. It also learns what the anonymous symbols
of shape inference (`unk__7`) stand for, which inference itself doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from . import dims as d
from . import graph, ops
from .dims import Dim, Poly

MOST = 64
"""Elements up to which a tensor is followed; shapes are shorter."""

Elements = np.ndarray[Any, np.dtype[np.object_]]
_KINDS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_ANONYMOUS = "unk__"
_NAMELESS = frozenset({"", "?", "None", "-1", "unk", "unknown"})
"""What exporters write for "some size": the same word twice doesn't mean the same size."""


class ShapeValues:
    """The elements and dimensions of a model's values. Valid as long as the values' meaning doesn't change."""

    def __init__(self, model: ir.Model) -> None:
        self.found: dict[ir.Value, Elements] = {}
        self.bound: dict[str, Dim] = {}
        self.source: dict[str, tuple[ir.Value, int]] = {}
        self.main = model.graph
        for value in model.graph.inputs:
            self._note_symbols(value)
        self._visit(model.graph)

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions of a value, each a number or a polynomial; None for an unknown rank."""
        shape = graph.shape(value)
        if shape is None or value is None:
            return None
        found: list[Dim] = []
        for i, dim in enumerate(shape):
            if isinstance(dim, str) and dim not in _NAMELESS:
                found.append(self.bound.get(dim, d.atom(dim)))
            else:
                found.append(dim if isinstance(dim, int) else d.atom(("dim", value.name, id(value), i)))
        return found

    def elements(self, value: ir.Value | None) -> Elements | None:
        """The elements of a small integer or boolean tensor, as an array of its shape."""
        if value is None:
            return None
        known = self.found.get(value)
        if known is None:
            tensor = graph.const_tensor(value)
            if tensor is not None and tensor.size <= MOST and tensor.dtype in _KINDS:
                known = self.found[value] = tensor.numpy().astype(object)
        return known

    def _visit(self, g: ir.Graph) -> None:
        for node in g:
            if node.domain == "" and node.outputs:
                self._evaluate(node)
                self._learn(node)
            if g is self.main:
                for out in node.outputs:
                    self._note_symbols(out)
            for inner in graph.subgraphs(node):
                self._visit(inner)

    def _note_symbols(self, value: ir.Value) -> None:
        """Remember where a symbol can be read off first."""
        for i, dim in enumerate(graph.shape(value) or ()):
            if isinstance(dim, str) and dim not in self.source and dim not in self.bound and dim not in _NAMELESS:
                self.source[dim] = (value, i)

    def _evaluate(self, node: ir.Node) -> None:
        rule = _RULES.get(node.op_type)
        if rule is None or node.outputs[0].dtype not in _KINDS:
            return
        results = rule(self, node)
        if results is None:
            return
        for out, array in zip(node.outputs, results if isinstance(results, list) else [results], strict=False):
            if array.size <= MOST:
                self.found[out] = array

    def _learn(self, node: ir.Node) -> None:
        """Bind the anonymous symbols in the shape of the first output, where the operator says what they are."""
        shape = graph.shape(node.outputs[0])
        if shape is None or not any(isinstance(s, str) and s.startswith(_ANONYMOUS) for s in shape):
            return
        rule = _SHAPES.get(node.op_type) or (_broadcast if node.op_type in ops.BROADCAST else None)
        dims = rule(self, node) if rule is not None else None
        if dims is None or len(dims) != len(shape):
            return
        for name, dim in zip(shape, dims, strict=True):
            fresh = isinstance(name, str) and name.startswith(_ANONYMOUS) and name not in self.bound
            if fresh and dim is not None and name not in self.source:
                self.bound[str(name)] = dim


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
    return None if dims is None else _scalar(product(dims))


def product(dims: Sequence[Dim]) -> Dim:
    """The number of elements of a tensor of this shape."""
    result: Dim = 1
    for dim in dims:
        result = d.mul(result, dim)
    return result


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
    taken = np.take(data, np.array(chosen, np.int64).reshape(indices.shape), axis=axis)
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


_RULES: dict[str, Callable[[ShapeValues, ir.Node], Elements | list[Elements] | None]] = {
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

Shape = Sequence[Dim | None]


def _broadcast(values: ShapeValues, node: ir.Node) -> Shape | None:
    shapes = [values.dims(v) for v in node.inputs]
    return None if any(s is None for s in shapes) else broadcast([s for s in shapes if s is not None])


def broadcast(shapes: Sequence[Sequence[Dim]]) -> Shape:
    """The shape that these broadcast to; None for a dimension that isn't certain."""
    rank = max(map(len, shapes))
    found: list[Dim | None] = []
    for column in zip(*([1] * (rank - len(s)) + list(s) for s in shapes), strict=True):
        others = {dim for dim in column if dim != 1}
        numbers = {dim for dim in others if isinstance(dim, int)}
        found.append(1 if not others else others.pop() if len(others) == 1 else numbers.pop() if numbers else None)
    return found


def reshape_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    """What a Reshape returns: its target with 0 and -1 worked out."""
    target, source = values.elements(node.inputs[1]), values.dims(node.inputs[0])
    if target is None or source is None or target.ndim != 1:
        return None
    dims: list[Dim | None] = list(target)
    if not graph.attr(node, "allowzero", 0):
        dims = [(source[i] if i < len(source) else None) if t == 0 else t for i, t in enumerate(dims)]
    if -1 in dims:
        rest = [t for t in dims if t != -1]
        known = [t for t in rest if t is not None]
        whole = d.exact_div(product(source), product(known)) if len(known) == len(rest) else None
        dims[dims.index(-1)] = whole
    return [None if isinstance(t, int) and t < 0 else t for t in dims]


def _expand_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    target, source = values.elements(node.inputs[1]), values.dims(node.inputs[0])
    if target is None or source is None or target.ndim != 1 or any(t is None for t in target):
        return None
    return broadcast([source, list(target)])


def _concat_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    shapes = [values.dims(v) for v in node.inputs]
    if not shapes or shapes[0] is None or any(s is None for s in shapes):
        return None
    axis = graph.attr(node, "axis") % len(shapes[0])
    total: Dim = 0
    for s in shapes:
        total = d.add(total, s[axis] if s is not None else 0)
    return [total if i == axis else dim for i, dim in enumerate(shapes[0])]


def _given_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    target = values.elements(node.inputs[0])
    return None if target is None or target.ndim != 1 else list(target)


def _range_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    start, end, step = (values.elements(v) for v in node.inputs)
    if start is None or end is None or step is None or start.item() != 0 or step.item() != 1:
        return None
    return [end.item() if end.item() is not None and d.sign(end.item())[0] else None]


_SHAPES: dict[str, Callable[[ShapeValues, ir.Node], Shape | None]] = {
    "Concat": _concat_dims,
    "ConstantOfShape": _given_dims,
    "Expand": _expand_dims,
    "Range": _range_dims,
    "Reshape": reshape_dims,
}
