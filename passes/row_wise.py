"""Lets the views before and after a row of operators meet: those that work on each row of the last axis by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..compiler import dims as d
from ..compiler import graph, ops
from ..compiler.dims import Dim
from ..compiler.shape_values import ShapeValues
from .rearrange import VIEWS, Rearrangement, apply
from .view_steps import LONGEST, Step, build, constant_targets, dying, replace_by

BINARY = frozenset({"Add", "Div", "Mul", "PRelu", "Pow", "Sub"})
_LAST_AXIS = frozenset({"LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"})
_SPECIAL = frozenset({"Gemm", "MatMul"})


@dataclass
class _Rows:
    """views before → row-wise operators → views after, each a chain in the graph's order."""

    before: list[ir.Node]
    rows: list[ir.Node]
    after: list[ir.Node]


def meet(main: ir.Graph, values: ShapeValues, last: ir.Node) -> int:
    """Move the views before a row of operators behind it, or those behind it before it, if that saves nodes.

    [B,T,C] → Transpose → [T,B,C] → MatMul → Add → Transpose → [B,T,D] needs no Transpose at all.
    """
    found = _find(last)
    if found is None:
        return 0
    matrix = any(n.op_type == "Gemm" for n in found.rows)
    source = found.before[0].inputs[0]
    have = values.dims(source)
    if have is None or source is None or len(have) < 2:
        return 0
    width = (values.dims(found.rows[-1].outputs[0]) or [0])[-1]
    plan = _plan(values, found, have, width, matrix)
    now = dying([*found.before, found.rows[0]]) - 1 + dying(found.after)
    if plan is None:
        return 0
    first, then = plan
    if len(first) + len(then) >= now or not graph.can_replace(last.outputs[0], found.rows[-1].outputs[0]):
        return 0
    _rebuild(main, found, source, first, then)
    return 1


def _find(last: ir.Node) -> _Rows | None:
    after = [last]
    while len(after) < LONGEST and (node := graph.producer(after[0].inputs[0], *VIEWS)) is not None:
        if not graph.used_once(node.outputs[0]):
            return None
        after.insert(0, node)
    rows: list[ir.Node] = []
    value = after[0].inputs[0]
    while value is not None and len(rows) < LONGEST and (node := graph.producer(value)) is not None:
        if not graph.used_once(value) or node.graph is not last.graph or not _row_wise(node):
            break
        rows.insert(0, node)
        value = node.inputs[_data(node)]
    if not rows:
        return None
    before: list[ir.Node] = []
    while len(before) < LONGEST and (node := graph.producer(value, *VIEWS)) is not None and _keeps_last(node):
        before.insert(0, node)
        value = node.inputs[0]
    return _Rows(before, rows, after) if before else None


def _data(node: ir.Node) -> int:
    """Which input is not a constant."""
    return 1 if node.op_type in BINARY and graph.is_const(node.inputs[0]) else 0


def _row_wise(node: ir.Node) -> bool:
    """Whether `node` makes each row of its result from the same row of its input, and from constants."""
    if node.domain or len(node.outputs) != 1:
        return False
    op, rank = node.op_type, graph.rank(node.inputs[_data(node)])
    if not rank or rank < 2:
        return False
    if op in ops.UNARY:
        return all(v is None or graph.is_const(v) for v in node.inputs[1:])
    if op in _LAST_AXIS:
        return int(graph.attr(node, "axis", -1)) % rank == rank - 1
    other = node.inputs[1 - _data(node)] if len(node.inputs) > 1 else None
    dims = graph.static_shape(other) if graph.is_const(other) else None
    if dims is None:
        return False
    if op in BINARY:
        return len(dims) < 2
    if op == "MatMul":
        return len(dims) == 2
    if op != "Gemm" or graph.attr(node, "transA", 0):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or (graph.is_const(bias) and graph.rank(bias) in (0, 1))


def _keeps_last(node: ir.Node) -> bool:
    """Whether the last axis comes out as it went in, last."""
    have, out = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if not have or not out or len(have) < 2 or len(out) < 2 or have[-1] is None or have[-1] != out[-1]:
        return False
    perm = graph.attr(node, "perm")
    return node.op_type != "Transpose" or (perm is not None and perm[-1] == len(have) - 1)


def _plan(
    values: ShapeValues, found: _Rows, have: list[Dim], width: Dim, matrix: bool
) -> tuple[Sequence[Step], Sequence[Step]] | None:
    """Steps before the row of operators, and steps behind it, instead of the views; None where none do the same.

    `have` is what the views begin with, `width` the last dimension of the row's result; a Gemm takes a `matrix` only.
    """
    if not isinstance(have[-1], int) or not isinstance(width, int):
        return None
    lead = have[:-1]
    flat = matrix and len(have) != 2
    middle = [d.product(lead)] if flat else lead
    start = [*middle, width]
    made = Rearrangement(list(start))
    if flat and not made.reshape([*lead, width]):
        return None
    here: list[Dim] | None = [*lead, width]
    for node in [*found.before, *found.after]:
        out = values.dims(node.outputs[0])
        if out is None or here is None:
            return None
        out = [*out[:-1], width] if node in found.before else out
        if not apply(made, node, out, source=here):
            return None
        here = out
    then = constant_targets(start, made.steps())
    first = constant_targets(have, [("Reshape", [*middle, have[-1]])] if flat else [])
    return None if then is None or first is None else (first, then)


def _rebuild(main: ir.Graph, found: _Rows, source: ir.Value, first: Sequence[Step], then: Sequence[Step]) -> None:
    head, tail, last = found.rows[0], found.rows[-1], found.after[-1]
    value = build(main, head, source, first, source.name)
    old = head.inputs[_data(head)]
    head.replace_input_with(_data(head), value)
    lead = list(value.shape)[:-1] if value.shape is not None else None
    for node in found.rows:
        out = node.outputs[0]
        width = None if out.shape is None else out.shape[-1]
        out.shape = None if lead is None or width is None else ir.Shape([*lead, width])
        if node.op_type in _LAST_AXIS:
            node.attributes["axis"] = ir.AttrInt64("axis", len(lead) if lead is not None else -1)
    replace_by(main, last, tail.outputs[0], then)
    if old is not None and (producer := old.producer()) is not None:
        graph.remove_upwards(producer)
