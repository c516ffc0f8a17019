"""Makes one Reshape of a chain of reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph, ops
from ..compiler.passbase import Context, Pass
from .rearrange import expressible


@dataclass(frozen=True)
class SimplifyReshapes(Pass):
    """Merge chains of Reshape, Flatten, Squeeze and Unsqueeze.

    before:  a = Reshape(x, [2, 12]); b = Unsqueeze(a, 0); y = Reshape(b, [6, 4])
    after:   y = Reshape(x, [6, 4])

    A chain that ends in the shape it began with goes altogether. The new target is a constant: numbers, 0 for a
    symbolic dimension that stays in its place, -1 for at most one that doesn't.
    """

    name: ClassVar[str] = "simplify-reshapes"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return sum(_merge_chain(model.graph, node) for node in graph.nodes(model, *ops.RESHAPE))


def _merge_chain(main: ir.Graph, node: ir.Node) -> int:
    """Let `node` start from where the reshapes before it start. Returns the number of rewrites: 0 or 1."""
    before = graph.producer(node.inputs[0], *ops.RESHAPE)
    if before is None:
        return 0
    source = before.inputs[0]
    while (further := graph.producer(source, *ops.RESHAPE)) is not None:
        source = further.inputs[0]
    out = node.outputs[0]
    have, want = graph.shape(source), graph.shape(out)
    if source is None or have is None or want is None:
        return 0
    if have == want and None not in have and graph.can_replace(out, source):
        graph.replace_node(node, source)
        return 1
    target = expressible(have, want)
    if target is None:
        return 0
    _reshape_to(main, node, source, target)
    return 1


def _reshape_to(main: ir.Graph, node: ir.Node, source: ir.Value, target: Sequence[int]) -> None:
    """Replace `node` by a Reshape of `source`."""
    out = node.outputs[0]
    shape = graph.initializer(main, np.array(target, np.int64), "shape")
    new = graph.insert_before(node, "Reshape", [source, shape], like=out).outputs[0]
    graph.replace_node(node, new)
