"""Store weights that lie on an 8-bit grid as 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import initializer, insert_before, nodes
from ..compiler.passbase import Context, Pass
from . import weight_grid as grid


@dataclass(frozen=True)
class PackWeights(Pass):
    """Store weights that lie exactly on a per-channel 8-bit grid as int8 and scales.

    Before:  `y = Conv(x, w)`, w = q · scale[channel] in float32

    After:   `y = Conv(x, DequantizeLinear(q, scale))`, q in int8, a quarter of the bytes

    The grid is found in the numbers: `round-weights` or anybody else made it. What is stored dequantises to the same
    bits, or it is not stored. Targets that don't store 8-bit weights get nothing packed.

    Options:
        min_size: elements from which a weight is packed.
    """

    name: ClassVar[str] = "pack-weights"
    min_size: int = 2048

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time."""
        if 8 not in ctx.target.weight_bits:
            return 0
        count = 0
        order = {node: i for i, node in enumerate(nodes(model))}
        for weight in grid.weights(model, self.min_size):
            if weight.axis is not None:
                count += _pack(weight, weight.axis, order, ctx)
        return count


def _pack(weight: grid.Weight, axis: int, order: dict[ir.Node, int], ctx: Context) -> int:
    old, name = weight.value, weight.value.name or ""
    array = old.const_value.numpy()  # type: ignore[union-attr]
    scale = grid.recover(array, axis)
    if scale is None:
        return 0
    packed = np.empty(array.shape, np.int8)
    for rows, part in grid.blocks(array):
        s = grid.spread(scale, axis, array.ndim, rows)
        packed[rows] = grid.steps(part, s)
        assert np.array_equal(packed[rows].astype(np.float32) * s, part), f"{name} is not on its grid"
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    data = initializer(graph, packed, f"{name}__packed", ctx.scratch)
    scales = initializer(graph, scale, f"{name}__scale", ctx.scratch)
    # The main graph and every branch dequantise for themselves: a branch that is not taken costs nothing.
    dense: dict[int, ir.Value] = {}
    for node, i in sorted(weight.readers, key=lambda reader: order[reader[0]]):
        if id(node.graph) not in dense:
            made = insert_before(
                node, "DequantizeLinear", [data, scales], {"axis": axis}, like=old, hint=f"{name}__dense"
            )
            dense[id(node.graph)] = made.outputs[0]
        node.replace_input_with(i, dense[id(node.graph)])
    graph.initializers.pop(name)
    return 1
