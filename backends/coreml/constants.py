"""Constants: read when written, never before. The builder sees a stand-in of the same type that takes no memory."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.errors import Missing, UnsupportedOp
from .unlowered import Unlowered

INLINE = 64
"""Elements up to which the builder gets the real numbers: shapes, axes and scalars take part in its inference."""

FORGET = 1 << 20
"""Bytes from which a mapped tensor's pages are given back after writing."""

INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Constant:
    """An array that a weight, or a part of one, holds; computed when asked for.

    Attributes:
        read: gives the array.
        key: equal keys mean equal arrays: each is stored once.
        tensor: the model's tensor behind it, whose mapped pages can be given back.
        bits: of an integer as stored, where these are fewer than its type has; else 0.
    """

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key: tuple[Any, ...] = field(compare=False)
    tensor: Any = None
    bits: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> np.ndarray:
        """The array."""
        return self.read()

    def cast(self, dtype: Any) -> Constant:
        """The same numbers in another element type; float16 rounds, and overflows to infinity, as ONNX's Cast does."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        key = (*self.key, dtype.name)
        return Constant(lambda: _cast(self.read(), dtype), self.shape, dtype, key, self.tensor)

    def map(self, name: str, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Constant:
        """Another arrangement of the same data. `name` must say which, because it is part of the key."""
        return Constant(lambda: function(self.read()), shape, self.dtype, (*self.key, name), self.tensor, self.bits)

    def forget(self) -> None:
        """Give back the memory that reading a mapped tensor took up."""
        if isinstance(self.tensor, ir.ExternalTensor) and self.tensor.nbytes >= FORGET and self.tensor.raw is not None:
            with contextlib.suppress(AttributeError, OSError):
                self.tensor.raw.madvise(mmap.MADV_DONTNEED)

    def is_float16(self) -> bool:
        """Whether float16 holds every element exactly. Reads a prefix first: most weights fail there."""
        if self.dtype == np.float16:
            return True
        if self.dtype.kind != "f":
            return False
        flat = self.read().reshape(-1)
        return _fits(flat[:256]) and (flat.size <= 256 or _fits(flat))


@dataclass(frozen=True)
class Affine:
    """An integer weight and its dequantisation, `(data - zero) * scale`, per tensor, per slice of `axis`, or per block.

    Attributes:
        data: int8, uint8 or int4, uint4 (held in int8, uint8) of the weight's shape.
        scale, zero: per tensor rank 0; per slice rank 1; per block the weight's rank.
        axis: the sliced or blocked axis.
        block: elements of `axis` that share a scale; 0 when not blocked.
        bits: 4 or 8.
        rounded: whether the product is rounded to float16.
    """

    data: Constant
    scale: Constant
    zero: Constant | None
    axis: int
    block: int
    bits: int
    rounded: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.data.shape

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys mean equal weights."""
        zero = () if self.zero is None else self.zero.key
        return ("affine", *self.data.key, *self.scale.key, *zero, self.axis, self.block, self.rounded)

    def is_half(self) -> bool:
        """Whether float16 holds all numbers that it is made of."""
        return self.scale.is_float16()

    def is_exact(self) -> bool:
        """Whether float16 holds the weight without rounding: products of scales are rounded."""
        return False

    def round(self) -> Affine:
        """The same weight, its product rounded to float16."""
        return replace(self, rounded=True)

    def transpose(self, perm: tuple[int, ...]) -> Affine | None:
        """The weight transposed, still packed; None where the scale can't follow."""
        if self.block:
            return None
        name = f"T{perm}"
        shape = tuple(self.data.shape[p] for p in perm)
        axis = perm.index(self.axis) if self.scale.shape else 0
        return replace(self, data=self.data.map(name, lambda a: a.transpose(perm), shape), axis=axis)

    def rows(self, name: str, first: int, index: np.ndarray) -> Affine | None:
        """The rows `index` of matrix `first` of a stack [n, rows, columns]; None where the scale can't follow."""
        _, rows, cols = self.data.shape
        if self.scale.shape and (self.axis == 2) != bool(self.block):
            return None

        def follow(c: Constant) -> Constant:
            if not c.shape:
                return c
            if self.block:
                many, height, blocks = c.shape
                own, some = first if many > 1 else 0, index if height > 1 else slice(None)
                return c.map(name, lambda a: a[own][some], (len(index) if height > 1 else 1, blocks))
            if self.axis == 0:
                return c.map(name, lambda a: a[first], ())
            return c.map(name, lambda a: a[index], (rows,))

        data = self.data.map(name, lambda a: a[first][index], (rows, cols))
        zero = None if self.zero is None else follow(self.zero)
        return replace(self, data=data, scale=follow(self.scale), zero=zero, axis=1 if self.block else 0)

    def dense(self) -> Constant:
        """The float weight: for tiny ones, and for targets that store no integers."""
        return Constant(self._dense, self.data.shape, np.dtype(np.float32), (*self.data.key, "dense", self.rounded))

    def _dense(self) -> np.ndarray:
        scale, zero = (spread(a, self) for a in (self.scale.numpy(), None if self.zero is None else self.zero.numpy()))
        assert scale is not None
        shifted = self.data.numpy().astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
        product = shifted * scale.astype(np.float32)
        return product.astype(np.float16).astype(np.float32) if self.rounded else product


