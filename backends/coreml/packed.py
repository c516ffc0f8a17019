"""Packed weights beyond integers with a scale: tables, blocks along one axis of many, zeros left out, and all at once.

What Core ML stores, in the order in which it is undone: integers or floats, of all elements or of those that a mask
marks; a table that the integers are indices into; scales and zero points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .constants import Constant

TABLE_BITS = {16: (1, 2, 4, 6, 8), 18: (1, 2, 3, 4, 6, 8)}
"""iOS version → bits of indices from it on. Sources: ops/defs/iOS16/constexpr_ops.py, iOS18/compression.py."""


@dataclass(frozen=True)
class Lut:
    """Tables for indices.

    Attributes:
        tables: [groups, entries, vector].
        axis: the axis of the indices along which `group` neighbours share a table; group 0: all share one.
        vector_axis: the axis of the result that vectors lie along.
    """

    tables: Constant
    axis: int = 0
    group: int = 0
    vector_axis: int = 0

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return max(1, (self.tables.shape[1] - 1).bit_length())

    @property
    def vector(self) -> int:
        """Elements that an index stands for."""
        return self.tables.shape[2]

    def look_up(self, indices: np.ndarray) -> np.ndarray:
        """The entries, float32, for indices."""
        tables = self.tables.numpy().astype(np.float32)
        entries, vector = tables.shape[1:]
        shape = indices.shape
        places = indices.astype(np.int32)
        if self.group:
            group = np.arange(shape[self.axis], dtype=np.int32) // self.group * entries
            places += group.reshape([-1 if a == self.axis else 1 for a in range(len(shape))])
        found = tables.reshape(-1, vector)[places]
        a = self.vector_axis
        moved = np.moveaxis(found, -1, a + 1)
        return moved.reshape([n * vector if i == a else n for i, n in enumerate(shape)])


@dataclass(frozen=True)
class Shift:
    """(values - zero) · scale.

    Attributes:
        scale, zero: of the weight's rank; along `axis` one element for each `block`, along others one for each or all.
    """

    scale: Constant
    zero: Constant | None = None
    axis: int = 0
    block: int = 1

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The result, float32."""
        found = values.astype(np.float32)
        if self.zero is not None:
            found = found - self._spread(self.zero, values.shape)
        return np.asarray(found * self._spread(self.scale, values.shape))

    def _spread(self, factors: Constant, shape: tuple[int, ...]) -> np.ndarray:
        places = np.arange(shape[self.axis]) // self.block
        return factors.numpy().astype(np.float32).take(places, self.axis)


