"""Casts. Between float16 and float32 they mostly vanish: they are the rounding pairs that a slot keeps account of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .build import F16, F32, I32, Slot
from .call import Call
from .checks import FLOATS
from .constants import INLINE, Affine, of_array
from .ops_elementwise import wrap
from .registry import lowers


@lowers("Cast")
def _cast(c: Call) -> Any:
    return _to(c, ir.DataType(c.attr("to")))


@lowers("CastLike", floats=(0,))
def _cast_like(c: Call) -> Any:
    return _to(c, c.kind(1))


def _to(c: Call, to: ir.DataType) -> Any:
    """To and from float16 the slot says what is rounded already; between float32 and double nothing happens."""
    slot = c.slot(0)
    if to in FLOATS:
        return _to_float(c, slot, F16 if to == ir.DataType.FLOAT16 else F32)
    if slot.constant is not None and to in _NUMPY:
        return Slot(constant=slot.constant.cast(_NUMPY[to]))
    x = c.native(0)
    if to == ir.DataType.BOOL:
        return c.op("not_equal", x=x, y=c.like(x, 0)) if c.kind() != ir.DataType.BOOL else x
    if to not in _NUMPY:
        c.missing(f"Core ML has no type {to.name.lower()}")
    whole = c.cast(x, I32)
    source = c.kind()
    if source == ir.DataType.BOOL or source == to or source in FLOATS:
        return whole
    return wrap(c, whole, to)


_NUMPY: dict[ir.DataType, Any] = {
    kind: kind.numpy()
    for kind in (
        ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    )
}  # fmt: skip


def _to_float(c: Call, slot: Slot, dtype: np.dtype[Any]) -> Slot:
    source = c.kind()
    if source == ir.DataType.BFLOAT16:
        c.missing("bfloat16")
    if slot.constant is not None:
        constant = slot.constant
        if c.version >= 16 and constant.dtype.name in ("int8", "uint8") and constant.size > INLINE:
            # Stays packed, with a scale of 1: whole numbers below 256 are exact in either precision.
            packed = Affine(constant, of_array(np.ones((), np.float32), "one"), None, 0, 0, 8, dtype == F16)
            return Slot(affine=packed)
        keep = dtype == F32 and constant.dtype == F16
        return Slot(constant=constant if keep else constant.cast(dtype))
    if slot.affine is not None:
        return Slot(affine=slot.affine.round() if dtype == F16 else slot.affine)
    if slot.other is not None or source not in FLOATS:
        var = c.cast(slot.other if slot.full is None else slot.full, dtype)
        return Slot(half=var) if dtype == F16 else Slot(full=var)
    if source == ir.DataType.FLOAT16 or (dtype == F16 and slot.half is not None):
        if slot.half is None:
            slot.half = c.cast(slot.full, F16)
        return Slot(half=slot.half)
    if dtype == F16:
        return Slot(half=c.cast(slot.full, F16))
    return slot
