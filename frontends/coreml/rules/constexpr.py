"""Compressed constants and quantisation.

Sources: `ops/defs/iOS16/constexpr_ops.py`, `iOS17/quantization_ops.py`, `iOS18/compression.py`. Stored bytes stay as
they are: affine integers become DequantizeLinear on the mapped data, the others the local functions of
compiler/functions.py, so that a package that becomes ONNX and a package again keeps them. What has no such form (blocks
along two axes, computed indices) is unpacked by nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT, INT32, INT64, Builder
from ..scaled_tables import note, scaled

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
    literal = o.literal("data")
    packed = literal is not None and o.type("data").dtype in ("int4", "uint4", "int8", "uint8")
    data = o.b.initializer(literal.stored(), literal.name) if literal is not None and packed else o.value("data")
    found = _shifted(o, data, o.shape("data"))
    note(o, found)
    return found


def _shifted(o: Call, data: ir.Value, shape: Sequence[int]) -> ir.Value:
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
        return _scaled_blocks(o, data, shape, groups)
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
        dims, axes = o.shape("indices"), _group_axes(o)
        made = scaled(o, "lut")
        parts = None if made is None or o.literal("indices") is None else made.parts()
        if made is not None and parts is not None:
            b.root.spare = True
            return _scaled_look_up(o, dims, made.half, *parts)
        if len(axes) > 1 or o.literal("indices") is None:
            return _look_up(o, o.value("indices"), dims)
        return _packed_look_up(o, _integers(o, "indices", dims), dims, axes)
    shape, entries = o.ints("shape"), o.shape("lut")[0]
    bits, literal = entries.bit_length() - 1, o.literal("indices")
    if literal is None:
        raise Unsupported("its indices are computed")
    kind = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: _UINT8}.get(bits)
    if kind is not None:
        indices = b.initializer(literal.bytes_as(kind, shape) if bits < 8 else literal.stored(shape), literal.name)
    else:
        indices = b.packed("UnpackBits", b.initializer(literal.stored(), literal.name), bits=bits, shape=shape)
    return _table_look_up(o, indices, shape, [1, entries, 1])


def _scaled_look_up(
    o: Call, dims: Sequence[int], half: bool, tables: np.ndarray, factors: np.ndarray | None
) -> ir.Value:
    """Entries of constant tables, of one axis at most, times factors for the slices of any axes."""
    b, rank = o.b, len(dims)
    axes = [a for a, n in enumerate(tables.shape[:-2]) if n > 1]
    attributes = {"axis": axes[0], "group": dims[axes[0]] // tables.shape[axes[0]]} if axes else {}
    shape, vector = list(dims), tables.shape[-1]
    if vector > 1:
        attributes["vector_axis"] = o.integer("vector_axis") % rank
        shape[attributes["vector_axis"]] *= vector
    entries = b.constant(tables.reshape(-1, *tables.shape[-2:]))
    found = b.packed("LookupWeight", _integers(o, "indices", dims), entries, shape=shape, **attributes)
    if factors is None:
        return found
    axis = next(a for a, n in enumerate(factors.shape) if n > 1)
    scale = b.constant(factors.astype(np.float16 if half else np.float32))
    found = b.packed("ScaleWeight", found, scale, axis=axis, block=1)
    return b.round16(found) if half else found


def _group_axes(o: Call) -> list[int]:
    """The axes along which there are several tables."""
    return [a for a, n in enumerate(o.shape("lut")[:-2]) if n > 1]


def _integers(o: Call, name: str, shape: Sequence[int]) -> ir.Value:
    """Constant indices as they are stored: a type of ONNX, or bytes and how to unpack them."""
    literal = o.literal(name)
    assert literal is not None
    if literal.type.element.onnx is not None:
        return o.b.initializer(literal.stored(shape), literal.name)
    packed = o.b.initializer(literal.packed(), literal.name)
    return o.b.packed("UnpackBits", packed, bits=literal.type.element.bits, shape=list(shape))


def _packed_look_up(o: Call, indices: ir.Value, shape: Sequence[int], axes: Sequence[int]) -> ir.Value:
    """LookupWeight for dense indices; `lut` is [groups of each axis …, entries, vector], groups of one axis at most."""
    *groups, entries, vector = o.shape("lut")
    attributes: dict[str, int] = {}
    if axes:
        attributes = {"axis": axes[0], "group": shape[axes[0]] // groups[axes[0]]}
    result = list(shape)
    if vector > 1:
        attributes["vector_axis"] = o.integer("vector_axis") % len(shape)
        result[attributes["vector_axis"]] *= vector
    return _table_look_up(o, indices, result, [math.prod(groups), entries, vector], **attributes)


def _table_look_up(
    o: Call, indices: ir.Value, shape: Sequence[int], dims: Sequence[int], **attributes: int
) -> ir.Value:
    literal = o.literal("lut")
    if literal is None:
        tables = o.b.reshape(o.value("lut"), dims)
    else:
        tables = o.b.initializer(literal.stored(dims), literal.name)
        if literal.type.dtype in ("int8", "uint8"):
            attributes["to"] = int(tables.dtype or FLOAT)
    return o.b.packed("LookupWeight", indices, tables, shape=list(shape), **attributes)


def _look_up(o: Call, indices: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Table entries for any indices; `lut` is [groups of each axis …, entries, vector]."""
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

