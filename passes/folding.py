"""How constant scales and shifts go into the weights of a linear operator, before or behind it.

Everything is computed in float64 and rounded once. What would overflow, or make the model grow because a weight is
shared, is left alone with a note.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context
from ..compiler.weights import SMALL
from .linear import Linear, Side

FAR = 1e3
"""A shift before a linear operator beyond this is left alone: folding it would add and subtract two big numbers."""

Vectors = tuple[np.ndarray | None, np.ndarray | None]
"""Scale and shift, a number per channel each; None for a scale of 1 and a shift of 0."""


def rescale(linear: Linear, scale: np.ndarray | None, shift: np.ndarray | None, ctx: Context) -> bool:
    """Make `linear` compute `result * scale + shift`, both broadcasting against the result. False if it can't."""
    side = linear.output_side()
    vectors = None if side is None else _vectors(side, scale, shift)
    if side is None or vectors is None or (shift is not None and linear.bias_node is None):
        return False
    s, t = vectors
    bias = _bias(linear)
    if bias is not None or t is not None:
        old = np.zeros(()) if bias is None else bias
        bias = old * (1.0 if s is None else _bias_row(linear, s)) + (0.0 if t is None else _bias_row(linear, t))
    if not _possible(linear, s, bias, ctx):
        return False
    _update(linear, side, s, bias, ctx)
    return True


def absorb(linears: list[Linear], scale: np.ndarray | None, shift: np.ndarray | None, ctx: Context) -> bool:
    """Make all `linears` compute what they do now of `input * scale + shift`. False if one of them can't."""
    plans = []
    for linear in linears:
        side = linear.input_side()
        vectors = None if side is None else _vectors(side, scale, shift)
        if side is None or vectors is None:
            return False
        s, t = vectors
        t = t if t is not None and t.any() else None
        if t is not None and not _shift_allowed(linear, t, ctx):
            return False
        bias = _absorbed_bias(linear, side, s, t)
        # Nothing is written before every one of them is known to work.
        if not _possible(linear, s, bias, ctx):
            return False
        plans.append((linear, side, s, bias))
    for linear, side, s, bias in plans:
        _update(linear, side, s, bias, ctx)
    return True


def _vectors(side: Side, scale: np.ndarray | None, shift: np.ndarray | None) -> Vectors | None:
    """Scale (None: 1) and shift (None: 0) per channel; None if one of them is not per channel."""
    s = None if scale is None else side.vector(scale)
    t = None if shift is None else side.vector(shift)
    return None if (scale is not None and s is None) or (shift is not None and t is None) else (s, t)


def _shift_allowed(linear: Linear, shift: np.ndarray, ctx: Context) -> bool:
    if not linear.takes_shift():
        if linear.node.op_type == "Conv":
            ctx.note(f"{linear.node.name}: a constant before this Conv stays, because the Conv pads with zeros")
        return False
    if np.abs(shift).max() > FAR:
        ctx.note(f"{linear.node.name}: a constant over {FAR:g} before this {linear.node.op_type} stays, for precision")
        return False
    return True


def _absorbed_bias(linear: Linear, side: Side, s: np.ndarray | None, t: np.ndarray | None) -> np.ndarray | None:
    """The new bias, or None if it stays as it is."""
    node = linear.node
    old = _bias(linear)
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, var = (g.const(v).astype(np.float64) for v in node.inputs[1:5])  # type: ignore[union-attr]
        factor = gamma / np.sqrt(var + g.attr(node, "epsilon", 1e-5))
        return np.asarray(beta + factor * ((0.0 if t is None else t) - mean + (1.0 if s is None else s) * mean))
    if t is None:
        return None
    weight = g.const(linear.weight)
    assert weight is not None
    view = weight.reshape(side.view)
    match node.op_type:
        case "Conv":
            extra = np.einsum("goik,gi->go", view, side.spread(t)[:, 0, :, 0], dtype=np.float64).reshape(-1)
        case "Gemm":
            matrix = view.T if g.attr(node, "transB", 0) else view
            extra = float(g.attr(node, "alpha", 1.0)) * np.einsum("kn,k->n", matrix, t, dtype=np.float64)
        case _:
            extra = np.einsum("kn,k->n" if linear.weight_at else "nk,k->n", view, t, dtype=np.float64)
            extra = _bias_row(linear, extra)
    return np.asarray(extra if old is None else old + extra)


