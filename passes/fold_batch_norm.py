"""BatchNormalization into the linear operator on either side of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from .folding import absorb, remove, rescale
from .linear import Linear, linear_at, linear_of


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization (inference form) into a linear operator's weight and bias.

    Before: `c = Conv(x, W, b); y = BatchNormalization(c, scale, B, mean, var)`
    After:  `y = Conv(x, W * s, b * s + B - mean * s)` with `s = scale / sqrt(var + epsilon)`

    Also into ConvTranspose, Gemm, MatMul (with or without an Add behind it) and another BatchNormalization; and
    forwards, `Conv(BatchNormalization(x))`, where no zero padding meets the normalised values. Computed in float64,
    rounded once. A BatchNormalization with no such neighbour stays one node.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fold what can be folded; returns the number of BatchNormalization nodes that went."""
        count = sum(_fold_back(node, ctx) for node in g.nodes(model, "BatchNormalization"))
        return count + sum(_fold_forward(node, ctx) for node in reversed(list(g.nodes(model, "BatchNormalization"))))


def _affine(node: ir.Node, ctx: Context) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift per channel of a BatchNormalization in inference form, in float64; None if not usable."""
    if linear_at(node) is None or len(node.outputs) > 1 or g.rank(node.inputs[0]) is None:
        return None
    gamma, beta, mean, var = (np.asarray(g.const(v), np.float64) for v in node.inputs[1:5])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = gamma / np.sqrt(var + g.attr(node, "epsilon", 1e-5))
        shift = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        ctx.note(f"{node.name}: not folded, its variance or scale gives infinite or undefined numbers")
        return None
    dims = (-1,) + (1,) * ((g.rank(node.inputs[0]) or 2) - 2)
    return scale.reshape(dims), shift.reshape(dims)


def _fold_back(node: ir.Node, ctx: Context) -> bool:
    """Into the operator whose result is normalised."""
    data, out = node.inputs[0], node.outputs[0]
    linear = linear_of(data)
    if linear is None or data is None or not g.used_once(data) or linear.node.graph is not node.graph:
        return False
    affine = _affine(node, ctx)
    if affine is None:
        return False
    scale, shift = affine
    if linear.node.op_type == "MatMul" and linear.bias_node is None:
        return _matmul(node, linear, scale, shift, ctx)
    if not g.can_replace(out, data) or not rescale(linear, scale, shift, ctx):
        return False
    g.replace_value(out, data)
    remove(node)
    return True


def _matmul(node: ir.Node, linear: Linear, scale: np.ndarray, shift: np.ndarray, ctx: Context) -> bool:
    """A MatMul has no place for the shift: an Add takes the place of the BatchNormalization."""
    data, out = linear.result, node.outputs[0]
    if not rescale(linear, scale, None, ctx):
        return False
    assert isinstance(node.graph, ir.Graph) and data.dtype is not None
    bias = g.initializer(node.graph, shift.astype(data.dtype.numpy()), f"{node.name or out.name}_shift", ctx.scratch)
    add = g.insert_before(node, "Add", [data, bias], like=out)
    g.replace_value(out, add.outputs[0])
    remove(node)
    return True


def _fold_forward(node: ir.Node, ctx: Context) -> bool:
    """Into all the operators that read the normalised value."""
    data, out = node.inputs[0], node.outputs[0]
    readers = [] if out.is_graph_output() else [linear_at(user) for user in g.users(out)]
    linears = [r for r in readers if r is not None and r.data is out and r.node.graph is node.graph]
    if not readers or len(linears) != len(out.uses()) or data is None:
        return False
    affine = _affine(node, ctx)
    if affine is None or not absorb(linears, *affine, ctx):
        return False
    g.replace_value(out, data)
    remove(node)
    return True
