"""Compressed constants and quantisation.

Sources: `ops/defs/iOS16/constexpr_ops.py`, `iOS17/quantization_ops.py`, `iOS18/compression.py`. Stored bytes stay as
they are: affine integers become DequantizeLinear on the mapped data; indices and masks that ONNX has no type for are
unpacked by nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT, INT32, INT64, Builder

_UINT8, _UINT32 = ir.DataType.UINT8, ir.DataType.UINT32


def unpack(b: Builder, packed: ir.Value, stored: int, bits: int, shape: Sequence[int]) -> ir.Value:
    """UINT8 values of `bits` bits each from `stored` packed bytes (lowest bits first), in `shape`."""
    count = math.prod(shape)
    if bits == 8:
        return b.reshape(packed, shape)
    group = math.lcm(bits, 8) // 8
    groups = math.ceil(stored / group)
    if groups * group > stored:
        packed = b.op("Pad", packed, b.ints([0, groups * group - stored]))
    word = packed
    if group > 1:
        word = b.cast(b.reshape(packed, [groups, group]), _UINT32)
        places = b.constant((1 << 8 * np.arange(group)).astype(np.uint32))
        word = b.cast(b.op("ReduceSum", b.cast(b.op("Mul", word, places), INT64), b.ints([1]), keepdims=0), _UINT32)
    dtype = np.uint8 if group == 1 else np.uint32
    shifts = b.constant((bits * np.arange(group * 8 // bits)).astype(dtype))
    shifted = b.op("BitShift", b.reshape(word, [groups, 1]), shifts, direction="RIGHT")
    values = b.op("BitwiseAnd", shifted, b.constant(np.array((1 << bits) - 1, dtype)))
    flat = b.reshape(values if group == 1 else b.cast(values, _UINT8), [-1])
    if count != groups * group * 8 // bits:
        flat = b.slice(flat, [0], [count], [0])
    return b.reshape(flat, shape)


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
    shape, groups = o.shape("data"), o.shape("scale")
    integers = o.type("data").dtype in ("int4", "uint4", "int8", "uint8") and o.literal("data") is not None
    offset = o.literal("offset")
    same_type = not o.has("offset") or (offset is not None and offset.type.dtype == o.type("data").dtype)
    blocked = [a for a, (n, g) in enumerate(zip(shape, groups, strict=True)) if 1 < g < n]
    whole = [a for a, (n, g) in enumerate(zip(shape, groups, strict=True)) if g == 1 < n]
    split = [a for a, (n, g) in enumerate(zip(shape, groups, strict=True)) if g == n > 1]
    if integers and same_type:
        if not blocked and len(split) <= 1:
            target = [shape[split[0]]] if split else []
            scale, zero = o.b.reshape(o.value("scale"), target), _zero_point(o, target)
            return _dequantise(o, "data", scale, zero, axis=split[0] if split else 0)
        if len(blocked) == 1 and not whole:
            axis, zero = blocked[0], _zero_point(o, groups)
            return _dequantise(o, "data", o.value("scale"), zero, axis=axis, block_size=shape[axis] // groups[axis])
    return _scaled_blocks(o, o.value("data"), shape, groups)


def _zero_point(o: Call, shape: Sequence[int]) -> ir.Value | None:
    """The offset as stored, in a shape: onnxruntime can't reshape four-bit tensors."""
    offset = o.literal("offset")
    return o.b.initializer(offset.stored(shape), offset.name) if offset is not None else None


