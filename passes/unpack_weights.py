"""Writes packed weights out where the target can't store them packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass


@dataclass(frozen=True)
class UnpackWeights(Pass):
    """Replace the dequantisation of a constant by its result, for integer widths that the target has no store for.

    Before: w = DequantizeLinear(q, scale, zero)        (q: int8 constant; target ios15)
            v = Cast<to=FLOAT>(b)                       (b: bfloat16 constant; any iOS)
    After:  w, v                                        (float32 constants)
    """

    name: ClassVar[str] = "unpack-weights"
    unpacks: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Weights go through the scratch file one by one, so that no two are in memory at once."""
        count = 0
        for node in g.nodes(model, "DequantizeLinear"):
            data = node.inputs[0]
            if not g.is_const(data) or not all(v is None or g.is_const(v) for v in node.inputs[1:]):
                continue
            assert data is not None and data.const_value is not None
            if data.const_value.dtype.bitwidth in ctx.target.weight_bits or node.outputs[0].is_graph_output():
                continue
            array = dequantised(node)
            value = g.initializer(model.graph, array, f"{node.outputs[0].name}_dense", ctx.scratch)
            g.replace_node(node, value)
            count += 1
        for node in g.nodes(model, "Cast") if ctx.target.backend == "coreml" else ():
            count += _widen(model, node, ctx)
        if count:
            ctx.note(f"{ctx.target.name} stores no packed weights: {count} were written out")
        return count


SHORT_FLOATS = frozenset({ir.DataType.BFLOAT16, *(t for t in ir.DataType if t.name.startswith("FLOAT8"))})
"""Formats of numbers that float32 holds exactly and no Core ML version has."""


def _widen(model: ir.Model, node: ir.Node, ctx: Context) -> int:
    """Replace the cast of a constant of such a format by the constant in float32."""
    source, out = node.inputs[0], node.outputs[0]
    tensor = None if source is None else g.const_tensor(source)
    if tensor is None or tensor.dtype not in SHORT_FLOATS or out.dtype != ir.DataType.FLOAT or out.is_graph_output():
        return 0
    value = g.initializer(model.graph, tensor.numpy().astype(np.float32), f"{out.name}_wide", ctx.scratch)
    g.replace_node(node, value)
    return 1


def dequantised(node: ir.Node) -> np.ndarray:
    """(q - zero) · scale as the standard defines it: per tensor, along `axis`, or in blocks along it."""
    data, scale = g.const(node.inputs[0]), g.const(node.inputs[1])
    zero = g.const(node.inputs[2]) if len(node.inputs) > 2 else None
    assert data is not None and scale is not None
    axis, block = int(g.attr(node, "axis", 1)), int(g.attr(node, "block_size", 0))

    def spread(values: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(values, block, axis).take(range(data.shape[axis]), axis)
        if values.ndim == 1 and data.ndim > 0:
            return values.reshape([-1 if a == axis % data.ndim else 1 for a in range(data.ndim)])
        return values

    whole = data.astype(np.float32)
    if zero is not None:
        whole -= spread(zero.astype(np.float32))
    found: np.ndarray = (whole * spread(scale.astype(np.float32))).astype(scale.dtype)
    return found
