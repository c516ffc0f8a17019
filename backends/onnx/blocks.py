"""Weights whose blocks have scales in float16, for onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler import functions
from ...compiler import graph as g


def troublesome(model: ir.Model) -> list[ir.Node]:
    """DequantizeLinear nodes of blocks with scales of float16 that a MatMul reads.

    onnxruntime 1.32 makes a MatMulNBits of both, whose scales must have the type of the activations, and then refuses
    its own graph.
    """
    return [
        node
        for node in g.nodes(model, "DequantizeLinear")
        if g.attr(node, "block_size", 0)
        and node.inputs[1] is not None
        and node.inputs[1].dtype == ir.DataType.FLOAT16
        and node.outputs[0].dtype == ir.DataType.FLOAT
        and any(n.op_type == "MatMul" and not n.domain for n, _ in node.outputs[0].uses())
    ]


def as_function(model: ir.Model, node: ir.Node) -> ir.Value:
    """What a DequantizeLinear of blocks makes, made by a local function before it: the same numbers bit for bit."""
    stored, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    inputs, name = [stored, scale], "ScaleWeight"
    if zero is not None and np.any(g.const(zero)):
        inputs, name = [*inputs, zero], "ShiftScaleWeight"
    functions.declare(model, name)
    like, rank = node.outputs[0], g.rank(stored) or 1
    attributes = {"axis": int(g.attr(node, "axis", 1)) % rank, "block": int(g.attr(node, "block_size"))}
    hint = f"{like.name}__scaled"
    made = g.insert_before(node, name, inputs, attributes, like=like, hint=hint, domain=functions.DOMAIN)
    return made.outputs[0]
