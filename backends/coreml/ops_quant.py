"""Quantised operators. Constant weights stay packed; activations use Core ML's quantize and dequantize from iOS 17."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.rounding import HALF_NORMAL
from .build import F16, F32, I32, Slot, Var
from .call import Call, only_rounded
from .checks import FLOATS
from .constants import Affine, Constant
from .ops_packed import dequantised
from .packed import Packed
from .registry import lowers

_RANGES = {
    ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255), ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15),
    ir.DataType.INT16: (-32768, 32767), ir.DataType.UINT16: (0, 65535), ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
}  # fmt: skip
_NATIVE = {ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8"}


@lowers("DequantizeLinear", floats=())
def _dequantize(c: Call) -> Any:
    kind = c.kind()
    axis = c.axis(1) if c.rank(1) else 0
    block = int(c.attr("block_size", 0))
    packable = kind in _RANGES and kind not in (ir.DataType.INT16, ir.DataType.UINT16)
    known = c.is_const(1) and (not c.has(2) or c.is_const(2))
    if known and isinstance(c.slot(0).affine, Packed):
        return dequantised(c, axis, block)
    if known and c.slot(0).constant is not None:
        bits = c.const(0).bits or 8
        if packable and bits not in (4, 8) and c.const(0).size >= 10:
            return dequantised(c, axis, block)
        weight = _simplest(Affine(c.const(0), c.const(1), c.const(2) if c.has(2) else None, axis, block, bits))
        if packable and weight.data.size >= 10:
            return _packed(c, weight)
        return Slot(constant=weight.dense())
    slot = c.slot(0)
    if slot.packed is not None and not block and c.is_const(1) and (not c.has(2) or c.is_const(2)):
        zero = c.array(2) if c.has(2) else None
        if zero is not None and not zero.any():
            zero = None
        scalar = c.shape(1) in ((), (1,))
        kind_of_scale = F16 if only_rounded(c.node.outputs[0]) and _is_half(c.const(1)) else F32
        return c.op(
            "dequantize", input=slot.packed, scale=_vector(c.array(1).astype(kind_of_scale), scalar),
            zero_point=None if zero is None else _vector(zero.astype(_NATIVE[kind]), scalar),
            axis=None if scalar else np.int32(axis))  # fmt: skip
    x = c.as_float(0)
    if c.has(2):
        x = c.op("sub", x=x, y=_along(c, 2, axis, block))
    return c.op("mul", x=x, y=_along(c, 1, axis, block))


def _is_half(scale: Constant) -> bool:
    """Whether float16 holds scales in full precision: what is smaller is zero on some processors."""
    return scale.is_float16() and bool((np.abs(scale.numpy()) >= HALF_NORMAL).all())


def _vector(array: np.ndarray, scalar: bool) -> Any:
    """A parameter as MIL's quantize and dequantize want it: a vector with an axis, or a scalar without."""
    return array.reshape(())[()] if scalar else array


def _simplest(weight: Affine) -> Affine:
    """One scale for the whole tensor has rank 0."""
    if weight.scale.size == 1 and weight.scale.shape:
        one = weight.scale.map("one", lambda a: a.reshape(()), ())
        zero = None if weight.zero is None else weight.zero.map("one", lambda a: a.reshape(()), ())
        return replace(weight, scale=one, zero=zero, block=0, axis=0)
    return weight


def _packed(c: Call, weight: Affine) -> Slot:
    if c.version < 16:
        c.missing("packed weights need iOS 16")
    if c.version < 18 and (weight.bits < 8 or weight.block):
        c.missing(f"{'4-bit weights' if weight.bits < 8 else 'scales per block'} need iOS 18")
    if weight.block and weight.data.shape[weight.axis] % weight.block:
        c.missing(f"{weight.data.shape[weight.axis]} elements can't be divided into blocks of {weight.block}")
    return Slot(affine=weight)


def _along(c: Call, i: int, axis: int, block: int) -> Var:
    """The scale or zero point in input `i` as float32, in a shape that broadcasts against input 0."""
    shape, own = c.shape(), c.shape(i)
    if block:
        repeated = np.repeat(c.array(i), block, axis=axis)
        return c.tensor(repeated[tuple(slice(0, n) for n in shape)].astype(np.float32), np.float32)
    x = c.as_float32(i) if c.kind(i) in FLOATS else c.as_float(i)
    if own in ((), (1,)):
        return c.reshape(x, ())
    return c.reshape(x, tuple(own[0] if k == axis else 1 for k in range(len(shape))))


