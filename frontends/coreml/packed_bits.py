"""Values of any number of bits, packed into bytes: unpacked by nodes, where ONNX has no type of so many bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .graph import INT64, Builder

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
