"""Matrix products with their bias and transposes in one node: Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from .linear import FLOATS, weight_dtype


@dataclass(frozen=True)
class FuseGemm(Pass):
    """Make Gemm of a matrix product and what surrounds it.

    Before: `m = MatMul(x, W); y = Add(m, b)`                After: `y = Gemm(x, W, b)`
    Before: `m = Gemm(x, W); y = Add(m, b)`                  After: `y = Gemm(x, W, b)`
    Before: `t = Transpose[perm=[1, 0]](x); y = Gemm(t, W)`  After: `y = Gemm[transA=1](x, W)`

    Operands are of rank 2 and floating point; weight and bias are constant, and the bias doesn't broadcast the product.
    A product of higher rank stays MatMul and Add: see flatten-linear.
    """

    name: ClassVar[str] = "fuse-gemm"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fuse what can be fused; returns the number of nodes that went."""
        count = 0
        for node in g.nodes(model, "MatMul", "Gemm"):
            node, fused = _bias(node)
            count += fused
            for position in (0, 1):
                node, fused = _transpose(node, position)
                count += fused
        return count


def _bias(node: ir.Node) -> tuple[ir.Node, int]:
    """Take the constant that is added behind `node` as its bias. Returns the node that computes now, and 0 or 1."""
    out = node.outputs[0]
    add = g.sole_user(out, "Add")
    if add is None or not _is_product(node) or weight_dtype(node.inputs[1]) is None or add.graph is not node.graph:
        return node, 0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node, 0
    bias = add.inputs[1 - add.inputs.index(out)]
    tensor = None if bias is None else g.const_tensor(bias)
    if tensor is None or tensor.dtype != out.dtype or not _broadcasts(tuple(tensor.shape.numpy()), g.shape(out)):
        return node, 0
    keep = {k: v for k, v in node.attributes.items() if k != "beta"}
    gemm = g.insert_before(add, "Gemm", [node.inputs[0], node.inputs[1], bias], keep, like=add.outputs[0])
    g.replace_value(add.outputs[0], gemm.outputs[0])
    g.remove([add, node])
    return gemm, 1


def _transpose(node: ir.Node, position: int) -> tuple[ir.Node, int]:
    """Read an operand as it was before a Transpose that serves `node` alone."""
    source = node.inputs[position]
    transpose = g.producer(source, "Transpose")
    if source is None or transpose is None or not _is_product(node) or not g.used_once(source):
        return node, 0
    if tuple(g.attr(transpose, "perm", (1, 0))) != (1, 0) or transpose.graph is not node.graph:
        return node, 0
    name = ("transA", "transB")[position]
    inputs = list(node.inputs)
    inputs[position] = transpose.inputs[0]
    attributes = {**node.attributes, name: ir.AttrInt64(name, 1 - g.attr(node, name, 0))}
    gemm = g.insert_before(node, "Gemm", inputs, attributes, like=node.outputs[0])
    g.replace_value(node.outputs[0], gemm.outputs[0])
    g.remove([node, transpose])
    return gemm, 1


def _is_product(node: ir.Node) -> bool:
    """Whether both operands are matrices of floating-point numbers."""
    return node.outputs[0].dtype in FLOATS and all(g.rank(v) == 2 for v in node.inputs[:2])


def _broadcasts(dims: tuple[int, ...], target: tuple[int | str | None, ...] | None) -> bool:
    """Whether a constant of these dimensions broadcasts to `target` without changing it."""
    if target is None or len(dims) > len(target):
        return False
    return all(d in (1, t) for d, t in zip(reversed(dims), reversed(target), strict=False))