@dataclass(frozen=True)
class Packed:
    """A weight as it is stored.

    Attributes:
        data: the integers (or floats) of all elements, or in a row those that the mask marks.
        bits: of an integer; 0 for floats.
        low: the lowest integer there may be.
        lut, shift: what makes numbers of the integers.
        mask: flags of the shape of the indices, 1 where an element is not zero.
        rounded: whether the result is rounded to float16.
    """

    data: Constant
    bits: int
    low: int = 0
    lut: Lut | None = None
    shift: Shift | None = None
    mask: Constant | None = None
    rounded: bool = False

    @property
    def index_shape(self) -> tuple[int, ...]:
        """The shape of the indices."""
        return self.data.shape if self.mask is None else self.mask.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        v, a = (1, 0) if self.lut is None else (self.lut.vector, self.lut.vector_axis)
        return tuple(n * v if i == a else n for i, n in enumerate(self.index_shape))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys mean equal weights."""
        parts = [self.data, self.mask]
        lut, shift = self.lut, self.shift
        parts += [] if lut is None else [lut.tables]
        parts += [] if shift is None else [shift.scale, shift.zero]
        keys = tuple(None if p is None else p.key for p in parts)
        tables = None if lut is None else (lut.axis, lut.group, lut.vector_axis)
        blocks = None if shift is None else (shift.axis, shift.block)
        return ("packed", keys, self.shape, tables, blocks, self.rounded)

    @property
    def is_integer(self) -> bool:
        """Whether nothing makes numbers of the integers yet."""
        return bool(self.bits) and self.lut is None and self.shift is None

    def round(self) -> Packed:
        """The same weight, rounded to float16."""
        return replace(self, rounded=True)

    def is_half(self) -> bool:
        """Whether float16 holds all numbers that it is made of."""
        floats = [self.data] if not self.bits else []
        floats += [] if self.lut is None else [self.lut.tables]
        floats += [] if self.shift is None else [self.shift.scale]
        return all(c.is_float16() for c in floats)

    def is_exact(self) -> bool:
        """Whether float16 holds the weight: there is nothing to round."""
        return self.shift is None and not self.is_integer and self.is_half()

    def lacks(self, version: int) -> str:
        """What an iOS version lacks for it; empty when nothing."""
        lut, shift, shape = self.lut, self.shift, self.shape
        one = lut is None or (not lut.group and lut.vector == 1)
        if lut is not None and (1 << lut.bits != lut.tables.shape[1] or lut.bits > 8):
            return f"a table of {lut.tables.shape[1]} entries"
        if lut is not None and lut.group and self.index_shape[lut.axis] % lut.group:
            return f"{self.index_shape[lut.axis]} channels in groups of {lut.group}"
        if shift is not None and _remainder(shift, shape):
            return f"{shape[shift.axis]} elements in blocks of {shift.block}"
        if version >= 18:
            return ""
        if version < 16:
            return "packed weights need iOS 16"
        if shift is not None or not one:
            return "tables for groups or with scales, and scales per block, need iOS 18"
        if lut is not None and (lut.bits not in TABLE_BITS[16] or self.mask is not None):
            return f"{'sparse tables' if self.mask is not None else f'{lut.bits}-bit indices'} need iOS 18"
        return ""

    # Rearranged, still packed

    def transpose(self, perm: tuple[int, ...]) -> Packed | None:
        """The weight with its axes permuted."""
        new = self._moved(f"T{perm}", lambda a: a.transpose(perm))
        if new.lut is not None:
            new = replace(
                new,
                lut=replace(new.lut, axis=perm.index(new.lut.axis), vector_axis=perm.index(new.lut.vector_axis)),
            )
        if new.shift is not None:
            new = replace(new, shift=_transposed(new.shift, perm))
        return new

    def rows(self, name: str, first: int, index: np.ndarray) -> Packed | None:
        """The rows `index` of matrix `first` of a stack [n, rows, columns]; None where tables or scales can't."""
        lut, shift = self.lut, self.shift
        if lut is not None and ((lut.group and lut.axis < 2) or (lut.vector > 1 and lut.vector_axis < 2)):
            return None
        if shift is not None and shift.axis < 2 and shift.block != 1 and shift.scale.shape[shift.axis] > 1:
            return None
        new = self._moved(name, lambda a: a[first][index])
        if lut is not None:
            new = replace(new, lut=replace(lut, axis=max(0, lut.axis - 1), vector_axis=max(0, lut.vector_axis - 1)))
        return new if shift is None else replace(new, shift=_rows(shift, name, first, index))

    def _moved(self, name: str, move: Callable[[np.ndarray], np.ndarray]) -> Packed:
        """The stored integers in another order."""
        data, mask = self.data, self.mask
        shape = move(np.broadcast_to(np.int8(0), self.index_shape)).shape
        if mask is None:
            return replace(self, data=data.map(name, move, shape))
        flags = mask.map(name, move, shape)

        def kept() -> np.ndarray:
            return np.asarray(move(spread_out(data.numpy(), mask.numpy()))[flags.numpy() != 0])

        key = (*data.key, *mask.key, name)
        return replace(self, data=Constant(kept, data.shape, data.dtype, key, data.tensor, data.bits), mask=flags)

    # Undone

    def dense(self) -> Constant:
        """The weight as floats: for tiny ones, and where no form fits."""
        return Constant(self._dense, self.shape, np.dtype(np.float32), (*self.key, "dense"))

    def _dense(self) -> np.ndarray:
        found = self.data.numpy() if self.mask is None else spread_out(self.data.numpy(), self.mask.numpy())
        if self.lut is not None:
            found = self.lut.look_up(found)
        found = found.astype(np.float32) if self.shift is None else self.shift.apply(found)
        if self.mask is not None:
            flags = self.mask.numpy()
            if self.lut is not None and self.lut.vector > 1:
                flags = np.repeat(flags, self.lut.vector, self.lut.vector_axis)
            found = np.where(flags != 0, found, np.float32(0))
        return found.astype(np.float16).astype(np.float32) if self.rounded else found


def spread_out(values: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Values put where flags are set, zeros elsewhere."""
    found = np.zeros(flags.shape, values.dtype)
    found[flags != 0] = values
    return found


def _remainder(shift: Shift, shape: tuple[int, ...]) -> bool:
    return bool(shift.scale.shape[shift.axis] * shift.block != shape[shift.axis] and shift.scale.shape[shift.axis] > 1)


def _each(shift: Shift, name: str, move: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Shift:
    zero = None if shift.zero is None else shift.zero.map(name, move, shape)
    return replace(shift, scale=shift.scale.map(name, move, shape), zero=zero)


def _transposed(shift: Shift, perm: tuple[int, ...]) -> Shift:
    shape = tuple(shift.scale.shape[p] for p in perm)
    return replace(_each(shift, f"T{perm}", lambda a: a.transpose(perm), shape), axis=perm.index(shift.axis))


def _rows(shift: Shift, name: str, first: int, index: np.ndarray) -> Shift:
    n, rows, cols = shift.scale.shape

    def move(a: np.ndarray) -> np.ndarray:
        own = a[first if n > 1 else 0]
        return np.asarray(own[index] if rows > 1 else own)

    new = _each(shift, name, move, (len(index) if rows > 1 else 1, cols))
    if shift.axis == 2:
        return replace(new, axis=1)
    return replace(new, axis=0, block=1 if rows > 1 else len(index))


def flags_of(mask: Constant, shape: tuple[int, ...]) -> Constant:
    """The flags, uint8 of `shape`, in bytes that hold a bit each."""
    count = math.prod(shape)
    return replace(
        mask.map(f"bits{shape}", lambda a: np.unpackbits(a, count=count, bitorder="little").reshape(shape), shape),
        bits=1,
    )
