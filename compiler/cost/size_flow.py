"""How large the results of operators are that run other graphs: If, Loop, Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..dims import Dim
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized

if TYPE_CHECKING:
    from .sizes import Sizes


def chosen(sizes: Sizes, node: ir.Node) -> ir.Graph | None:
    """The branch of an If that always runs, where its condition is known."""
    condition = sizes.elements(node.inputs[0])
    item = condition.item() if condition is not None and condition.size == 1 else None
    return None if item is None else attr(node, "then_branch" if item else "else_branch")


def _if(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    branches: list[ir.Graph] = [attr(node, "then_branch"), attr(node, "else_branch")]
    for branch in branches:
        sizes.visit(branch)
    taken = chosen(sizes, node)
    results: list[Sized] = []
    for i, out in enumerate(node.outputs):
        outputs = [g.outputs[i] for g in ([taken] if taken is not None else branches)]
        results.append(_joined(sizes, node, out, outputs))
        held = [sizes.elements(v) for v in outputs]
        first = held[0]
        alike = first is not None and all(h is not None and np.array_equal(h, first) for h in held)
        sizes.set_elements(out, first if alike else None)
    return results


def _joined(sizes: Sizes, node: ir.Node, out: ir.Value, outputs: Sequence[ir.Value]) -> Sized:
    """The dimensions that all branches agree on; the others are a run's to tell, and at most the largest branch's."""
    shapes = [s for v in outputs if (s := sizes.dims(v)) is not None]
    if len(shapes) < len(outputs) or len({len(s) for s in shapes}) > 1:
        sizes.why[out] = f"If '{node.name}': its branches return tensors of different ranks"
        return None
    return [_either(sizes, node, out, axis, column) for axis, column in enumerate(zip(*shapes, strict=True))]


def _either(sizes: Sizes, node: ir.Node, out: ir.Value, axis: int, column: Sequence[Dim]) -> Dim:
    if all(c == column[0] for c in column):
        return column[0]
    return sizes.counted(out, axis, f"depends on which branch of If '{node.name}' runs", bounds.maximum(column))


def trips(sizes: Sizes, node: ir.Node) -> Dim | None:
    """How often the body of a Loop or Scan runs at most; None where nothing limits that, or it is not known."""
    if node.op_type == "Loop":
        return sizes.number(node.inputs[0])
    scanned, axes = attr(node, "num_scan_inputs"), attr(node, "scan_input_axes")
    dims = sizes.dims(node.inputs[len(node.inputs) - scanned])
    return None if dims is None else dims[axes[0] if axes else 0]


def runs_to_the_end(sizes: Sizes, node: ir.Node) -> bool:
    """Whether nothing ends a Loop early: its condition is true at first and the body never changes it."""
    body: ir.Graph = attr(node, "body")
    first, last, inner = node.inputs[1], body.outputs[0], body.inputs[1]
    while (maker := last.producer()) is not None and maker.op_type in ("Identity", "Cast") and last is not inner:
        source = maker.inputs[0]
        if source is None:
            break
        last = source
    start = None if first is None else sizes.elements(first)
    begins = first is None or (start is not None and bool(start.item()))
    held = sizes.elements(last)
    return begins and (last is inner or (held is not None and held.item() is True))


def _loop(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    body: ir.Graph = attr(node, "body")
    count, carried = trips(sizes, node), list(node.inputs[2:])
    for inner in body.inputs[:2]:
        sizes.set_dims(inner, [])
    settled = _iterate(sizes, node, body, carried, list(body.inputs[2:]), list(body.outputs[1 : 1 + len(carried)]))
    scanned = body.outputs[1 + len(carried) :]
    if not (count is not None and runs_to_the_end(sizes, node)):
        out = node.outputs[len(carried)] if scanned else node.outputs[0]
        count = sizes.counted(out, 0, f"how often the body of Loop '{node.name}' runs", count) if scanned else None
    rows = [sizes.dims(v) for v in scanned]
    return [*settled, *([count, *r] if r is not None else None for r in rows)]


def _iterate(
    sizes: Sizes,
    node: ir.Node,
    body: ir.Graph,
    carried: Sequence[ir.Value | None],
    inner: Sequence[ir.Value],
    after: Sequence[ir.Value],
) -> list[Sized]:
    """The dimensions of what goes from one run of the body to the next: those that change are a run's to tell."""
    now: list[list[Dim] | None] = [sizes.dims(v) for v in carried]
    for _ in range(3):
        for value, dims in zip(inner, now, strict=True):
            sizes.set_dims(value, dims)
            sizes.set_elements(value, None)
        sizes.visit(body)
        then = [sizes.dims(v) for v in after]
        if then == now or node.op_type == "Scan":  # a Scan's states keep their shapes
            break
        now = [_steady(sizes, node, v, a, b) for v, a, b in zip(inner, now, then, strict=True)]
    return [None if dims is None else list(dims) for dims in now]


def _steady(
    sizes: Sizes, node: ir.Node, value: ir.Value, before: list[Dim] | None, after: list[Dim] | None
) -> list[Dim] | None:
    if before is None or after is None or len(before) != len(after):
        sizes.why[value] = f"{node.op_type} '{node.name}': the rank changes from run to run"
        return None
    why = f"changes from run to run of {node.op_type} '{node.name}'"
    return [b if a == b else sizes.counted(value, i, why) for i, (a, b) in enumerate(zip(before, after, strict=True))]


def _scan(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    body: ir.Graph = attr(node, "body")
    if len(body.inputs) != len(node.inputs):
        return None  # Scan of opset 8 has an input more, and a batch axis.
    scanned = attr(node, "num_scan_inputs")
    states = len(node.inputs) - scanned
    axes = attr(node, "scan_input_axes") or [0] * scanned
    for inner, value, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=True):
        dims = sizes.dims(value)
        sizes.set_dims(inner, None if dims is None else [x for i, x in enumerate(dims) if i != axis % len(dims)])
    settled = _iterate(sizes, node, body, node.inputs[:states], body.inputs[:states], body.outputs[:states])
    count, outs = trips(sizes, node), body.outputs[states:]
    result: list[Sized] = list(settled)
    for row, axis in zip(map(sizes.dims, outs), attr(node, "scan_output_axes") or [0] * len(outs), strict=True):
        at = None if row is None else axis % (len(row) + 1)
        result.append(None if row is None or at is None else [*row[:at], count, *row[at:]])
    return result


RULES: dict[str, Rule] = {"If": _if, "Loop": _loop, "Scan": _scan}
"""Operator → the rule for its outputs' dimensions."""