_KEPT = "edgec.kept"


@dataclass(frozen=True)
class Kept:
    """The elements that a mask marks, as a sparse operator hands them on: how to store them packed.

    Attributes:
        mask: the mask's bytes.
        shape: of the dense weight.
        values: makes these elements in a row, where that does not depend on their places.
        dense: makes the weight, with anything where the mask is not set.
        zeros: whether `dense` has zeros there.
        rounded: whether what is kept was rounded to float16.
    """

    mask: ir.Value
    shape: Sequence[int]
    values: Callable[[], ir.Value] | None
    dense: Callable[[], ir.Value]
    zeros: bool = True
    rounded: bool = False

    def weight(self, b: Builder) -> ir.Value:
        """The weight."""
        shape = list(self.shape)
        if self.values is not None:
            found = b.packed("SparseWeight", self.mask, self.values(), shape=shape)
        else:
            found = self.dense()
            found = found if self.zeros else b.packed("MaskWeight", self.mask, found, shape=shape)
        return b.round16(found) if self.rounded else found


def _kept_by(o: Call, name: str) -> Kept | None:
    """What an argument keeps, if a sparse operator made it."""
    given = o.arguments.get(name)
    value = given[0].value if given and o.literal(name) is None else None
    rounded = False
    while value is not None and _KEPT not in value.meta and (node := value.producer()) and node.op_type == "Cast":
        value, rounded = node.inputs[0], True
    found = None if value is None else value.meta.get(_KEPT)
    return replace(found, rounded=rounded) if isinstance(found, Kept) else None


def _spare(o: Call, mask: ir.Value, kept: ir.Value, packed: Kept | None) -> Result:
    """Both results of a sparse operator, for whatever reads them, with their packed form, which takes their place."""
    if packed is not None:
        kept.meta[_KEPT] = packed
        o.b.root.spare = True
    return [mask, kept]


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
    kept = _kept_by(o, "nonzero_data")
    if kept is not None:
        return kept.weight(o.b)
    shape: list[int] = list(o.shape("mask")) if o.opset >= 8 else o.ints("shape")
    mask, data = o.literal("mask"), o.literal("nonzero_data")
    stored = o.shape("nonzero_data")[0]
    if mask is None or data is None or data.type.element.bits < 8 or not stored:
        dense = o.value("mask") if o.opset >= 8 else unpack(o.b, o.value("mask"), o.shape("mask")[0], 1, shape)
        return _spread(o.b, o.value("nonzero_data"), dense, shape, stored)
    flags = o.b.initializer(mask.packed() if o.opset >= 8 else mask.stored(), mask.name)
    values = o.b.initializer(data.stored(), data.name)
    to = FLOAT if data.type.dtype in ("fp16", "fp32") else values.dtype
    return o.b.packed("SparseWeight", flags, values, shape=shape, to=int(to or FLOAT))


