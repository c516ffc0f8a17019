"""Products with weights of 4 or 8 bits in blocks: onnxruntime's MatMulNBits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler import graph as g
from ...compiler.quantization.lifting import MICROSOFT

BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8, ir.DataType.UINT8: 8}
LEAST = 16
"""Elements of a block at least; a power of two."""


def fits(node: ir.Node) -> bool:
    """Whether `node` is a product with such a weight, K x N, in blocks along K."""
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = g.producer(node.inputs[1], "DequantizeLinear")
    if weight is None or any(v is not None and not g.is_const(v) for v in weight.inputs):
        return False
    q, block = weight.inputs[0], int(g.attr(weight, "block_size", 0))
    dims = g.static_shape(q)
    if q is None or q.dtype not in BITS or dims is None or len(dims) != 2 or block < LEAST or block & (block - 1):
        return False
    return int(g.attr(weight, "axis", 1)) % 2 == 0 and weight.outputs[0].dtype == ir.DataType.FLOAT


def multiply(node: ir.Node) -> None:
    """Write one operator for a product and its weight.

    Before:  `y = MatMul(x, DequantizeLinear<axis=0, block_size=32>(q, s, z))`

    After:   `y = com.microsoft.MatMulNBits<bits=4, block_size=32, accuracy_level=4>(x, q, s, z)`

    Layouts: onnxruntime, docs/ContribOperators.md. At level 4, activations are rounded to 8 bits in blocks as well.
    """
    weight, out, graph = g.producer(node.inputs[1], "DequantizeLinear"), node.outputs[0], node.graph
    assert weight is not None and isinstance(graph, ir.Graph)
    stored, block = weight.inputs[0], int(g.attr(weight, "block_size"))
    assert stored is not None and stored.dtype is not None
    bits, signed = BITS[stored.dtype], stored.dtype.is_signed()
    shift, (rows, columns) = (1 << bits - 1) if signed else 0, g.static_shape(stored) or (0, 0)
    count = -(-rows // block)
    q = np.full((columns, count * block), 1 << bits - 1, np.uint8)
    q[:, :rows] = np.asarray(g.const(stored)).astype(np.int16).T + shift
    scale = np.asarray(g.const(weight.inputs[1])).astype(np.float32).T
    zero = g.const(weight.inputs[2]) if len(weight.inputs) > 2 else None
    named = [("packed", pack(q.reshape(columns, count, block), bits)), ("scales", np.ascontiguousarray(scale))]
    if zero is not None or not signed:
        zeros = np.zeros((columns, count), np.uint8) if zero is None else zero.astype(np.int16).T + shift
        named.append(("zeros", pack(zeros.astype(np.uint8), bits)))
    constants = [g.initializer(graph, a, f"{stored.name}_{n}") for n, a in named]
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    inputs, hint = [node.inputs[0], *constants], f"{out.name}__nbits"
    made = g.insert_before(node, "MatMulNBits", inputs, attributes, like=out, hint=hint, domain=MICROSOFT)
    graph.opset_imports.setdefault(MICROSOFT, 1)
    g.replace_node(node, made.outputs[0])


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Two integers of 4 bits in a byte along the last axis, the first one low; those of 8 as they are."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], -1)
    return np.asarray(values[..., ::2] | values[..., 1::2] << 4)
