"""Chains of views as steps: planning them with constant targets, and writing them into the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.dims import Dim
from ..compiler.views import expressible

LONGEST = 8
"""Nodes of a chain that are looked at together. Longer chains get there step by step."""

Step = tuple[str, list[int]]
"""("Reshape", target) or ("Transpose", perm)."""


def dying(chain: Sequence[ir.Node]) -> int:
    """How many nodes at the end of the chain nobody needs once its last one is replaced."""
    count = 1
    for node in reversed(chain[:-1]):
        if not graph.used_once(node.outputs[0]):
            break
        count += 1
    return count


def constant_targets(source: list[Dim], steps: Sequence[tuple[str, Sequence[Dim]]]) -> list[Step] | None:
    """The steps with constants as targets; None where a Reshape has none."""
    plan: list[Step] = []
    here: list[Dim] = source
    for op, what in steps:
        if op == "Transpose":
            perm = [p for p in what if isinstance(p, int)]
            plan.append((op, perm))
            here = [here[p] for p in perm]
            continue
        target = expressible(here, what)
        if target is None:
            return None
        plan.append((op, target))
        here = list(what)
    return plan


def build(main: ir.Graph, anchor: ir.Node, source: ir.Value, steps: Sequence[Step], name: str | None) -> ir.Value:
    """Insert the steps before `anchor`. Returns the result, with type and shape."""
    value = source
    for i, (op, what) in enumerate(steps):
        if op == "Transpose":
            node = graph.insert_before(anchor, op, [value], {"perm": what}, hint=f"{name}_{i}")
        else:
            shape = graph.initializer(main, np.array(what, np.int64), "shape")
            node = graph.insert_before(anchor, op, [value, shape], hint=f"{name}_{i}")
        new = node.outputs[0]
        new.type, new.shape = source.type, _shape_after(value, op, what)
        value = new
    return value


def replace_by(main: ir.Graph, last: ir.Node, source: ir.Value, steps: Sequence[Step]) -> None:
    """Replace the result of `last` by these steps from `source`."""
    out = last.outputs[0]
    value = build(main, last, source, steps, out.name)
    if steps and out.shape is not None:
        value.shape = out.shape  # may name a size that the steps compute with a -1
    graph.replace_value(out, value)
    graph.remove_upwards(last)


def _shape_after(value: ir.Value, op: str, what: Sequence[int]) -> ir.Shape | None:
    have = graph.shape(value)
    if have is None:
        return None
    if op == "Transpose":
        return ir.Shape([have[p] for p in what])
    dims: list[int | str | None] = [have[i] if w == 0 else None if w == -1 else w for i, w in enumerate(what)]
    if -1 in what and all(isinstance(x, int) for x in have):
        known = int(np.prod([x for x in dims if isinstance(x, int)]))
        dims[list(what).index(-1)] = int(np.prod([x for x in have if isinstance(x, int)])) // known if known else None
    return ir.Shape(dims)
