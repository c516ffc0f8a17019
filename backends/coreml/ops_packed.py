"""The operators that make weights of what is stored (compiler/functions.py), kept as what Core ML stores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...compiler.functions import DECODERS
from ...compiler.quantization.bits import unpack_bits
from .build import F16, Slot
from .call import Call
from .constants import Constant
from .packed import Lut, Packed, Shift, flags_of, spread_out
from .registry import lowers

SMALL = 10
"""Elements below which a weight is stored as it is: coremltools packs none either."""


@lowers("UnpackBits", floats=())
def _unpack(c: Call) -> Slot:
    bits, low, shape = int(c.attr("bits")), int(c.attr("low", 0)), tuple(c.attr("shape"))
    signed = int(c.attr("to", ir.DataType.UINT8)) == ir.DataType.INT8
    packed, dtype = c.const(0), np.dtype(np.int8 if signed else np.uint8)
    count = int(np.prod(shape, dtype=np.int64))

    def read() -> np.ndarray:
        return unpack_bits(packed.numpy(), bits, count, low).astype(dtype, copy=False).reshape(shape)

    key = (*packed.key, "unpacked", bits, low, shape)
    return Slot(constant=Constant(read, shape, dtype, key, packed.tensor, bits))


@lowers("LookupWeight", floats=())
def _look_up(c: Call) -> Slot:
    axis, group = int(c.attr("axis", 0)), int(c.attr("group", 0))
    tables = c.const(1)
    if tables.dtype.kind not in "f":
        tables = tables.cast(np.float32)
    lut = Lut(tables, axis, group if tables.shape[0] > 1 else 0, int(c.attr("vector_axis", 0)))
    return _made(c, _add_table(_integers(c, 0), lut))


def _add_table(weight: Packed, lut: Lut) -> Packed:
    return replace(weight, lut=lut, bits=lut.bits, rounded=lut.tables.dtype == F16)


def _integers(c: Call, i: int) -> Packed:
    """Input `i`, integers, all or with a mask."""
    packed = c.slot(i).affine
    if isinstance(packed, Packed) and packed.is_integer:
        return packed
    data = c.const(i)
    return Packed(data, data.bits or 8)


@lowers("ScaleWeight", "ShiftScaleWeight", floats=())
def _scale(c: Call) -> Slot:
    slot = c.slot(0)
    shift = Shift(c.const(1), c.const(2) if c.has(2) else None, int(c.attr("axis", 0)), int(c.attr("block", 1)))
    if isinstance(slot.affine, Packed) and slot.affine.shift is None:
        weight = replace(slot.affine, shift=shift, rounded=False)
        low = _low(weight.data, weight.bits) if slot.affine.is_integer else 0
        return _made(c, widened(replace(weight, low=low)) if weight.bits else weight)
    if slot.constant is None:
        c.missing("scales of what is no packed weight")
    kind = slot.constant.dtype.kind
    bits = (slot.constant.bits or 8) if kind in "iu" else 0
    if not bits:
        dense = Constant(
            lambda: shift.apply(slot.constant.numpy()),  # type: ignore[union-attr]
            slot.constant.shape, np.dtype(np.float32), (*slot.constant.key, "scaled", *shift.scale.key))  # fmt: skip
        return Slot(constant=dense)
    return _made(c, widened(Packed(slot.constant, bits, _low(slot.constant, bits), shift=shift)))


def dequantised(c: Call, axis: int, block: int) -> Slot:
    """DequantizeLinear of integers that are no type of Core ML, or of some of a weight's elements."""
    weight, shape = _integers(c, 0), c.shape()
    scale, zero = c.const(1), c.const(2) if c.has(2) else None

    def placed(constant: Constant) -> Constant:
        """One element per tensor, or one for each slice of `axis`, in the weight's rank."""
        if block:
            return constant
        full = tuple(-1 if i == axis and constant.size > 1 else 1 for i in range(len(shape)))
        known = tuple(constant.size if n == -1 else 1 for n in full)
        return constant.map(f"R{full}", lambda a: a.reshape(full), known)

    one = scale.size == 1
    each = 1 if not block and not one else block or shape[0]
    shift = Shift(placed(scale), None if zero is None else placed(zero), 0 if one and not block else axis, each)
    bits = weight.bits
    return _made(c, widened(replace(weight, shift=shift, low=_low(weight.data, bits))))


def _low(data: Constant, bits: int) -> int:
    return -(1 << (bits - 1)) if data.dtype.kind == "i" else 0


def widened(weight: Packed) -> Packed:
    """Integers of widths that Core ML has only indices of, as indices into a table of integers."""
    bits, low = weight.bits, weight.low
    if bits in (4, 8) or weight.lut is not None:
        return weight

    def tables() -> np.ndarray:
        return (low + np.arange(1 << bits)).astype(np.float16).reshape(1, -1, 1)

    entries = Constant(tables, (1, 1 << bits, 1), F16, ("integers", bits, low))
    data = weight.data
    indices = Constant(
        lambda: (data.numpy().astype(np.int16) - low).astype(np.uint8),
        data.shape, np.dtype(np.uint8), (*data.key, "indices", low), data.tensor, bits)  # fmt: skip
    return replace(weight, data=indices, lut=Lut(entries), low=0)


@lowers("SparseWeight", floats=())
def _sparse(c: Call) -> Slot:
    shape = tuple(int(n) for n in c.attr("shape"))
    mask = flags_of(c.const(0), shape)
    values = c.slot(1)
    if isinstance(values.affine, Packed):
        inner = values.affine
        if inner.lut is None or inner.lut.group or inner.lut.vector > 1 or inner.shift is not None:
            c.missing("values of a sparse weight that have tables or scales of their own places")
        return _made(c, replace(inner, mask=mask))
    data = c.const(1)
    if c.node.outputs[0].dtype == ir.DataType.FLOAT:
        if data.dtype.kind != "f":
            data = data.cast(np.float32)
        return _made(c, Packed(data, 0, mask=mask, rounded=data.dtype == F16))
    whole = Packed(data, data.bits or 8, mask=mask)
    if all(n.domain or n.op_type == "DequantizeLinear" for n, _ in c.node.outputs[0].uses()):
        return Slot(affine=whole)
    key = (*whole.key, "integers")
    return Slot(constant=Constant(lambda: spread_out(data.numpy(), mask.numpy()), shape, data.dtype, key))


@lowers("MaskWeight", floats=())
def _mask(c: Call) -> Slot:
    """Values whose integers are masked already: then that says all."""
    inner = c.slot(1).affine
    shape = tuple(int(n) for n in c.attr("shape"))
    mask = flags_of(c.const(0), shape)
    if isinstance(inner, Packed) and inner.mask is not None and inner.mask.key == mask.key:
        return _made(c, inner)
    found = c.slot(1).constant if inner is None else inner.dense()
    if found is None:
        c.missing("a mask of what is no packed weight")
    constant = found

    def read() -> np.ndarray:
        return np.asarray(np.where(mask.numpy() != 0, constant.numpy(), 0)).astype(np.float32)

    return Slot(constant=Constant(read, shape, np.dtype(np.float32), (*constant.key, "masked", *mask.key)))


def _made(c: Call, weight: Packed) -> Slot:
    """The weight; dense where it is tiny. While other such operators read it, it may be what Core ML has not."""
    if weight.data.size < SMALL:
        return Slot(constant=weight.dense())
    readers = [n.op_type for n, _ in c.node.outputs[0].uses()]
    if not readers or any(r not in DECODERS for r in readers):
        lack = weight.lacks(c.version)
        if lack:
            c.missing(lack)
    return Slot(affine=weight)
