"""Matrix products with their bias and transposes in one node: Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from .linear import FLOATS, VIEWS, through_view, weight_dtype

_LONG = 4
"""How many views in a row are looked through."""


@dataclass(frozen=True)
class FuseGemm(Pass):
    """Make Gemm of a matrix product and what surrounds it.

    Before: `m = MatMul(x, W); y = Add(m, b)`                After: `y = Gemm(x, W, b)`
    Before: `m = Gemm(x, W); y = Add(m, b)`                  After: `y = Gemm(x, W, b)`
    Before: `t = Transpose[perm=[1, 0]](x); y = Gemm(t, W)`  After: `y = Gemm[transA=1](x, W)`

    A Reshape or Transpose may be between product and Add. Operands are of rank 2 and floating point; weight and bias
    are constant, and the bias doesn't broadcast the product. A product of higher rank stays MatMul and Add: see
    flatten-linear.
    """

    name: ClassVar[str] = "fuse-gemm"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fuse what can be fused; returns the number of nodes that went."""
        count = 0
        for node in g.nodes(model, "MatMul", "Gemm"):
            node, fused = _bias(node, ctx)
            count += fused
            for position in (0, 1):
                node, fused = _transpose(node, position)
                count += fused
        return count


def _bias(node: ir.Node, ctx: Context) -> tuple[ir.Node, int]:
    """Take the constant that is added behind `node` as its bias. Returns the node that computes now, and 0 or 1."""
    product = out = node.outputs[0]
    views: list[ir.Node] = []
    while len(views) < _LONG and (view := g.sole_user(out, *VIEWS)) is not None and view.inputs[0] is out:
        views.append(view)
        out = view.outputs[0]
    add = g.sole_user(out, "Add")
    if add is None or not _is_product(node) or weight_dtype(node.inputs[1]) is None or add.graph is not node.graph:
        return node, 0
    added = add.inputs[1 - add.inputs.index(out)]
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or not g.can_replace(add.outputs[0], out):
        return node, 0
    bias = None if added is None or added.dtype != product.dtype else _operand(added, product, views, add, ctx)
    if bias is None:
        return node, 0
    keep = {k: v for k, v in node.attributes.items() if k != "beta"}
    gemm = g.insert_before(node, "Gemm", [node.inputs[0], node.inputs[1], bias], keep, like=product)
    g.replace_value(add.outputs[0], out)
    g.replace_value(product, gemm.outputs[0])
    g.remove([add, node])
    return gemm, 1


def _operand(added: ir.Value, product: ir.Value, views: list[ir.Node], add: ir.Node, ctx: Context) -> ir.Value | None:
    """The bias as Gemm wants it, before the views; None if there is no such constant."""
    tensor = g.const_tensor(added)
    if tensor is None or g.shape(add.outputs[0]) != g.shape(add.inputs[1 - add.inputs.index(added)]):
        return None
    if not views:
        return added if _broadcasts(tuple(tensor.shape.numpy()), g.shape(product)) else None
    array: np.ndarray | None = tensor.numpy()
    for view in reversed(views):
        array = through_view(array, view)
    if array is None or not _broadcasts(array.shape, g.shape(product)):
        return None
    assert isinstance(add.graph, ir.Graph)
    return g.initializer(add.graph, array, f"{added.name}_flat", ctx.scratch)


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