def _bias(linear: Linear) -> np.ndarray | None:
    """The bias in float64, times Gemm's beta."""
    array = g.const(linear.bias)
    if array is None:
        return None
    beta = float(g.attr(linear.node, "beta", 1.0)) if linear.node.op_type == "Gemm" else 1.0
    return np.asarray(array.astype(np.float64) * beta)


def _bias_row(linear: Linear, vector: np.ndarray) -> np.ndarray:
    """A vector over output channels, shaped to broadcast against the bias."""
    return vector.reshape(-1, 1) if linear.node.op_type == "MatMul" and linear.weight_at == 0 else vector


def _possible(linear: Linear, scale: np.ndarray | None, bias: np.ndarray | None, ctx: Context) -> bool:
    """Whether weight * scale and bias can be written.

    Not if others read the weight (they would keep the old one, and the model would grow), or out of the type's range.
    """
    tensor, weight = g.const_tensor(linear.weight), g.const(linear.weight)
    assert tensor is not None and weight is not None
    info = np.finfo(weight.dtype)
    fits = bias is None or bool((np.abs(bias) <= info.max).all())
    if scale is not None and weight.size:
        if len(linear.weight.uses()) > 1 and tensor.nbytes > SMALL:
            name = linear.weight.name
            ctx.note(f"{linear.node.name}: its weight {name} has other users, so nothing is folded into it")
            return False
        largest = max(float(weight.max()), -float(weight.min())) * float(np.abs(scale).max())
        fits = fits and (largest == 0 or float(info.tiny) <= largest <= float(info.max))
    if not fits:
        ctx.note(f"{linear.node.name}: a constant next to it would take its weights out of the range of {weight.dtype}")
    return fits


def _update(linear: Linear, side: Side, s: np.ndarray | None, bias: np.ndarray | None, ctx: Context) -> None:
    """Write weight * s (None: as it is) and bias (None: as it is)."""
    node, graph = linear.node, linear.node.graph
    assert isinstance(graph, ir.Graph)
    if s is not None and not (s == 1.0).all():
        weight = _scaled(g.const(linear.weight), side, s)
        swap(node, linear.weight_at, g.initializer(graph, weight, f"{linear.weight.name}_scaled", ctx.scratch))
    if bias is not None:
        assert linear.bias_node is not None
        old = linear.bias
        array = _full(bias, linear).astype(_dtype(old or linear.weight))
        hint = f"{old.name}_folded" if old is not None else f"{node.name or linear.weight.name}_bias"
        swap(linear.bias_node, linear.bias_at, g.initializer(graph, array, hint, ctx.scratch))
        if node.op_type == "Gemm":
            node.attributes.pop("beta", None)


def _full(bias: np.ndarray, linear: Linear) -> np.ndarray:
    """The bias at its full length where the operator wants exactly one number per channel."""
    out = linear.output_side()
    if out is None or linear.node.op_type in ("Gemm", "MatMul"):
        return bias
    return np.broadcast_to(bias, (out.channels,))


def _scaled(weight: np.ndarray | None, side: Side, s: np.ndarray) -> np.ndarray:
    """weight * s, multiplied in float64 piece by piece (numpy casts in small buffers) and rounded once."""
    assert weight is not None
    out = np.empty(side.view, weight.dtype)
    np.multiply(weight.reshape(side.view), side.spread(s), out=out, dtype=np.float64, casting="same_kind")
    return out.reshape(weight.shape)


def _dtype(value: ir.Value) -> np.dtype:
    tensor = g.const_tensor(value)
    assert tensor is not None
    return np.dtype(tensor.dtype.numpy())


def swap(node: ir.Node, position: int, new: ir.Value) -> None:
    """Make `node` read `new` at `position`; what nobody reads any more is dropped from its graph."""
    old = node.inputs[position] if position < len(node.inputs) else None
    if position >= len(node.inputs):
        node.resize_inputs(position + 1)
    node.replace_input_with(position, new)
    drop(old)


def drop(value: ir.Value | None) -> None:
    """Take an initializer that nobody reads out of its graph."""
    if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        owner = value.graph
        if isinstance(owner, ir.Graph) and value.name is not None and not value.is_graph_input():
            del owner.initializers[value.name]


def remove(node: ir.Node) -> None:
    """Remove a node that nobody reads any more, and the constants that only it read."""
    operands = list(node.inputs)
    g.remove([node])
    for value in operands:
        drop(value)
