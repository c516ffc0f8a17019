"""Token-wise parts of a network in two dimensions, so that each product and its bias become one Gemm."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.ops import BROADCAST, UNARY
from ..compiler.passbase import Context, Pass
from .linear import FLOATS, weight_dtype

_LAST_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "LogSoftmax": -1, "Split": 0}
"""Operators that work along one axis, and its default. They treat tokens alike if it is the last one."""


@dataclass(frozen=True)
class FlattenLinear(Pass):
    """Run what treats every token alike on `[tokens, features]` instead of `[batch, tokens, features]`.

    Before: `y = Add(MatMul(Gelu(Add(MatMul(x, V), a)), W), b)`, of rank 3
    After:  `y = Reshape(Add(MatMul(Gelu(Add(MatMul(Reshape(x, [-1, D]), V), a)), W), b), [B, T, N])`

    fuse-gemm then makes one node of each MatMul and Add. A region is rewritten only if that saves more nodes than the
    Reshapes around it cost; its edges are chosen so that few values cross them. Where two leading dimensions are
    symbolic, the shape to return to is computed once.
    """

    name: ClassVar[str] = "flatten-linear"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Flatten the regions that gain; returns the number of nodes that now work on two dimensions."""
        return sum(_rewrite(region, ctx) for graph in list(g.graphs(model)) for region in _regions(graph))