def _kept(b: Builder, dense: ir.Value, mask: ir.Value) -> ir.Value:
    """The elements of a dense tensor where the mask is set, in order."""
    flags = b.cast(b.reshape(mask, [-1]), ir.DataType.BOOL)
    return b.op("Compress", b.reshape(dense, [-1]), flags, axis=0)


@rule("constexpr_lut_to_sparse", exact=True)
def constexpr_lut_to_sparse(o: Call) -> Result:
    b, mask, shape = o.b, o.value("indices_mask"), o.shape("indices_mask")
    count = o.shape("indices_nonzero_data")[0]
    indices = _spread(b, o.value("indices_nonzero_data"), mask, shape, count)
    dense = _look_up(o, indices, shape)
    vector = o.shape("lut")[-1]
    if vector > 1:
        axis = o.integer("vector_axis") % len(shape)
        positions = np.repeat(np.arange(shape[axis]), vector)
        mask = b.op("Gather", mask, b.constant(positions), axis=axis)
    return _spare(o, mask, _kept(b, dense, mask), _kept_indices(o, shape, count) if vector == 1 else None)


def _kept_indices(o: Call, shape: Sequence[int], count: int) -> Kept | None:
    """Indices, of which only some are stored, in packed form."""
    flags, data, axes = o.literal("indices_mask"), o.literal("indices_nonzero_data"), _group_axes(o)
    if flags is None or data is None or len(axes) > 1 or not count:
        return None
    mask = o.b.initializer(flags.packed(), flags.name)

    def values() -> ir.Value:
        return _packed_look_up(o, _integers(o, "indices_nonzero_data", [count]), [count], [])

    def dense() -> ir.Value:
        whole = _integers(o, "indices_nonzero_data", [count])
        placed = o.b.packed("SparseWeight", mask, whole, shape=list(shape), to=int(_UINT8))
        return _packed_look_up(o, placed, shape, axes)

    return Kept(mask, shape, None if axes else values, dense, zeros=False)


@rule("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(o: Call) -> Result:
    b, mask, shape = o.b, o.value("data_mask"), o.shape("data_mask")
    data = _spread(b, o.value("nonzero_data"), mask, shape, o.shape("nonzero_data")[0])
    dense = _scaled_blocks(o, data, shape, o.shape("scale"))
    return _spare(o, mask, _kept(b, dense, mask), _kept_integers(o, shape))


def _kept_integers(o: Call, shape: Sequence[int]) -> Kept | None:
    """Integers, or what is looked up, of which only some are stored, in packed form."""
    inner, data, flags = _kept_by(o, "nonzero_data"), o.literal("nonzero_data"), o.literal("data_mask")
    if inner is not None:
        return Kept(inner.mask, shape, None, lambda: _shifted(o, inner.weight(o.b), shape), not o.has("offset"))
    if data is None or flags is None or data.type.dtype not in ("int4", "uint4", "int8", "uint8") or not data.count:
        return None
    mask = o.b.initializer(flags.packed(), flags.name)
    to = ir.DataType.INT8 if data.type.dtype.startswith("int") else _UINT8

    def dense() -> ir.Value:
        stored = o.b.initializer(data.stored(), data.name)
        placed = o.b.packed("SparseWeight", mask, stored, shape=list(shape), to=int(to))
        placed.type = ir.TensorType(to)
        return _shifted(o, placed, shape)

    return Kept(mask, shape, None, dense, not o.has("offset"))
