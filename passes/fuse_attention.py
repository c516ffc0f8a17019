"""Attention, written out as MatMul, Softmax, MatMul, becomes one Attention node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.rewriting import FLOATS
from ..compiler.shape_values import ShapeValues
from .attention_forms import Core, Packed, fuse
from .attention_mask import HIDES, Mask, Masks


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Replace scaled dot-product attention by its operator.

    Before: `MatMul(Softmax(MatMul(q, Transpose(k)) · scale + mask), v)`, the scale on the scores, on q or on k; masks
    added, or selected by Where; q, k and v taken apart into heads by any chain of views.
    After: `Attention<q_num_heads, kv_num_heads>(q, k, v, mask)` on `[batch, length, heads · size]` where the chains
    allow it, which makes the views needless; else `Attention(q, k, v, mask)` on `[batch, heads, length, size]`.

    A constant triangular mask becomes `is_causal = 1`. Masks that broadcast over queries are expanded, once for all
    layers, since onnxruntime doesn't broadcast them. Where a mask hides every key of a query, Attention gives 0.
    """

    name: ClassVar[str] = "fuse-attention"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = 0
        if not any(True for _ in g.nodes(model, "Softmax")):
            return 0
        values = ShapeValues(model)
        for graph in list(g.graphs(model)):
            masks, packed = Masks(ctx, values.source if graph is model.graph else {}), Packed()
            for node in list(graph):
                if node.op_type == "Softmax" and not node.domain and node.graph is graph:
                    core = _core(node)
                    if isinstance(core, str):
                        if core:
                            ctx.note(f"{node.name or node.op_type}: looks like attention, but {core}")
                    else:
                        why = fuse(core, masks, packed)
                        count += not why
                        if why:
                            ctx.note(f"{node.name or node.op_type}: looks like attention, but {why}")
        return count


def _core(softmax: ir.Node) -> Core | str:
    """The attention around a Softmax, or why it is none ("" when nothing looks like one)."""
    rank = g.rank(softmax.outputs[0])
    if rank not in (3, 4) or softmax.inputs[0] is None:
        return ""
    found = _scores(softmax.inputs[0], 8)
    if found is None:
        return ""
    scores, scale, masks, nodes = found
    weights, guards = _unguarded(softmax)
    context = g.sole_user(weights, "MatMul")
    if context is None or context.inputs[0] is not weights:
        readers = [u for u in g.users(weights) if u.op_type == "MatMul" and u.inputs[0] is weights]
        return f"its weights '{weights.name}' are read elsewhere, too" if readers else ""
    if g.attr(softmax, "axis", -1) not in (-1, rank - 1):
        return "its Softmax is not over the last axis"
    if softmax.outputs[0].dtype not in FLOATS:
        return ""
    inner = [n for n in [*nodes, scores] if n.outputs[0].is_graph_output()]
    if inner:
        return f"'{inner[0].outputs[0].name}' inside it is an output of the model"
    return Core(scores, context, scale, masks, [context, *guards, softmax, *nodes, scores])


def _unguarded(softmax: ir.Node) -> tuple[ir.Value, list[ir.Node]]:
    """The weights after `Where(IsNaN(w), 0, w)`, which makes rows without a key 0, as Attention does."""
    weights = softmax.outputs[0]
    nan = next((u for u in g.users(weights) if u.op_type == "IsNaN" and not u.domain), None)
    if nan is not None and len(weights.uses()) == 2 and not weights.is_graph_output():
        select = g.sole_user(nan.outputs[0], "Where")
        if select is not None and select.inputs[2] is weights and g.scalar(select.inputs[1]) == 0:
            return select.outputs[0], [select, nan]
    return weights, []


def _scores(value: ir.Value, depth: int) -> tuple[ir.Node, float, list[Mask], list[ir.Node]] | None:
    """The MatMul that scores come from, the factor and the masks applied to it, and the nodes in between."""
    node = g.producer(value, "MatMul", "Mul", "Div", "Add", "Where")
    if node is None or not depth or not g.used_once(value):
        return None
    if node.op_type == "MatMul":
        a, b = node.inputs
        if a is None or b is None or g.is_const(a) or g.is_const(b) or g.rank(a) != g.rank(b):
            return None
        return (node, 1.0, [], []) if g.rank(a) == g.rank(value) else None
    for source, factor, mask in _unwrapped(node):
        if g.rank(source) != g.rank(value):
            continue
        found = _scores(source, depth - 1)
        if found is not None and not (found[2] and factor != 1):
            scores, scale, masks, nodes = found
            return scores, scale * factor, masks + ([mask] if mask else []), [node, *nodes]
    return None


def _unwrapped(node: ir.Node) -> Iterator[tuple[ir.Value, float, Mask | None]]:
    """How a node changes scores: (the scores, a factor, a mask)."""
    if node.op_type == "Where":
        condition, yes, no = node.inputs
        assert condition is not None
        for source, other, kind in ((yes, no, "keep"), (no, yes, "drop")):
            hidden = g.scalar(other)
            if source is not None and hidden is not None and hidden <= HIDES:
                yield source, 1.0, Mask(kind, condition)
        return
    a, b = node.inputs
    assert a is not None and b is not None
    if node.op_type == "Add":
        yield a, 1.0, Mask("add", b)
        yield b, 1.0, Mask("add", a)
        return
    number = g.scalar(b)
    if number:
        yield a, number if node.op_type == "Mul" else 1 / number, None
    number = g.scalar(a)
    if number and node.op_type == "Mul":
        yield b, number, None