@lowers("QuantizeLinear", floats=())
def _quantize(c: Call) -> Slot:
    """round(x / scale) + zero, kept within the type's range; half to even."""
    kind = c.node.outputs[0].dtype
    axis = c.axis(1)
    if kind not in _RANGES:
        c.missing(f"quantising to {kind.name.lower() if kind else 'an unknown type'}")
    zero_known = not c.has(2) or c.is_const(2)
    if c.version >= 17 and kind in _NATIVE and c.is_const(1) and zero_known and not c.attr("block_size", 0):
        scalar = c.shape(1) in ((), (1,))
        zero = c.array(2) if c.has(2) and c.array(2).any() else None
        x = c.native() if _is_half(c.const(1)) else c.as_float32(0)
        scale = c.array(1).astype(c.builder.dtype(x))
        packed = c.op(
            "quantize", input=x, scale=_vector(scale, scalar),
            zero_point=None if zero is None else _vector(zero, scalar), output_dtype=_NATIVE[kind],
            axis=None if scalar else np.int32(axis))  # fmt: skip
        return Slot(packed=packed, other=c.cast(packed, I32))
    low, high = _RANGES[kind]
    block = int(c.attr("block_size", 0))
    y = c.op("round", x=c.op("real_div", x=c.as_float32(0), y=_along(c, 1, axis, block)))
    if c.has(2):
        y = c.op("add", x=y, y=_along(c, 2, axis, block))
    return Slot(full=c.op("clip", x=y, alpha=np.float32(low), beta=np.float32(high)))


@lowers("DynamicQuantizeLinear", floats=())
def _dynamic_quantize(c: Call) -> list[Any]:
    """Scale from the input's range (which holds 0) over 255, zero point rounded into 0 … 255, all in float32."""
    x = c.as_float32(0)
    axes = list(range(c.rank()))
    high = c.op("maximum", x=c.op("reduce_max", x=x, axes=axes, keep_dims=False), y=np.float32(0))
    low = c.op("minimum", x=c.op("reduce_min", x=x, axes=axes, keep_dims=False), y=np.float32(0))
    scale = c.op("real_div", x=c.op("sub", x=high, y=low), y=np.float32(255))
    zero = c.op("real_div", x=c.op("sub", x=np.float32(0), y=low), y=scale)
    zero = c.op("round", x=_bytes(c, zero))
    y = c.op("add", x=c.op("round", x=c.op("real_div", x=x, y=scale)), y=zero)
    return [Slot(full=_bytes(c, y)), scale, Slot(full=zero)]


def _bytes(c: Call, x: Var) -> Var:
    return c.op("clip", x=x, alpha=np.float32(0), beta=np.float32(255))


@lowers("QLinearMatMul", floats=())
def _qlinear_matmul(c: Call) -> Slot:
    """Dequantise, multiply, quantise."""
    from .ops_matmul import product

    a = _real(c, 0, 1, 2, c.rank() - 2)
    b = _real(c, 3, 4, 5, c.rank(3) - 1)
    return _requantise(c, product(c, a, b), 6, 7)


@lowers("QLinearConv", floats=())
def _qlinear_conv(c: Call) -> Slot:
    from .ops_conv import Window, window

    w: Window = window(c, c.shape(3)[2:])
    bias: Any = None
    if c.has(8):
        scale = c.array(1).astype(np.float32).reshape(()) * c.array(4).astype(np.float32).reshape(-1)
        bias = c.tensor(c.array(8).astype(np.float32) * scale, np.float32)
    y = c.op(
        "conv", x=_real(c, 0, 1, 2, 1), weight=_real(c, 3, 4, 5, 0), bias=bias, strides=w.strides, pad_type="custom",
        pad=w.pad, dilations=w.dilations, groups=int(c.attr("group", 1)))  # fmt: skip
    return _requantise(c, y, 6, 7)


def _real(c: Call, i: int, scale: int, zero: int, axis: int) -> Var:
    """Input `i` dequantised; a constant one stays packed where the target can."""
    if all(c.is_const(k) for k in (i, scale, zero)) and c.version >= 16 and c.const(i).size >= 10:
        weight = _simplest(Affine(c.const(i), c.const(scale), c.const(zero), axis, 0, 8))
        return c.builder.affine(weight, F32)
    rank = c.rank(i)
    shape = tuple(-1 if k == axis else 1 for k in range(rank))
    parts = [c.as_float(zero), c.as_float32(scale)]
    parts = [c.reshape(p, shape) if len(p.shape) and int(p.shape[0]) > 1 else c.reshape(p, ()) for p in parts]
    return c.op("mul", x=c.op("sub", x=c.as_float(i), y=parts[0]), y=parts[1])


def _requantise(c: Call, y: Var, scale: int, zero: int) -> Slot:
    kind = c.node.outputs[0].dtype
    assert kind is not None
    low, high = _RANGES[kind]
    y = c.op("round", x=c.op("real_div", x=y, y=c.reshape(c.as_float32(scale), ())))
    y = c.op("add", x=y, y=c.reshape(c.as_float(zero), ()))
    return Slot(full=c.op("clip", x=y, alpha=np.float32(low), beta=np.float32(high)))
