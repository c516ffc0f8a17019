"""Packed weights that onnxruntime unpacks once, while it loads a model, and not in every run."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...compiler import graph as g
from ...compiler.quantization.packed import roots
from ..onnx.blocks import as_function

FLOAT = ir.DataType.FLOAT


def unpack_while_loading(model: ir.Model, integer: Collection[ir.Node]) -> int:
    """Spell the DequantizeLinear of every packed weight in arithmetic; returns how many.

    Before:  `w = DequantizeLinear(q, scale, zero)`

    After:   `w = Mul(Sub(Cast(q), zero), scale)`, the same numbers bit for bit

    onnxruntime folds the arithmetic of constants while it loads; a DequantizeLinear it keeps for kernels that read
    integers, and where there is none, it runs every time (or, in front of a MatMul, becomes a MatMulNBits of 8 bits,
    which took 25 times as long as the MatMul of a single row). Nodes of `integer` go on reading integers.
    """
    count = 0
    for value, chain in list(roots(model)):
        keepers = [(n, i) for n, i in value.uses() if n in integer]
        if keepers and len(keepers) == len(value.uses()) and not value.is_graph_output():
            continue
        for node in chain:
            if node.op_type == "DequantizeLinear" and not node.domain and node.graph is not None:
                count += _spell(model, node, {n for n, _ in keepers})
    return count


def _spell(model: ir.Model, node: ir.Node, integer: set[ir.Node]) -> bool:
    """Arithmetic in the place of one node, but for the readers in `integer`."""
    stored, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    out = node.outputs[0]
    rank, graph = g.rank(stored), node.graph
    if stored is None or scale is None or rank is None or out.dtype != FLOAT or not isinstance(graph, ir.Graph):
        return False
    axis = int(g.attr(node, "axis", 1)) % max(rank, 1)
    if g.attr(node, "block_size", 0):
        made = as_function(model, node)
    else:
        real = _cast(node, stored)
        if zero is not None and np.any(g.const(zero)):
            real = _with(node, "Sub", real, _spread(graph, zero, axis, rank))
        made = _with(node, "Mul", real, _spread(graph, scale, axis, rank))
    for reader, i in list(out.uses()):
        if reader not in integer:
            reader.replace_input_with(i, made)
    if out.is_graph_output():
        g.replace_value(out, made)
    g.remove_upwards(node)
    return True


def _cast(node: ir.Node, value: ir.Value) -> ir.Value:
    made = g.insert_before(node, "Cast", [value], {"to": int(FLOAT)}, hint=f"{node.outputs[0].name}__real").outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), value.shape
    return made


def _with(node: ir.Node, op: str, value: ir.Value, constant: ir.Value) -> ir.Value:
    like = node.outputs[0]
    return g.insert_before(node, op, [value, constant], like=like, hint=f"{like.name}__{op.lower()}").outputs[0]


def _spread(graph: ir.Graph, value: ir.Value, axis: int, rank: int) -> ir.Value:
    """A scale or zero point as float, in a shape that multiplies along `axis`."""
    array = np.asarray(g.const(value)).astype(np.float32)
    if array.ndim == 1 and rank:
        array = array.reshape([-1 if a == axis else 1 for a in range(rank)])
    return g.initializer(graph, array, f"{value.name}_spread")
