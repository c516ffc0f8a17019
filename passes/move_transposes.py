"""Transposes move past what treats every row alike (products, normalisations, activations) where that removes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.ops import UNARY
from ..compiler.passbase import Context, Pass
from .layouts import LAYOUT, Axis, Layout, arrange, axis, emit, flat, resolve, size_of, sizes, step

LONGEST = 16
"""How many nodes a transpose is followed over."""


@dataclass(frozen=True)
class MoveTransposes(Pass):
    """Cancel transposes and reshapes of rows across operators that work on each row by itself.

    Before: `Transpose [1, 0, 2]` → `MatMul(·, W)` → `Add(·, b)` → `Transpose [1, 0, 2]`
    After: `MatMul(·, W)` → `Add(·, b)`

    Before: `Transpose [1, 0, 2]` → `Reshape [t · n, d]` → `Gemm` → `Reshape [t, n, d]` → `Transpose [1, 0, 2]`
    After: `Reshape [n · t, d]` → `Gemm` → `Reshape [n, t, d]`
    """

    name: ClassVar[str] = "move-transposes"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return sum(_move(node) for node in g.nodes(model, "Transpose"))


@dataclass
class _Walk:
    """A chain of nodes below a transpose, each the only reader of the one before.

    `dims` are the axes as they are now, `rows` as they are when the views are left out; `todo` lists what then
    remains: a node, the reshape to two dimensions that it needs first, and the axes of its result.
    """

    dims: list[Axis]
    rows: list[Axis]
    views: list[ir.Node] = field(default_factory=list)
    todo: list[tuple[ir.Node, Layout | None, list[Axis]]] = field(default_factory=list)

    @property
    def extra(self) -> int:
        return sum(layout.cost for _, layout, _ in self.todo if layout is not None)


def _move(start: ir.Node) -> bool:
    best: tuple[int, int, int, Layout] | None = None
    walk: _Walk | None = None
    for walk in _walk(start):
        layout = arrange(walk.rows, walk.dims)
        if layout is not None and walk.todo:
            saved = len(walk.views) - walk.extra - layout.cost
            if saved > 0 and (best is None or saved > best[0]):
                best = saved, len(walk.views), len(walk.todo), layout
    if best is None or walk is None:
        return False
    _, views, todo, layout = best
    value = start.inputs[0]
    assert value is not None
    for node, flattened, rows in walk.todo[:todo]:
        if flattened is not None:
            value = emit(flattened, value, node, f"{node.outputs[0].name}_rows")
        node.replace_input_with(0, value)
        if node.op_type.endswith("Normalization"):
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        value = node.outputs[0]
        dims = [size_of(a) for a in rows]
        value.shape = ir.Shape([d if isinstance(d, int) or d.isidentifier() else None for d in dims])
    last = walk.views[views - 1]
    g.replace_value(last.outputs[0], emit(layout, value, last, f"{last.outputs[0].name}_moved"))
    g.remove(walk.views[:views], sources=True)
    return True


def _walk(start: ir.Node) -> Iterator[_Walk]:
    """Follow the chain, one state after each view (the same object, growing)."""
    x = start.inputs[0]
    dims = None if x is None else sizes(x)
    if dims is None or g.is_const(x):
        return
    axes = [axis(d) for d in dims]
    walk, node = _Walk(axes, axes), start
    for _ in range(LONGEST):
        if not _pass(walk, node):
            return
        if walk.views and walk.views[-1] is node:
            yield walk
        following = g.sole_user(node.outputs[0])
        if following is None or following.inputs[0] is not node.outputs[0]:
            return
        node = following


def _pass(walk: _Walk, node: ir.Node) -> bool:
    """Take one more node into the walk; False when it can't be passed."""
    walk.dims, walk.rows = resolve(walk.dims), resolve(walk.rows)
    if node.op_type in LAYOUT and not node.domain:
        after = step(node.outputs[0], walk.dims)
        if after is None:
            return False
        walk.dims = after
        walk.views.append(node)
        return True
    if not walk.dims or walk.dims[-1] != walk.rows[-1] or not _is_by_row(node):
        return False
    layout = None
    if node.op_type == "Gemm" and len(walk.rows) != 2:
        two = [flat(walk.rows[:-1]), walk.rows[-1]]
        layout = arrange(walk.rows, two)
        if layout is None:
            return False
        walk.rows = two
    last = (sizes(node.outputs[0]) or [0])[-1]
    if size_of(walk.dims[-1]) != last:
        features = axis(last)
        walk.dims, walk.rows = [*walk.dims[:-1], features], [*walk.rows[:-1], features]
    walk.todo.append((node, layout, walk.rows))
    return True


def _is_by_row(node: ir.Node) -> bool:
    """Whether the node treats each row, along the last axis of its first input, by itself and alike."""
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    if node.domain:
        return (node.domain, node.op_type) == ("edgec", "Swish")
    others = node.inputs[1:]
    if node.op_type in UNARY:
        return all(v is None or g.is_const(v) for v in others)
    shapes = [g.static_shape(v) if g.is_const(v) else None for v in others]
    if None in shapes or sizes(node.outputs[0]) is None:
        return False
    if node.op_type in ("Add", "Mul", "Sub", "Div"):
        return all(_varies_in_last_only(s) for s in shapes) and g.rank(node.inputs[0]) == g.rank(node.outputs[0])
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        return g.attr(node, "axis", -1) in (-1, (g.rank(node.inputs[0]) or 0) - 1)
    if node.op_type == "Gemm":
        return not g.attr(node, "transA", 0) and all(_varies_in_last_only(s) for s in shapes[1:])
    return node.op_type == "MatMul" and len(shapes[0] or ()) == 2


def _varies_in_last_only(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) <= 2 and all(d == 1 for d in shape[:-1])
