"""Weights and values on a grid of integers: one scale for a tensor, a channel or a block.

Sources: `ops/defs/iOS16/constexpr_ops.py`, `iOS17/quantization_ops.py`, `iOS18/compression.py`. Stored bytes stay as
they are: affine integers become DequantizeLinear on the mapped data, or a local function of compiler/functions.py, so
that a package that becomes ONNX and a package again keeps them. What has no such form (blocks along two axes) is
computed by nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT
from ..scaled_tables import note


def _dequantise(o: Call, data: str, scale: ir.Value, zero: ir.Value | None, **attributes: int) -> ir.Value:
    literal = o.literal(data)
    stored = o.b.initializer(literal.stored(), literal.name) if literal is not None else o.value(data)
    return o.b.op("DequantizeLinear", stored, scale, zero, **attributes)


def _affine(o: Call, data: str) -> Result:
    """scale · (data − zero_point), with one scale and zero point, or one per slice along `axis`."""
    b = o.b
    vector = [n for n in ("scale", "zero_point") if o.has(n) and o.rank(n) == 1]
    scale = o.value("scale")
    axis = o.axis("axis", of=data) if vector else 0
    zero_type = o.type("zero_point").dtype if o.has("zero_point") else ""
    if zero_type in ("", o.type(data).dtype):
        zero = o.optional("zero_point")
        if len(vector) == 1 and zero is not None:
            scale, zero = (b.op("Expand", v, b.ints([o.shape(data)[axis]])) for v in (scale, zero))
        return _dequantise(o, data, scale, zero, axis=axis)
    shape = [-1 if a == axis else 1 for a in range(o.rank(data))]
    scale, zero = (
        b.reshape(b.cast(o.value(n), FLOAT), shape) if n in vector else b.cast(o.value(n), FLOAT)
        for n in ("scale", "zero_point")
    )
    return b.op("Mul", b.op("Sub", b.cast(o.value(data), FLOAT), zero), scale)


@rule("constexpr_affine_dequantize")
def constexpr_affine_dequantize(o: Call) -> Result:
    return _affine(o, "quantized_data")


@rule("dequantize")
def dequantize(o: Call) -> Result:
    return _affine(o, "input")


@rule("quantize")
def quantize(o: Call) -> Result:
    """clip(round(input / scale) + zero_point), halves to even."""
    dtype = {"int8": np.int8, "uint8": np.uint8}.get(o.text("output_dtype"))
    if dtype is None:
        raise Unsupported(f"output type '{o.text('output_dtype')}' is neither int8 nor uint8")
    zero = o.value("zero_point") if o.has("zero_point") else o.b.constant(np.zeros(o.shape("scale"), dtype))
    axis = o.axis("axis", of="input") if o.has("axis") else 0
    return o.b.op("QuantizeLinear", o.value("input"), o.value("scale"), zero, axis=axis)


@rule("constexpr_cast")
def constexpr_cast(o: Call) -> Result:
    return o.value("source_val")


@rule("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(o: Call) -> Result:
    """scale · (data − offset), one scale per block; the block size is data.shape / scale.shape."""
    literal = o.literal("data")
    packed = literal is not None and o.type("data").dtype in ("int4", "uint4", "int8", "uint8")
    data = o.b.initializer(literal.stored(), literal.name) if literal is not None and packed else o.value("data")
    found = shifted(o, data, o.shape("data"))
    note(o, found)
    return found


def shifted(o: Call, data: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Dense data with its scales and offsets, in the simplest form that has the blocks."""
    groups = o.shape("scale")
    sizes = [(a, n, g) for a, (n, g) in enumerate(zip(shape, groups, strict=True)) if n > 1]
    blocked = [a for a, n, g in sizes if 1 < g < n]
    whole = [a for a, n, g in sizes if g == 1]
    split = [a for a, n, g in sizes if g == n]
    integers = data.dtype in (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)
    offset = o.literal("offset")
    same = not o.has("offset") or (offset is not None and offset.type.element.onnx == data.dtype)
    if integers and same:
        if not blocked and len(split) <= 1:
            target = [shape[split[0]]] if split else []
            known = o.literal("scale")
            scale = (
                o.b.reshape(o.value("scale"), target)
                if known is None
                else o.b.constant(known.numpy().astype(np.float32).reshape(target))
            )
            zero = _zero_point(o, target)
            return o.b.op("DequantizeLinear", data, scale, zero, axis=split[0] if split else 0)
        if len(blocked) == 1 and not whole:
            axis = blocked[0]
            block, kind = shape[axis] // groups[axis], int(FLOAT)
            return o.b.op(
                "DequantizeLinear", data, _scales(o), _zero_point(o, groups), axis=axis, block_size=block,
                output_dtype=kind)  # fmt: skip
    if len(blocked) > 1:
        return scaled_blocks(o, data, shape, groups)
    axis = blocked[0] if blocked else split[0] if split else 0
    block = shape[axis] // groups[axis]
    if not o.has("offset"):
        return o.b.packed("ScaleWeight", data, _scales(o), axis=axis, block=block)
    zero = _zero_point(o, groups)
    return o.b.packed("ShiftScaleWeight", data, _scales(o), zero or o.value("offset"), axis=axis, block=block)


def _scales(o: Call, name: str = "scale") -> ir.Value:
    """Scales, or tables, as they are stored."""
    literal = o.literal(name)
    return o.value(name) if literal is None else o.b.initializer(literal.stored(), literal.name)


def _zero_point(o: Call, shape: Sequence[int]) -> ir.Value | None:
    """The offset as stored, in a shape: onnxruntime can't reshape four-bit tensors."""
    offset = o.literal("offset")
    return o.b.initializer(offset.stored(shape), offset.name) if offset is not None else None


def scaled_blocks(o: Call, data: ir.Value, shape: Sequence[int], groups: Sequence[int]) -> ir.Value:
    """scale · (data − offset) for any blocks, in float: every axis is split into blocks and offsets within a block."""
    b = o.b
    inner = [d for n, g in zip(shape, groups, strict=True) for d in (g, n // g)]
    outer = [d for g in groups for d in (g, 1)]
    result = b.reshape(b.cast(data, FLOAT), inner)
    if o.has("offset"):
        result = b.op("Sub", result, b.reshape(b.cast(o.value("offset"), FLOAT), outer))
    return b.reshape(b.op("Mul", result, b.reshape(o.value("scale"), outer)), shape)
