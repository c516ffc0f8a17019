"""Grids: the few numbers that a rounded weight may hold. A rounding pass hands one over to the pass that stores it.

A rounding pass puts the grid of a weight into the `meta` of its value (`write`); `pack-weights` reads it there (`read`)
and stores integers if `indices` confirms every number. A grid that has become wrong therefore does no harm.

Every product is a float32 one. With scales and tables that float16 holds it is exact, so that float16 arithmetic, which
rounds it once, gives the number that float16 holds for the weight anyway. Zeros compare equal whatever their sign.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..parallel import on_cores
from .points import FORMATS, NF4, along, lanes, nearest_points, nearest_vectors, row_blocks, spread

META = "edgec.grid"
"""Key of `Value.meta`."""


def write(value: ir.Value, grid: Grid | Sparse) -> None:
    """Say which grid the constant `value` lies on."""
    value.meta[META] = grid


def read(value: ir.Value) -> Grid | Sparse | None:
    """The grid that the constant `value` was rounded to, if it is known. Its `indices` tell whether it holds."""
    found = value.meta.get(META)
    return found if isinstance(found, (Grid, Sparse)) else None


class Grid(abc.ABC):
    """Numbers that a weight may hold, each with an index."""

    bits: int
    codes: ClassVar[Any] = np.uint8

    @abc.abstractmethod
    def encode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """The indices of the nearest numbers for the `rows` (of axis 0) of a weight of this shape."""

    @abc.abstractmethod
    def decode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """The numbers, float32, for the `rows` (of axis 0) of a weight of this shape from their indices."""

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the indices of a weight of this shape. Raises ValueError where the grid doesn't fit it."""
        return shape

    def dense_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the weight whose indices have this shape."""
        return shape

    def round(self, array: np.ndarray) -> np.ndarray:
        """The nearest numbers, float32; on all cores."""
        found = np.empty(array.shape, np.float32)
        ratio = array.shape[0] // max(1, self.packed_shape(array.shape)[0])

        def work(piece: tuple[slice, np.ndarray]) -> None:
            codes = self.encode_rows(piece[1], piece[0], array.shape)
            found[piece[0]] = self.decode_rows(codes, piece[0], array.shape)

        on_cores(work, row_blocks(array, ratio))
        return found

    def nearest(self, array: np.ndarray) -> np.ndarray:
        """The indices of the numbers nearest to those of the float32 `array`, as `codes`."""
        found = np.empty(self.packed_shape(array.shape), self.codes)
        ratio = array.shape[0] // max(1, found.shape[0])
        for rows, part in row_blocks(array, ratio):
            found[rows.start // ratio : rows.stop // ratio] = self.encode_rows(part, rows, array.shape)
        return found

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """The weight, float32, of these indices."""
        found = np.empty(self.dense_shape(indices.shape), np.float32)
        ratio = found.shape[0] // max(1, indices.shape[0])
        for rows, part in row_blocks(found, ratio):
            some = indices[rows.start // ratio : rows.stop // ratio]
            part[...] = self.decode_rows(some, rows, found.shape)
        return found

    def indices(self, array: np.ndarray) -> np.ndarray | None:
        """The indices that decode to exactly this array, or None where it does not lie on the grid."""
        try:
            found = np.empty(self.packed_shape(array.shape), self.codes)
        except ValueError:
            return None
        ratio = array.shape[0] // max(1, found.shape[0])
        for rows, part in row_blocks(array, ratio):
            codes = self.encode_rows(part, rows, array.shape)
            if not np.array_equal(self.decode_rows(codes, rows, array.shape), part):
                return None
            found[rows.start // ratio : rows.stop // ratio] = codes
        return found


@dataclass(frozen=True, eq=False)
class Affine(Grid):
    """(q - zero) · scale with integers q, which are the indices.

    Attributes:
        bits: 1 … 8. q is -2^(bits-1) … 2^(bits-1) - 1 where signed (int8), else 0 … 2^bits - 1 (uint8).
        scales: float16, or float32 where float16 does not do. Shapes as in `spread`. Not 0.
        axis: None per tensor; the axis of the channels; with a `block` the axis that is cut into blocks.
        block: elements of `axis` that share a scale; 0 per tensor and per channel.
        zeros: integers of the range of q, in the shape of `scales`; None: all 0.
        narrow: whether the lowest signed q is not used, so that the grid reaches equally far to both sides.
    """

    bits: int
    scales: np.ndarray
    axis: int | None = None
    block: int = 0
    zeros: np.ndarray | None = None
    signed: bool = True
    narrow: bool = False

    @property
    def codes(self) -> Any:
        """Element type of the indices."""
        return np.int8 if self.signed else np.uint8

    @property
    def low(self) -> int:
        """The lowest q."""
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def high(self) -> int:
        """The highest q."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def encode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`."""
        with np.errstate(all="ignore"):
            q = part / spread(self.scales, self.axis, self.block, shape, rows)
            np.rint(q, out=q)
            if self.zeros is not None:
                q += spread(self.zeros, self.axis, self.block, shape, rows)
            np.clip(q, self.low, self.high, out=q)
            return np.asarray(q.astype(self.codes))

    def decode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`."""
        q = part.astype(np.float32)
        if self.zeros is not None:
            q -= spread(self.zeros, self.axis, self.block, shape, rows)
        q *= spread(self.scales, self.axis, self.block, shape, rows)
        return q


@dataclass(frozen=True, eq=False)
class Table(Grid):
    """tables[group of the channel, index] · scale[channel].

    An index stands for `vector` neighbours along `axis`: the indices have 1/vector of the weight's length there.

    Attributes:
        bits: 1 … 8, of an index.
        tables: [groups, 2^bits, vector], float16, or float32 where float16 does not do.
        axis: the axis of the channels: of groups, vectors and scales.
        group: channels that share a table, the last group maybe fewer; a multiple of `vector`; 0: all, one table.
        scales: [channels], float16 or float32; None: all 1. Not 0.
    """

    bits: int
    tables: np.ndarray
    axis: int = 0
    group: int = 0
    scales: np.ndarray | None = None

    @property
    def vector(self) -> int:
        """Elements that one index stands for."""
        return int(self.tables.shape[2])

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Grid`."""
        if shape[self.axis] % self.vector:
            raise ValueError(f"{shape[self.axis]} channels are no multiple of vectors of {self.vector}")
        return tuple(d // self.vector if a == self.axis else d for a, d in enumerate(shape))

    def dense_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Grid`."""
        return tuple(d * self.vector if a == self.axis else d for a, d in enumerate(shape))

    def encode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`. Of vectors the nearest by Euclidean distance before the scales."""
        if self.scales is not None:
            with np.errstate(all="ignore"):
                part = part / spread(self.scales, self.axis, 0, shape, rows)
        found = np.empty(self.packed_shape(part.shape), np.uint8)
        for table, own in self._groups(rows, shape):
            some = part[along(self.axis, own)]
            if self.vector == 1:
                found[along(self.axis, own)] = nearest_points(some, table[:, 0])
            else:
                packed = slice(own.start // self.vector, own.stop // self.vector)
                found[along(self.axis, packed)] = nearest_vectors(lanes(some, self.axis, self.vector), table)
        return found

    def decode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`."""
        v = self.vector
        found = np.empty(self.dense_shape(part.shape), np.float32)
        for table, own in self._groups(rows, shape):
            some = part[along(self.axis, slice(own.start // v, own.stop // v))]
            for j in range(v):
                lane = slice(own.start + j, own.stop, v)
                found[along(self.axis, lane)] = np.ascontiguousarray(table[:, j]).take(some)
        if self.scales is not None:
            found *= spread(self.scales, self.axis, 0, shape, rows)
        return found

    def _groups(self, rows: slice, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, slice]]:
        """Each table [2^bits, vector] with the channels that use it, counted from the first of the `rows`."""
        start, stop = (rows.start, rows.stop) if self.axis == 0 else (0, shape[self.axis])
        step = self.group or max(1, shape[self.axis])
        for g in range(start // step, -(-stop // step)):
            own = slice(max(start, g * step) - start, min(stop, (g + 1) * step) - start)
            yield self.tables[g].astype(np.float32), own


@dataclass(frozen=True, eq=False)
class NumberFormat(Grid):
    """A number of few bits, times a scale. The indices are its bits, in uint8 or uint16.

    Attributes:
        name: a key of `points.FORMATS`.
        scales, axis, block: as in `Affine`; None: no scales.
    """

    name: str
    scales: np.ndarray | None = None
    axis: int | None = None
    block: int = 0
    bits: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", FORMATS[self.name][0])

    @property
    def codes(self) -> Any:
        """Element type of the indices."""
        return np.uint16 if self.bits > 8 else np.uint8

    @property
    def largest(self) -> float:
        """The largest number without a scale."""
        kind = FORMATS[self.name][1]
        return 1.0 if kind is None else float(ml_dtypes.finfo(kind).max)

    def encode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`. Too large numbers become the largest."""
        with np.errstate(all="ignore"):
            if self.scales is not None:
                part = part / spread(self.scales, self.axis, self.block, shape, rows)
            kind = FORMATS[self.name][1]
            if kind is None:
                return nearest_points(part, np.array(NF4, np.float32))
            return np.asarray(np.clip(part, -self.largest, self.largest).astype(kind).view(self.codes))

    def decode_rows(self, part: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
        """See `Grid`."""
        kind = FORMATS[self.name][1]
        found = np.array(NF4, np.float32)[part] if kind is None else part.view(kind).astype(np.float32)
        if self.scales is not None:
            found *= spread(self.scales, self.axis, self.block, shape, rows)
        return np.asarray(found)


@dataclass(frozen=True, eq=False)
class Sparse:
    """Zeros, stored as a mask, and other numbers that lie on a grid of their own, or on none."""

    inner: Grid | None = None

    @property
    def bits(self) -> int:
        """Bits of what is not zero."""
        return 32 if self.inner is None else self.inner.bits

    def round(self, array: np.ndarray) -> np.ndarray:
        """The nearest numbers, float32; zeros stay."""
        return array if self.inner is None else np.where(array != 0, self.inner.round(array), np.float32(0))

    def indices(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Mask (true: not zero) and indices on `inner`, both dense; those of zeros mean nothing. None: not on the grid.

        Without an inner grid the second is the array itself.
        """
        mask = array != 0
        if self.inner is None:
            return mask, array
        try:
            found = self.inner.nearest(array)
        except ValueError:
            return None
        if found.shape != array.shape:
            return None  # A vector would have to be all zero or not at all.
        return (mask, found) if np.array_equal(self.decode(mask, found), array) else None

    def decode(self, mask: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The weight, float32."""
        values = indices if self.inner is None else self.inner.decode(indices)
        return np.where(mask, values, np.float32(0))
