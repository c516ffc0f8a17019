"""What is known, before anything runs, of the small integer tensors that shapes are computed with.

An evaluator goes over the graph once and gives, for every such value, an array of elements: an int, a `Poly` in the
symbols of symbolic dimensions, True or False, or None where nothing is known. It also learns what the anonymous symbols
of shape inference (`unk__7`) stand for, which inference itself doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from . import dims as d
from . import graph, ops
from .dims import Dim, Poly
from .shape_rules import MOST, RULES, Elements

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

    def name_sizes(self, model: ir.Model) -> None:
        """Write what anonymous symbols turned out to be into the shapes: equal sizes then have equal names."""
        names: dict[Dim, str] = {}
        for name, size in self.bound.items():
            names.setdefault(size, size.symbol() or name if isinstance(size, Poly) else name)
        for node in model.graph.all_nodes():
            for out in node.outputs:
                shape = graph.shape(out)
                if shape is not None and any(dim in self.bound for dim in shape):
                    out.shape = ir.Shape([_named(dim, self.bound, names) for dim in shape])

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
        rule = RULES.get(node.op_type)
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


def slice_args(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """starts, ends, axes and steps of a Slice, if all are constant."""
    given = [graph.ints(v) if v is not None else None for v in node.inputs[1:5]] + [None] * (5 - len(node.inputs))
    starts, ends, axes, steps = given
    unknown = any(v is not None and g is None for v, g in zip(node.inputs[1:], given, strict=False))
    if starts is None or ends is None or unknown:
        return None
    return starts, ends, axes or list(range(len(starts))), steps or [1] * len(starts)


LAST = (1 << 31) - 1
"""The least end of a Slice by which exporters mean "to the end"."""


def name_sizes(model: ir.Model) -> None:
    """Give dimensions that inference left anonymous the name of what they are equal to, where that can be told.

    A Reshape from [5,B,96] to [5,-1,8] and back gives [5,B,96] again, and not one more `unk__`.
    """
    if any(isinstance(dim, str) for v in model.graph.inputs for dim in graph.shape(v) or ()):
        ShapeValues(model).name_sizes(model)


def _named(dim: int | str | None, bound: Mapping[str, Dim], names: Mapping[Dim, str]) -> int | str | None:
    if not isinstance(dim, str) or dim not in bound:
        return dim
    size = bound[dim]
    return size if isinstance(size, int) else names[size]


Shape = Sequence[Dim | None]


def _broadcast(values: ShapeValues, node: ir.Node) -> Shape | None:
    shapes = [values.dims(v) for v in node.inputs]
    return None if any(s is None for s in shapes) else broadcast([s for s in shapes if s is not None])


def broadcast(shapes: Sequence[Sequence[Dim]]) -> Shape:
    """The shape that these broadcast to; None for a dimension that isn't certain."""
    rank = max(map(len, shapes))
    found: list[Dim | None] = []
    for column in zip(*([*[1] * (rank - len(s)), *s] for s in shapes), strict=True):
        others = {dim for dim in column if dim != 1}
        others -= {dim for dim in others if any(_is_cut_from(dim, whole) for whole in others)}
        numbers = {dim for dim in others if isinstance(dim, int)}
        found.append(1 if not others else others.pop() if len(others) == 1 else numbers.pop() if numbers else None)
    return found


def _is_cut_from(dim: Dim, whole: Dim) -> bool:
    """Whether `dim` is min(n, whole) for a number n: where the two broadcast at all, the result is `whole`."""
    return isinstance(dim, Poly) and any(
        len(term) == 1
        and isinstance(term[0], tuple)
        and term[0][0] == "min"
        and term[0][1] != 0
        and term[0][2] == whole
        for term, factor in dim.terms
        if factor == 1 and len(dim.terms) == 1
    )


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
        whole = d.exact_div(d.product(source), d.product(known)) if len(known) == len(rest) else None
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


def _slice_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    """What is sliced from 0 to the end stays as long as it was; up to n, it is no longer than n."""
    dims, ends = values.dims(node.inputs[0]), values.elements(node.inputs[2])
    starts = graph.ints(node.inputs[1])
    axes, steps = (graph.ints(v) for v in [*node.inputs[3:], None, None][:2])
    if dims is None or ends is None or starts is None or (len(node.inputs) > 3 and axes is None):
        return None
    if len(node.inputs) > 4 and steps is None:
        return None
    found: list[Dim | None] = list(dims)
    for i, (start, end) in enumerate(zip(starts, ends.reshape(-1), strict=True)):
        at = axes[i] if axes is not None else i
        size = dims[at]
        if start != 0 or (steps and steps[i] != 1) or end is None:
            found[at] = None
        elif isinstance(end, Poly):
            found[at] = d.atom(("min", size, end)) if isinstance(size, int) and d.sign(end)[0] else None
        elif end < LAST:
            found[at] = None
    return found


def _pad_dims(values: ShapeValues, node: ir.Node) -> Shape | None:
    dims, pads = values.dims(node.inputs[0]), graph.ints(node.inputs[1])
    if dims is None or pads is None or len(pads) != 2 * len(dims):
        return None
    return [d.add(dim, pads[i] + pads[i + len(dims)]) for i, dim in enumerate(dims)]


_SHAPES: dict[str, Callable[[ShapeValues, ir.Node], Shape | None]] = {
    "Concat": _concat_dims,
    "ConstantOfShape": _given_dims,
    "Expand": _expand_dims,
    "Pad": _pad_dims,
    "Range": _range_dims,
    "Reshape": reshape_dims,
    "Slice": _slice_dims,
}
