"""What the functions that make a weight of what is stored (compiler/functions.py) give, computed in numpy.

onnxruntime runs their bodies, of standard operators, at about 50 ns an element; this takes 3. The bits are the same
(tests/unit/test_decoding.py holds them against the bodies).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .bits import expand_bits, unpack_bits
from .points import row_blocks


@dataclass(frozen=True)
class Bits:
    """Integers as bytes that hold `bits` bits of each: what they stand for is looked up without unpacking them."""

    stored: np.ndarray
    bits: int
    shape: tuple[int, ...]

    def unpacked(self) -> np.ndarray:
        """The integers, uint8."""
        return unpack_bits(self.stored, self.bits, math.prod(self.shape)).reshape(self.shape)


Part = np.ndarray | Bits
Attributes = Mapping[str, Any]


def plain(part: Part) -> np.ndarray:
    """An array in any case."""
    return part.unpacked() if isinstance(part, Bits) else part


def unpack(packed: np.ndarray, bits: int, shape: Sequence[int], low: int, dtype: Any) -> Part:
    """`UnpackBits`."""
    if not low and dtype == np.uint8:
        return Bits(packed, bits, tuple(shape))
    found = unpack_bits(packed, bits, math.prod(shape), low)
    return found.astype(dtype, copy=False).reshape(shape)


def look_up(indices: Part, tables: np.ndarray, axis: int = 0, group: int = 0, vector_axis: int = 0) -> np.ndarray:
    """`LookupWeight`: entries of tables [groups, entries, vector], of their type."""
    groups, entries, vector = tables.shape
    if isinstance(indices, Bits) and (groups, vector) == (1, 1) and entries == 1 << indices.bits:
        numbers = tables.reshape(-1)
        return expand_bits(indices.stored, indices.bits, math.prod(indices.shape), numbers).reshape(indices.shape)
    whole = plain(indices)
    rows = tables.reshape(-1, vector)
    lane = whole.shape[axis]
    first = (np.arange(lane) // (group or max(1, lane)) * entries).astype(np.int32)
    offsets = first.reshape([-1 if a == axis else 1 for a in range(whole.ndim)])
    shape = [n * vector if a == vector_axis else n for a, n in enumerate(whole.shape)]
    split = [m for a, n in enumerate(whole.shape) for m in ((n, vector) if a == vector_axis else (n,))]
    found = np.empty(shape, tables.dtype)
    lanes = np.moveaxis(found.reshape(split), vector_axis + 1, 0)
    columns = [np.ascontiguousarray(rows[:, j]) for j in range(vector)]
    for some, part in row_blocks(whole):
        places = part + (offsets[some] if axis == 0 else offsets)
        for own, column in zip(lanes, columns, strict=True):
            own[some] = column.take(places)
    return found


def scaled(values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int) -> np.ndarray:
    """`ScaleWeight` and, with a zero, `ShiftScaleWeight`; float32."""
    n, groups = values.shape[axis], scale.shape[axis]
    shape = values.shape
    factors = [None if f is None else f.astype(np.float32) for f in (scale, zero)]
    if groups > 1 and block > 1 and groups * block == n:
        values = values.reshape([m for a, d in enumerate(shape) for m in ((groups, block) if a == axis else (d,))])
        factors = [None if f is None else np.expand_dims(f, axis + 1) for f in factors]
    elif block > 1 or groups != n:
        places = np.arange(n) // block
        factors = [None if f is None else f.take(places, axis) for f in factors]
    moved = values.astype(np.float32) if factors[1] is None else values.astype(np.float32) - factors[1]
    moved *= factors[0]  # type: ignore[operator]
    return np.asarray(moved.reshape(shape))


def flags(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A bit for each element, as booleans."""
    return np.unpackbits(mask, count=math.prod(shape), bitorder="little").view(bool).reshape(shape)


def spread_out(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`SparseWeight`: the values where the mask is set, zeros elsewhere. Raises ValueError if their number differs."""
    found = np.zeros(mask.shape, values.dtype)
    found[mask] = values
    return found


def masked(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`MaskWeight`: zeros where the mask is not set."""
    return np.where(mask, values, values.dtype.type(0))


# --- by name ----------------------------------------------------------------------------------------------------------


def _dtype(attributes: Attributes, default: ir.DataType = ir.DataType.FLOAT) -> Any:
    return ir.DataType(int(attributes.get("to", default))).numpy()


def _unpack(inputs: Sequence[Part], a: Attributes) -> Part:
    dtype = _dtype(a, ir.DataType.UINT8)
    return unpack(plain(inputs[0]), int(a["bits"]), tuple(a["shape"]), int(a.get("low", 0)), dtype)


def _look_up(inputs: Sequence[Part], a: Attributes) -> np.ndarray:
    indices, tables = inputs[0], plain(inputs[1]).astype(_dtype(a), copy=False)
    axis, group, along = (int(a.get(n, 0)) for n in ("axis", "group", "vector_axis"))
    return look_up(indices, tables, axis, group, along).reshape(a["shape"])


def _scaled(inputs: Sequence[Part], a: Attributes) -> np.ndarray:
    values, scale, *zero = (plain(i) for i in inputs)
    return scaled(values, scale, zero[0] if zero else None, int(a.get("axis", 0)), int(a.get("block", 1)))


def _sparse(inputs: Sequence[Part], a: Attributes) -> np.ndarray:
    mask, values = (plain(i) for i in inputs)
    return spread_out(flags(mask, tuple(a["shape"])), values.reshape(-1).astype(_dtype(a), copy=False))


def _masked(inputs: Sequence[Part], a: Attributes) -> np.ndarray:
    mask, values = (plain(i) for i in inputs)
    return masked(flags(mask, tuple(a["shape"])), values)


DECODERS: dict[str, Callable[[Sequence[Part], Attributes], Part]] = {
    "UnpackBits": _unpack,
    "LookupWeight": _look_up,
    "ScaleWeight": _scaled,
    "ShiftScaleWeight": _scaled,
    "SparseWeight": _sparse,
    "MaskWeight": _masked,
}
"""What each function makes of its inputs and attributes."""
