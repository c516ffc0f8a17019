"""Turns shape arithmetic into constants, for static and for symbolic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph, shapes
from ..compiler.dims import Dim, Poly
from ..compiler.passbase import Context, Pass
from ..compiler.shape_rules import Elements
from ..compiler.shape_values import ShapeValues, reshape_dims
from .canonicalize import inline_constant_branches
from .fold_constants import FoldConstants
from .strided_views import same_elements

END = np.iinfo(np.int64).max
"""As the end of a Slice: everything."""


@dataclass(frozen=True)
class FoldShapes(Pass):
    """Replace computed shapes by constants wherever they are provably right.

    before:  s = Shape(x); b = Gather(s, 0); t = Concat(Unsqueeze(b), [-1], [64]); y = Reshape(x, t)
    after:   y = Reshape(x, [0, -1, 64])                                                      (x: [B,128,12,64])

    Values that shapes are computed with are followed element by element, as polynomials in the symbols. A dimension
    that Reshape may copy becomes 0, one that follows from the others -1; in Expand, one that stays becomes 1; the end
    of a Slice that is the whole dimension becomes the largest integer. What still depends on a symbol is read off with
    as few nodes as possible. Elements that a Gather looks up where they are anyway (as_strided) are not looked up.
    Branches whose condition has become constant are inlined.

    What becomes constant by that is folded, and tells further shapes: round after round, until nothing more is found
    (a Swin that torch's older exporter wrote takes four).
    """

    name: ClassVar[str] = "fold-shapes"

    def run(self, model: ir.Model, ctx: Context) -> int:
        total = count = self._round(model)
        while count and (folded := FoldConstants().run(model, ctx)):
            shapes.infer(model)
            count = self._round(model)
            total += folded + count
        return total

    def _round(self, model: ir.Model) -> int:
        values = ShapeValues(model)
        rewrite = _Rewrite(model, values)
        count = 0
        for node in graph.nodes(model):
            if node.graph is not None:
                count += rewrite.node(node)
        return count + inline_constant_branches(model)


class _Rewrite:
    """The rewrites of one run; constants of equal content are made once."""

    def __init__(self, model: ir.Model, values: ShapeValues) -> None:
        self.main = model.graph
        self.values = values
        self.made: dict[tuple[str, tuple[int, ...], tuple[int, ...]], ir.Value] = {}

    def constant(self, items: Any, dtype: Any = np.int64) -> ir.Value:
        array = np.array(items, dtype)
        key = (array.dtype.str, array.shape, tuple(array.reshape(-1).tolist()))
        if key not in self.made:
            self.made[key] = graph.initializer(self.main, array, "shape")
        return self.made[key]

    def node(self, node: ir.Node) -> int:
        """The number of rewrites at this node."""
        count = sum(self._to_constant(out) for out in node.outputs if out in self.values.found)
        if node.graph is None or node.domain:
            return count
        special = _SPECIAL.get(node.op_type)
        if special is not None:
            done = special(self, node)
            count += done
            if node.graph is None:
                return count
        if not any(o in self.values.found for o in node.outputs):
            for i, value in enumerate(node.inputs):
                count += self._read_off(node, i) if value is not None and value in self.values.found else 0
        return count

    def _to_constant(self, value: ir.Value) -> int:
        elements = self.values.found[value]
        node = value.producer()
        if node is None or value.dtype is None or not value.uses() or any(not _plain(e) for e in elements.flat):
            return 0
        new = self.constant(elements.tolist(), value.dtype.numpy())
        if elements.size == 0:
            return 0
        for user, index in value.uses():
            user.replace_input_with(index, new)
        graph.remove_upwards(node)
        return 1

    def set_input(self, node: ir.Node, index: int, items: Sequence[int]) -> int:
        """Make the shape-like input constant, unless it is already. Returns the number of rewrites."""
        old = node.inputs[index]
        if old is None or graph.ints(old) == list(items):
            return 0
        graph.rewire(node, index, self.constant(list(items)))
        return 1

    def bypass(self, node: ir.Node) -> int:
        """Let the users of `node` read its first input, if the graph's outputs allow it."""
        source = node.inputs[0]
        if source is None or not graph.can_replace(node.outputs[0], source):
            return 0
        graph.replace_node(node, source)
        return 1

    def _read_off(self, node: ir.Node, index: int) -> int:
        """Where a value depends on symbols, make it from Shape nodes alone, if that takes fewer nodes."""
        old = node.inputs[index]
        assert old is not None
        elements = self.values.found[old]
        if old.dtype != ir.DataType.INT64 or elements.ndim > 1 or elements.size == 0:
            return 0
        parts = self._parts(list(elements.flat))
        if parts is None:
            return 0
        cost = sum(not isinstance(p, list) for p in parts) + (len(parts) > 1) + (elements.ndim == 0)
        if cost >= _cone(old, cost, self.values):
            return 0
        made = [self.constant(p) if isinstance(p, list) else self._shape_node(node, *p) for p in parts]
        new = made[0]
        if len(made) > 1:
            new = graph.insert_before(node, "Concat", made, {"axis": 0}, like=old).outputs[0]
        if elements.ndim == 0:
            new = graph.insert_before(node, "Squeeze", [new, self.constant([0])], like=old).outputs[0]
        self.values.found[new] = elements
        graph.rewire(node, index, new)
        return 1

    def _shape_node(self, anchor: ir.Node, source: ir.Value, start: int, end: int) -> ir.Value:
        node = graph.insert_before(anchor, "Shape", [source], {"start": start, "end": end}, hint=f"{source.name}_shape")
        out = node.outputs[0]
        out.type, out.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([end - start])
        self.values.found[out] = _row((self.values.dims(source) or [])[start:end])
        return out

    def _parts(self, items: list[Any]) -> list[list[int] | tuple[ir.Value, int, int]] | None:
        """The elements as runs of numbers and runs of a value's dimensions; None if there is anything else."""
        places: list[Any] = []
        for item in items:
            symbol = item.symbol() if isinstance(item, Poly) else None
            place = self.values.source.get(symbol) if symbol is not None else None
            if not _plain(item) and (place is None or not place[0].is_graph_input()):
                return None
            places.append(item if place is None else place)
        parts: list[list[int] | tuple[ir.Value, int, int]] = []
        for place in places:
            last = parts[-1] if parts else None
            if isinstance(place, tuple):
                if isinstance(last, tuple) and last[0] is place[0] and last[2] == place[1]:
                    parts[-1] = (last[0], last[1], last[2] + 1)
                else:
                    parts.append((place[0], place[1], place[1] + 1))
            elif isinstance(last, list):
                last.append(int(place))
            else:
                parts.append([int(place)])
        return parts


def _plain(e: Any) -> bool:
    return isinstance(e, int | np.integer)


def _row(items: Sequence[Any]) -> Elements:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _cone(value: ir.Value, most: int, values: ShapeValues) -> int:
    """How many nodes make `value` from shapes; counting stops above `most`."""
    stack: list[ir.Value] = [value]
    seen: set[ir.Node] = set()
    while stack and len(seen) <= most:
        node = stack.pop().producer()
        if node is not None and node not in seen:
            seen.add(node)
            if node.op_type != "Shape":
                stack += [v for v in node.inputs if v is not None]
    return len(seen)


def _reshape(rewrite: _Rewrite, node: ir.Node) -> int:
    target, source = rewrite.values.elements(node.inputs[1]), rewrite.values.dims(node.inputs[0])
    if target is None or source is None or target.ndim != 1:
        return 0
    worked_out = reshape_dims(rewrite.values, node)
    if worked_out is not None and list(worked_out) == source and None not in worked_out:
        return rewrite.bypass(node)
    if graph.is_const(node.inputs[1]):
        return 0
    copies = not graph.attr(node, "allowzero", 0) or 0 not in list(target)
    wanted = _reshape_target(list(target), list(worked_out or ()), source, copies)
    if wanted is None:
        return 0
    if 0 in wanted:
        node.attributes.pop("allowzero", None)
    return rewrite.set_input(node, 1, wanted)


def _reshape_target(target: list[Any], worked_out: list[Any], source: list[Dim], copies: bool) -> list[int] | None:
    """Constants that mean the same: numbers, 0 for a dimension copied from its place, -1 for at most one other."""
    wanted: list[int] = []
    for i, item in enumerate(target):
        meant = worked_out[i] if i < len(worked_out) else None
        if meant is not None and _plain(meant) and not (_plain(item) and item == 0):
            wanted.append(int(meant))
        elif i < len(source) and copies and (source[i] == meant is not None or (_plain(item) and item == 0)):
            wanted.append(0)
        elif _plain(item) and item == 0:
            return None
        else:
            wanted.append(-1)
    return wanted if wanted.count(-1) <= 1 else None


def _expand(rewrite: _Rewrite, node: ir.Node) -> int:
    target, source = rewrite.values.elements(node.inputs[1]), rewrite.values.dims(node.inputs[0])
    if target is None or source is None or target.ndim != 1:
        return 0
    padded = [1] * (len(target) - len(source)) + source[max(0, len(source) - len(target)) :]
    wanted = [1 if t is not None and t == s else t for t, s in zip(target, padded, strict=True)]
    if not all(_plain(t) for t in wanted):
        return 0
    if len(target) <= len(source) and all(t == 1 for t in wanted):
        return rewrite.bypass(node)
    if graph.is_const(node.inputs[1]):
        return 0
    return rewrite.set_input(node, 1, [int(t) for t in wanted])


def _slice(rewrite: _Rewrite, node: ir.Node) -> int:
    """Ends that are the dimension itself need not be computed."""
    ends, dims = rewrite.values.elements(node.inputs[2]), rewrite.values.dims(node.inputs[0])
    axes = graph.ints(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = graph.ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if ends is None or dims is None or ends.ndim != 1 or graph.is_const(node.inputs[2]):
        return 0
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return 0
    if len(node.inputs) > 4 and node.inputs[4] is not None and (steps is None or min(steps) < 1):
        return 0
    wanted = [
        END if isinstance(end, Poly) and end == dims[axis] else end
        for end, axis in zip(ends, axes or range(len(ends)), strict=True)
    ]
    if not all(_plain(end) for end in wanted):
        return 0
    return rewrite.set_input(node, 2, [int(end) for end in wanted])


def _gather(rewrite: _Rewrite, node: ir.Node) -> int:
    """Elements at positions that are worked out at run time, and are their own."""
    found = same_elements(rewrite.values, node)
    if found is None:
        return 0
    x, wanted = found
    if rewrite.values.dims(x) == rewrite.values.dims(node.outputs[0]) and graph.can_replace(node.outputs[0], x):
        graph.replace_node(node, x)
        return 1
    made = graph.insert_before(node, "Reshape", [x, rewrite.constant(wanted)], like=node.outputs[0])
    graph.replace_node(node, made.outputs[0])
    return 1


_SPECIAL: dict[str, Callable[[_Rewrite, ir.Node], int]] = {
    "Expand": _expand, "Gather": _gather, "Reshape": _reshape, "Slice": _slice,
}  # fmt: skip
