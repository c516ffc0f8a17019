"""Dequantisation written out in arithmetic, as one DequantizeLinear: what a backend reads as a compressed weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass

_STORED = frozenset({
    ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
})  # fmt: skip


@dataclass(frozen=True)
class FuseDequantize(Pass):
    """Recognise a weight that is stored as small integers and widened by Cast, Sub and Mul.

    Before: `w = Mul(Sub(Cast(q, to=float), z), s)`, with constants `q`, `z` (perhaps none) and `s`
    After:  `w = DequantizeLinear(q, s, z)`

    Scale and zero point are one number, or one per slice along one axis. The numbers are the same bit for bit.
    """

    name: ClassVar[str] = "fuse-dequantize"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fuse what can be fused; returns the number of dequantised constants."""
        return sum(_fuse(node, ctx) for node in g.nodes(model, "Mul"))


def _fuse(node: ir.Node, ctx: Context) -> bool:
    found = _split(node)
    if found is None:
        return False
    data, scale = found
    sub = g.producer(data, "Sub")
    zero = None if sub is None else sub.inputs[1]
    cast = g.producer(data if sub is None else sub.inputs[0], "Cast")
    stored = None if cast is None else cast.inputs[0]
    tensor = None if stored is None else g.const_tensor(stored)
    out = node.outputs[0]
    if stored is None or tensor is None or tensor.dtype not in _STORED or out.dtype != ir.DataType.FLOAT:
        return False
    dims = tuple(tensor.shape.numpy())
    axis = _axis(g.const(scale), dims)
    zeros = None if sub is None else _zero_point(g.const(zero), g.const(scale), tensor)
    if axis is None or (sub is not None and zeros is None):
        ctx.note(f"{node.name}: looks like a dequantised weight, but not with one scale per slice of {stored.name}")
        return False
    _write(node, stored, np.asarray(g.const(scale)), zeros, axis, ctx)
    return True


def _split(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The varying and the constant operand of a multiplication."""
    a, b = node.inputs
    if a is None or b is None or g.is_const(a) == g.is_const(b):
        return None
    return (b, a) if g.is_const(a) else (a, b)


def _axis(scale: np.ndarray | None, dims: tuple[int, ...]) -> int | None:
    """Along which axis of the stored weight the scale varies; 0 for one number; None for anything else."""
    if scale is None or scale.ndim > len(dims):
        return None
    if scale.size == 1:
        return 0
    own = (1,) * (len(dims) - scale.ndim) + scale.shape
    axis = int(np.argmax(own))
    return axis if own[axis] == scale.size == dims[axis] else None


def _zero_point(zero: np.ndarray | None, scale: np.ndarray | None, tensor: ir.TensorProtocol) -> np.ndarray | None:
    """The zero point in the scale's shape and the weight's type; None if it isn't whole, or out of its range."""
    if zero is None or scale is None or (zero.size != 1 and zero.shape != scale.shape):
        return None
    bits, signed = tensor.dtype.bitwidth, tensor.dtype.is_signed()
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if (zero != np.round(zero)).any() or (zero < low).any() or (zero > high).any():
        return None
    return np.broadcast_to(zero.reshape(()) if zero.size == 1 else zero, scale.shape).astype(tensor.dtype.numpy())


def _write(
    node: ir.Node, stored: ir.Value, scale: np.ndarray, zero: np.ndarray | None, axis: int, ctx: Context
) -> None:
    graph, out = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph) and stored.dtype is not None
    flat = () if scale.size == 1 else (-1,)
    inputs: list[ir.Value] = [stored, g.initializer(graph, scale.reshape(flat), f"{stored.name}_scale", ctx.scratch)]
    if zero is not None:
        inputs.append(g.initializer(graph, zero.reshape(flat), f"{stored.name}_zero", ctx.scratch))
    made = g.insert_before(node, "DequantizeLinear", inputs, {"axis": axis} if flat else {}, like=out)
    g.replace_node(node, made.outputs[0])