def _scaled_blocks(o: Call, data: ir.Value, shape: Sequence[int], groups: Sequence[int]) -> ir.Value:
    """scale · (data − offset) for any blocks, in float: every axis is split into blocks and offsets within a block."""
    b = o.b
    inner = [d for n, g in zip(shape, groups, strict=True) for d in (g, n // g)]
    outer = [d for g in groups for d in (g, 1)]
    result = b.reshape(b.cast(data, FLOAT), inner)
    if o.has("offset"):
        result = b.op("Sub", result, b.reshape(b.cast(o.value("offset"), FLOAT), outer))
    return b.reshape(b.op("Mul", result, b.reshape(o.value("scale"), outer)), shape)


# Lookup tables ------------------------------------------------------------------------------------------------------


@rule("constexpr_lut_to_dense", exact=True)
def constexpr_lut_to_dense(o: Call) -> Result:
    """iOS 16 has packed bytes and a shape; iOS 18 has indices of a sub-byte type and a table per group."""
    b = o.b
    if o.opset >= 8:
        return _look_up(o, o.value("indices"), o.shape("indices"))
    shape, entries = o.ints("shape"), o.shape("lut")[0]
    indices = unpack(b, o.value("indices"), o.shape("indices")[0], entries.bit_length() - 1, shape)
    return b.op("Gather", o.value("lut"), b.cast(indices, INT32), axis=0)


def _look_up(o: Call, indices: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Table entries for indices; `lut` is [groups of each axis …, entries, vector]."""
    b = o.b
    *groups, entries, vector = o.shape("lut")
    table = b.reshape(o.value("lut"), [-1, vector])
    index = b.cast(indices, INT32)
    if math.prod(groups) > 1:
        inner = [d for n, g in zip(shape, groups, strict=True) for d in (g, n // g)]
        first = np.arange(math.prod(groups), dtype=np.int32) * entries
        offset = b.constant(first.reshape([d for g in groups for d in (g, 1)]))
        index = b.reshape(b.op("Add", b.reshape(index, inner), offset), shape)
    found = b.op("Gather", table, index, axis=0)
    if vector == 1:
        return b.reshape(found, shape)
    rank = len(shape)
    axis = o.integer("vector_axis") % rank
    moved = b.transpose(found, [*range(axis + 1), rank, *range(axis + 1, rank)])
    return b.reshape(moved, [n * vector if a == axis else n for a, n in enumerate(shape)])


# Sparse constants ---------------------------------------------------------------------------------------------------


def _spread(b: Builder, nonzero: ir.Value, mask: ir.Value, shape: Sequence[int], stored: int) -> ir.Value:
    """Values put where the mask (0 or 1, in `shape`) is set, zero elsewhere."""
    flat = b.cast(b.reshape(mask, [-1]), INT32)
    zero = b.op("CastLike", b.ints(0), nonzero)
    if stored == 0:
        return b.op("Expand", zero, b.ints(list(shape)))
    order = b.op(
        "Max",
        b.op("Sub", b.op("CumSum", flat, b.ints(0)), b.constant(np.array(1, np.int32))),
        b.constant(np.array(0, np.int32)),
    )
    picked = b.op("Gather", nonzero, order, axis=0)
    return b.reshape(b.op("Where", b.cast(flat, ir.DataType.BOOL), picked, zero), shape)


@rule("constexpr_sparse_to_dense", exact=True)
def constexpr_sparse_to_dense(o: Call) -> Result:
    """iOS 16 has packed bytes and a shape, iOS 18 a uint1 tensor."""
    nonzero, stored = o.value("nonzero_data"), o.shape("nonzero_data")[0]
    if o.opset >= 8:
        return _spread(o.b, nonzero, o.value("mask"), o.shape("mask"), stored)
    shape = o.ints("shape")
    mask = unpack(o.b, o.value("mask"), o.shape("mask")[0], 1, shape)
    return _spread(o.b, nonzero, mask, shape, stored)


def _kept(b: Builder, dense: ir.Value, mask: ir.Value) -> ir.Value:
    """The elements of a dense tensor where the mask is set, in order."""
    flags = b.cast(b.reshape(mask, [-1]), ir.DataType.BOOL)
    return b.op("Compress", b.reshape(dense, [-1]), flags, axis=0)


@rule("constexpr_lut_to_sparse", exact=True)
def constexpr_lut_to_sparse(o: Call) -> Result:
    b, mask, shape = o.b, o.value("indices_mask"), o.shape("indices_mask")
    indices = _spread(b, o.value("indices_nonzero_data"), mask, shape, o.shape("indices_nonzero_data")[0])
    dense = _look_up(o, indices, shape)
    vector = o.shape("lut")[-1]
    if vector > 1:
        axis = o.integer("vector_axis") % len(shape)
        positions = np.repeat(np.arange(shape[axis]), vector)
        mask = b.op("Gather", mask, b.constant(positions), axis=axis)
    return [mask, _kept(b, dense, mask)]


@rule("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(o: Call) -> Result:
    b, mask, shape = o.b, o.value("data_mask"), o.shape("data_mask")
    data = _spread(b, o.value("nonzero_data"), mask, shape, o.shape("nonzero_data")[0])
    dense = _scaled_blocks(o, data, shape, o.shape("scale"))
    return [mask, _kept(b, dense, mask)]