class _Region:
    """Nodes joined by values with the same leading dimensions.

    Attributes:
        rows: for each node, in graph order, which of its inputs have tokens. All its outputs do.
        lead: the leading dimensions that all values share.
    """

    def __init__(self, rows: dict[ir.Node, list[int]]) -> None:
        self.rows = rows
        self.lead = (g.shape(next(iter(rows)).outputs[0]) or ())[:-1]

    def reads(self, node: ir.Node, position: int) -> bool:
        """Whether `node` is inside and reads tokens there."""
        return position in self.rows.get(node, ())

    def inner_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Who reads `value` inside, and where."""
        return [(n, i) for n, i in value.uses() if self.reads(n, i)]

    def enters(self, value: ir.Value) -> bool:
        """Whether `value` is made outside and read inside."""
        return value.producer() not in self.rows and bool(self.inner_uses(value))

    def leaves(self, value: ir.Value) -> bool:
        """Whether `value` is made inside, and read outside by others than Reshapes to a constant shape."""
        if value.producer() not in self.rows:
            return False
        outside = (n for n, i in value.uses() if not self.reads(n, i))
        return value.is_graph_output() or not all(map(_is_absolute_reshape, outside))

    def cost(self, value: ir.Value) -> int:
        """How many Reshapes `value` needs, less those it has already."""
        if not self.enters(value):
            return int(self.leaves(value))
        reshape = g.producer(value, "Reshape")
        if reshape is None or value.is_graph_output() or len(self.inner_uses(value)) != len(value.uses()):
            return 1
        return -1 if _is_flat(reshape.inputs[0], value) else 0

    def values(self) -> list[ir.Value]:
        """All values that have tokens, each once, in graph order."""
        return list(dict.fromkeys(v for n, rows in self.rows.items() for v in _values(n, rows)))

    def pairs(self) -> list[tuple[ir.Node, ir.Node]]:
        """The products whose bias is added right behind them: one Gemm each, once flat."""
        found = []
        for node in self.rows:
            add = g.sole_user(node.outputs[0], "Add") if node.op_type == "MatMul" else None
            if add is not None and len(self.rows.get(add, ())) == 1:
                found.append((node, add))
        return found

    def trim(self) -> None:
        """Give up nodes at the edge where that needs no more Reshapes."""
        keep = {n for pair in self.pairs() for n in pair}
        order = {n: i for i, n in enumerate(self.rows)}
        queue = deque(self.rows)
        while queue:
            node = queue.popleft()
            if node in keep or node not in self.rows:
                continue
            touched = list(dict.fromkeys(_values(node, self.rows[node])))
            before = sum(map(self.cost, touched))
            rows = self.rows.pop(node)
            if sum(map(self.cost, touched)) > before:
                self.rows[node] = rows
            else:
                near = (n for v in touched for n in (v.producer(), *g.users(v)))
                queue.extend(n for n in near if n is not None and n in self.rows)
        self.rows = {n: self.rows[n] for n in sorted(self.rows, key=order.__getitem__)}

    def gain(self) -> int:
        """How many nodes fewer there are in the end."""
        values = self.values()
        widths = {_width(v) for v in values if self.leaves(v)}
        computed = 1 + len(widths) if widths and sum(isinstance(d, str) for d in self.lead) > 1 else 0
        return len(self.pairs()) - sum(map(self.cost, values)) - computed


def _values(node: ir.Node, rows: Iterable[int]) -> list[ir.Value]:
    """The inputs and outputs of `node` that have tokens."""
    return [*(v for i in rows if (v := node.inputs[i]) is not None), *node.outputs]


def _width(value: ir.Value) -> int:
    """The number of features: the last dimension."""
    assert value.shape is not None
    return int(value.shape[-1])  # type: ignore[arg-type]


def _is_absolute_reshape(node: ir.Node) -> bool:
    """Whether `node` is a Reshape to a shape that doesn't depend on its input's."""
    target = g.ints(node.inputs[1]) if node.op_type == "Reshape" and not node.domain else None
    return target is not None and 0 not in target


def _is_flat(source: ir.Value | None, value: ir.Value) -> bool:
    """Whether `source`, of which `value` is a Reshape, has the rows that are wanted."""
    dims = g.shape(source)
    return dims is not None and len(dims) == 2 and dims[1] == _width(value)


def _regions(graph: ir.Graph) -> list[_Region]:
    """The connected regions of a graph that hold a product with its bias."""
    found: dict[ir.Node, list[int]] = {}
    for node in graph:
        rows = None if node.domain else _rows(node)
        if rows:
            found[node] = rows
    parent: dict[ir.Value, ir.Value] = {}

    def root(v: ir.Value) -> ir.Value:
        while (up := parent.setdefault(v, v)) is not v:
            parent[v] = parent[up]
            v = parent[v]
        return v

    for node, rows in found.items():
        for value in _values(node, rows):
            parent[root(value)] = root(node.outputs[0])
    groups: dict[ir.Value, dict[ir.Node, list[int]]] = {}
    for node, rows in found.items():
        groups.setdefault(root(node.outputs[0]), {})[node] = rows
    return [region for region in map(_Region, groups.values()) if region.pairs()]


def _rows(node: ir.Node) -> list[int] | None:
    """Which inputs have tokens, if `node` treats every token alike; None if it doesn't, or it isn't known."""
    dims = g.shape(node.outputs[0])
    if dims is None or len(dims) < 3 or None in dims[:-1] or not isinstance(dims[-1], int):
        return None
    if node.op_type == "MatMul":
        rows = [0] if weight_dtype(node.inputs[1]) in FLOATS and g.rank(node.inputs[1]) == 2 else []
    elif node.op_type in _LAST_AXIS:
        axis = g.attr(node, "axis", _LAST_AXIS[node.op_type])
        rows = [0] if axis in (-1, len(dims) - 1) else []
    elif node.op_type in UNARY:
        rows = [0]
    elif node.op_type in BROADCAST:
        rows = [i for i, v in enumerate(node.inputs) if not _is_per_feature(v, dims)]
    else:
        return None
    values = [node.inputs[i] for i in rows] + list(node.outputs)
    alike = all(_same_lead(g.shape(v), dims) for v in values)
    return rows if rows and alike else None


def _same_lead(dims: tuple[int | str | None, ...] | None, other: tuple[int | str | None, ...]) -> bool:
    return dims is not None and dims[:-1] == other[:-1] and isinstance(dims[-1], int)


def _is_per_feature(value: ir.Value | None, dims: tuple[int | str | None, ...]) -> bool:
    """Whether an operand can be had in two dimensions without a Reshape: a constant, or of rank 0 or 1."""
    own = g.static_shape(value)
    if value is None or own is None or len(own) > len(dims):
        return False
    if len(own) <= 1:
        return True
    return g.is_const(value) and (math.prod(own[:-1]) == 1 or own[:-1] == dims[:-1])


def _rewrite(region: _Region, ctx: Context) -> int:
    """Put a region on two dimensions if it gains; returns how many nodes were flattened."""
    region.trim()
    if region.gain() <= 0:
        return 0
    values = region.values()
    entries = [v for v in values if region.enters(v)]
    exits = [v for v in values if region.leaves(v)]
    shapes = [v.shape for v in exits]
    targets = _targets(region, entries[0], exits)
    for value in entries:
        _enter(region, value)
    for node, rows in region.rows.items():
        _flatten(region, node, rows, ctx)
    for value, shape in zip(exits, shapes, strict=True):
        _leave(region, value, targets[_width(value)], shape)
    return len(region.rows)


def _targets(region: _Region, source: ir.Value, exits: list[ir.Value]) -> dict[int, ir.Value]:
    """For each width, the shape to return to: a constant, or computed from what comes in first."""
    first = next(iter(region.rows))
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    widths = dict.fromkeys(map(_width, exits))
    if sum(isinstance(d, str) for d in region.lead) <= 1:
        lead = [d if isinstance(d, int) else -1 for d in region.lead]
        return {w: g.initializer(graph, np.array([*lead, w], np.int64), f"{source.name}_shape_{w}") for w in widths}
    lead_value = g.insert_before(first, "Shape", [source], {"end": len(region.lead)}, hint=f"{source.name}_lead")
    found = {}
    for w in widths:
        width = g.initializer(graph, np.array([w], np.int64), f"{source.name}_width_{w}")
        operands = [lead_value.outputs[0], width]
        found[w] = g.insert_before(first, "Concat", operands, {"axis": 0}, hint=f"{source.name}_shape_{w}").outputs[0]
    return found


def _flat_shape(region: _Region, value: ir.Value) -> ir.Shape:
    fixed = [d for d in region.lead if isinstance(d, int)]
    return ir.Shape([math.prod(fixed) if len(fixed) == len(region.lead) else None, _width(value)])


def _enter(region: _Region, value: ir.Value) -> None:
    """Give the region `value` as rows: reshaped, or as it was before a Reshape."""
    uses, reshape = region.inner_uses(value), g.producer(value, "Reshape")
    source = value if reshape is None else reshape.inputs[0]
    flat = source if reshape is not None and _is_flat(source, value) else None
    if flat is None:
        readers = {n for n, _ in uses}
        first = next(n for n in region.rows if n in readers)
        assert isinstance(first.graph, ir.Graph)
        target = g.initializer(first.graph, np.array([-1, _width(value)], np.int64), f"{value.name}_rows")
        flat = g.insert_before(first, "Reshape", [source, target], hint=f"{value.name}_flat").outputs[0]
        flat.type, flat.shape = value.type, _flat_shape(region, value)
    for node, position in uses:
        node.replace_input_with(position, flat)
    if reshape is not None:
        g.remove([reshape])


def _flatten(region: _Region, node: ir.Node, rows: list[int], ctx: Context) -> None:
    """Adapt attributes and constants of a node whose inputs have become rows."""
    assert isinstance(node.graph, ir.Graph)
    if node.op_type in _LAST_AXIS:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
    for i, value in enumerate(node.inputs):
        array = None if value is None or i in rows or node.op_type not in BROADCAST else g.const(value)
        if value is not None and array is not None and array.ndim > 2:
            flat = array.reshape(-1, array.shape[-1])
            new = g.initializer(node.graph, flat[0] if len(flat) == 1 else flat, f"{value.name}_flat", ctx.scratch)
            node.replace_input_with(i, new)
    for out in node.outputs:
        out.shape = _flat_shape(region, out)


def _leave(region: _Region, value: ir.Value, target: ir.Value, shape: ir.Shape | None) -> None:
    """Give everything outside `value` in its own shape."""
    inside, producer = region.inner_uses(value), value.producer()
    assert producer is not None and isinstance(producer.graph, ir.Graph)
    reshape = g.insert_before(producer, "Reshape", [value, target], hint=f"{value.name}_back")
    producer.graph.remove(reshape)
    producer.graph.insert_after(producer, reshape)
    back = reshape.outputs[0]
    flat, value.shape = value.shape, shape
    g.replace_value(value, back)
    back.type, back.shape, value.shape = value.type, shape, flat
    for node, position in (*inside, (reshape, 0)):
        node.replace_input_with(position, value)
