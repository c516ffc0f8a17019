"""Chains of views as steps: planning them with constant targets, and writing them into the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.dims import Dim
from .rearrange import Move, expressible

LONGEST = 8
"""Nodes of a chain that are looked at together. Longer chains get there step by step."""


class Step(NamedTuple):
    """A Reshape to the constant target `what`, or a Transpose by the perm `what`; `dims` is what comes out."""

    op: str
    what: tuple[int, ...]
    dims: tuple[Dim, ...]


def dying(chain: Sequence[ir.Node]) -> int:
    """How many nodes at the end of the chain nobody needs once its last one is replaced."""
    count = 1
    for node in reversed(chain[:-1]):
        if not graph.used_once(node.outputs[0]):
            break
        count += 1
    return count


def constant_targets(source: Sequence[Dim], moves: Sequence[Move]) -> tuple[Step, ...] | None:
    """The moves with constants as targets; None where a Reshape has none."""
    plan: list[Step] = []
    here = tuple(source)
    for op, what in moves:
        if op == "Transpose":
            target = [p for p in what if isinstance(p, int)]
            here = tuple(here[p] for p in target)
        else:
            found = expressible(here, what)
            if found is None:
                return None
            target, here = found, tuple(what)
        plan.append(Step(op, tuple(target), here))
    return tuple(plan)


def build(main: ir.Graph, anchor: ir.Node, source: ir.Value, steps: Sequence[Step], name: str | None) -> ir.Value:
    """Insert the steps before `anchor`. Returns the result, with type and shape."""
    value = source
    for i, step in enumerate(steps):
        if step.op == "Transpose":
            node = graph.insert_before(anchor, step.op, [value], {"perm": step.what}, hint=f"{name}_{i}")
        else:
            shape = graph.initializer(main, np.array(step.what, np.int64), "shape")
            node = graph.insert_before(anchor, step.op, [value, shape], hint=f"{name}_{i}")
        new = node.outputs[0]
        new.type, new.shape = source.type, _shape_after(value, step)
        value = new
    return value


def replace_by(main: ir.Graph, last: ir.Node, source: ir.Value, steps: Sequence[Step]) -> None:
    """Replace the result of `last` by these steps from `source`."""
    out = last.outputs[0]
    value = build(main, last, source, steps, out.name)
    if steps and out.shape is not None:
        value.shape = out.shape  # may name a size that the steps compute with a -1
    graph.replace_node(last, value)


def _shape_after(value: ir.Value, step: Step) -> ir.Shape | None:
    have = graph.shape(value)
    if have is None:
        return None
    if step.op == "Transpose":
        return ir.Shape([have[p] for p in step.what])
    return ir.Shape([have[i] if w == 0 else _named(step.dims[i]) if w == -1 else w for i, w in enumerate(step.what)])


def _named(dim: Dim) -> int | str | None:
    """A dimension as a shape can say it."""
    name = dim if isinstance(dim, int) else dim.symbol()
    return name if isinstance(name, int) or (name is not None and name.isidentifier()) else None
