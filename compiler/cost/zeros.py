"""How many of a tensor's elements are zero, read in blocks: however large the tensor, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

BLOCK = 1 << 20
"""Elements that are looked at in one go; a multiple of what one byte can hold."""

ONE_ZERO = frozenset({ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ})
"""Floating-point types without a negative zero: its bits say NaN."""


@dataclass(frozen=True)
class ZeroPoints:
    """The integers that stand for zero in a quantised tensor, as ONNX' DequantizeLinear has them.

    Attributes:
        codes: their bits: one for all, one per index of `axis`, or one per block of `block` indices of it.
        shape: of the quantised tensor.
    """

    codes: np.ndarray
    shape: tuple[int, ...]
    axis: int = 0
    block: int = 0

    def at(self, start: int, stop: int) -> np.ndarray:
        """The zero points of the elements from `start` to `stop`, in the order of storage."""
        if self.codes.size == 1 or (self.codes == self.codes.flat[0]).all():
            return self.codes.reshape(-1)[:1]
        flat: np.ndarray = self.codes.reshape(-1)
        extent, inner = self.shape[self.axis], int(np.prod(self.shape[self.axis + 1 :]))
        index = np.arange(start, stop)
        along = index // inner % extent
        if not self.block:
            return np.asarray(flat[along])
        blocks = self.codes.shape[self.axis]
        return np.asarray(flat[(index // (inner * extent) * blocks + along // self.block) * inner + index % inner])


def count_zeros(tensor: ir.TensorProtocol, points: ZeroPoints | None = None) -> int:
    """How many elements are zero: of integers those equal to their zero point, of floats those of either sign."""
    kind = tensor.dtype
    total = start = 0
    for codes in _blocks(tensor):
        if points is not None and kind.is_integer():
            found = codes == points.at(start, start + codes.size)
        elif kind.is_floating_point() and kind not in ONE_ZERO:
            found = codes & ((1 << (kind.bitwidth - 1)) - 1) == 0
        else:
            found = codes == 0
        total += int(np.count_nonzero(found))
        start += codes.size
    return total


def zero_points(tensor: ir.TensorProtocol, shape: tuple[int, ...], axis: int, block: int) -> ZeroPoints:
    """What `tensor` says of a quantised tensor of this shape."""
    codes = np.concatenate([*_blocks(tensor)] or [np.zeros(1, np.uint8)]).reshape(tensor.shape.numpy())
    return ZeroPoints(codes, shape, axis % max(1, len(shape)), block)


def _blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """The elements' bits as unsigned integers, a block after the other, in the order of storage."""
    bits = tensor.dtype.bitwidth
    unsigned = np.dtype(f"u{max(1, bits // 8)}")
    if isinstance(tensor, ir.ExternalTensor) and 8 % bits in (0, 8):
        with Path(tensor.path).open("rb") as file:
            file.seek(tensor.offset or 0)
            for start in range(0, tensor.size, BLOCK):
                size = min(BLOCK, tensor.size - start)
                raw = np.frombuffer(file.read(-(-size * bits // 8)), unsigned)
                yield _unpacked(raw, bits)[:size] if bits < 8 else raw
        return
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(unsigned)
    for start in range(0, array.size, BLOCK):
        block = array[start : start + BLOCK]
        yield block & ((1 << bits) - 1) if bits < 8 else block


def _unpacked(raw: np.ndarray, bits: int) -> np.ndarray:
    """Elements of less than a byte, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: np.ndarray = raw[:, None] >> shifts & ((1 << bits) - 1)
    return found.reshape(-1)
