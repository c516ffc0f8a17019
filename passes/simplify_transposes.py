"""Replaces chains of Transpose and Reshape by the shortest chain that rearranges the elements in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph
from ..compiler.passbase import Context, Pass
from ..compiler.shape_values import ShapeValues
from .rearrange import VIEWS, Rearrangement, apply
from .row_wise import meet
from .sink_transposes import SINKABLE, sink
from .view_steps import LONGEST, Step, constant_targets, dying, replace_by


@dataclass(frozen=True)
class SimplifyTransposes(Pass):
    """Merge chains of Transpose, Reshape, Squeeze and Unsqueeze; a Transpose that only moves ones is a Reshape.

    before:  a = Transpose<perm=[1,0,2]>(x); b = Reshape(a, [5, 24, 8]); c = Transpose<perm=[1,0,2]>(b);
             y = Reshape(c, [2, 12, 5, 8])                                                          (x: [2,5,96])
    after:   a = Reshape(x, [2, 5, 12, 8]); y = Transpose<perm=[0,2,1,3]>(a)

    Symbolic dimensions are followed, too. What a chain leaves to other users is kept.
    """

    name: ClassVar[str] = "simplify-transposes"

    def run(self, model: ir.Model, ctx: Context) -> int:
        values: ShapeValues | None = None
        count = sum(sink(model.graph, node) for node in graph.nodes(model, *SINKABLE))
        for node in graph.nodes(model, *VIEWS):
            values = values or ShapeValues(model)
            count += _shorten(model.graph, values, node) or meet(model.graph, values, node)
        return count


def _shorten(main: ir.Graph, values: ShapeValues, last: ir.Node) -> int:
    """Rewrite the chain that ends in `last`. Returns 1 if that saves nodes, or turns a Transpose into a Reshape."""
    chain = [last]
    while len(chain) < LONGEST and (before := graph.producer(chain[0].inputs[0], *VIEWS)) is not None:
        chain.insert(0, before)
    best: tuple[int, int, tuple[Step, ...]] | None = None
    for start in range(len(chain)):
        steps = _plan(values, chain[start:])
        if steps is None:
            continue
        removed = dying(chain[start:])
        moved = _transposes(chain[len(chain) - removed :]) - sum(s.op == "Transpose" for s in steps)
        saved = 4 * (removed - len(steps)) + moved
        if saved > 0 and (best is None or saved > best[0]):
            best = (saved, start, steps)
    if best is None:
        return 0
    _, start, steps = best
    source = chain[start].inputs[0]
    assert source is not None
    if not steps and not graph.can_replace(last.outputs[0], source):
        return 0
    replace_by(main, last, source, steps)
    return 1


def _transposes(nodes: Sequence[ir.Node]) -> int:
    return sum(n.op_type == "Transpose" for n in nodes)


def _plan(values: ShapeValues, chain: Sequence[ir.Node]) -> tuple[Step, ...] | None:
    """The shortest steps that do what `chain` does, targets as constants; None where it can't be followed."""
    dims = values.dims(chain[0].inputs[0])
    if dims is None or any(dim == 0 for dim in dims):
        return None
    made, here = Rearrangement(list(dims)), list(dims)
    for node in chain:
        out = values.dims(node.outputs[0])
        if out is None or not apply(made, node, out, source=here):
            return None
        here = list(out)
    if made.shape() != here:
        return None
    return constant_targets(dims, made.steps())