def spread(array: np.ndarray | None, weight: Affine) -> np.ndarray | None:
    """A scale or zero point in a shape that broadcasts against the weight."""
    if array is None or array.ndim == 0:
        return array
    if weight.block:
        repeated = np.repeat(array, weight.block, axis=weight.axis)
        return repeated[tuple(slice(0, n) for n in weight.data.shape)]
    return array.reshape([-1 if i == weight.axis else 1 for i in range(len(weight.data.shape))])


def of_value(value: ir.Value, node: str) -> Constant:
    """The constant of an initializer. Raises UnsupportedOp for strings."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        raise UnsupportedOp("", [Missing(node, "initializer", f"'{value.name}' holds strings, which Core ML has not")])
    shape = tuple(int(d) for d in tensor.shape.numpy())
    width = tensor.dtype.bitwidth
    bits = width if width < 8 and tensor.dtype.is_integer() else 0
    return Constant(lambda: _plain(tensor.numpy()), shape, _plain_type(tensor.dtype), (id(tensor),), tensor, bits)


def of_array(array: np.ndarray, *key: Any) -> Constant:
    """A constant made by a lowering. Without a key it is stored on its own."""
    array = np.asarray(array)
    return Constant(lambda: array, array.shape, array.dtype, key or (id(array), array))


def to_int32(array: np.ndarray) -> np.ndarray:
    """64-bit or unsigned integers as int32. Raises Unlowered when one doesn't fit."""
    if array.size and (int(array.max()) > INT32.max or int(array.min()) < INT32.min):
        bad = int(array.max()) if int(array.max()) > INT32.max else int(array.min())
        raise Unlowered(f"the integer {bad} does not fit into 32 bits, and Core ML has no wider integers")
    return array.astype(np.int32)


def _plain(array: np.ndarray) -> np.ndarray:
    """ml_dtypes' 4-bit integers as bytes, bfloat16 and double as float32."""
    if array.dtype.name in ("int4", "int2"):
        return array.astype(np.int8)
    if array.dtype.name in ("uint4", "uint2"):
        return array.astype(np.uint8)
    if array.dtype.name == "float64" or array.dtype.kind == "V" or array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array


def _plain_type(dtype: ir.DataType) -> np.dtype[Any]:
    return _plain(np.zeros(1, dtype.numpy())).dtype


def _fits(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(array.dtype), array, equal_nan=True))


def _cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.int32 and array.dtype.kind in "iu":
        return to_int32(array)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)
