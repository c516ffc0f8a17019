"""Pools (`ops/defs/iOS15/pool.py`).

A window that reaches over the declared padding (ceil mode) is filled with nothing: explicit padding makes the output
size, and the averages are corrected by a constant, so that no runtime's own idea of ceil mode is involved.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..values import Array
from .linear import onnx_padding, require_windows


class _Window:
    """Geometry of a pool: kernel, strides, and padding before and after with what ceil mode adds after."""

    def __init__(self, o: Call) -> None:
        self.kernel = o.ints("kernel_sizes")
        self.strides = o.ints("strides", [1] * len(self.kernel))
        pads = onnx_padding(o, self.kernel, self.strides)
        self.auto = pads if isinstance(pads, str) else None
        n = len(self.kernel)
        self.begins, self.ends = ([0] * n, [0] * n) if isinstance(pads, str) else (pads[:n], pads[n:])
        self.extra = [0] * n
        if o.flag("ceil_mode"):
            sizes = o.shape()[2:]
            self.extra = [
                _ceil_extra(size, k, s, b, e)
                for size, k, s, b, e in zip(sizes, self.kernel, self.strides, self.begins, self.ends, strict=True)
            ]
        require_windows(o, self.kernel, self.strides, self.auto or self.pads)

    @property
    def pads(self) -> list[int]:
        return [*self.begins, *(e + x for e, x in zip(self.ends, self.extra, strict=True))]

    @property
    def fits(self) -> bool:
        """Whether ONNX accepts the padding: less than the kernel everywhere."""
        return all(p < k for p, k in zip(self.pads, [*self.kernel, *self.kernel], strict=True))

    def attributes(self, padded: bool) -> dict[str, object]:
        shared: dict[str, object] = {"kernel_shape": self.kernel, "strides": self.strides}
        if self.auto:
            return {**shared, "auto_pad": self.auto}
        return {**shared, "pads": self.pads} if padded else shared


def _ceil_extra(size: int, kernel: int, stride: int, begin: int, end: int) -> int:
    """Elements that the last window of ceil mode needs beyond the padding (may be negative: the tail is unused)."""
    padding = begin + end
    count = math.floor((size + padding - kernel + stride - 1) / stride) + 1
    if padding > 0 and (count - 1) * stride >= size + padding / 2:
        count -= 1
    return max((count - 1) * stride + kernel - size - padding, 0)


def _pad(o: Call, x: ir.Value, window: _Window, fill: float) -> ir.Value:
    n = len(window.kernel)
    pads = [0, 0, *window.pads[:n], 0, 0, *window.pads[n:]]
    return o.b.op("Pad", x, o.b.ints(pads), o.b.number(fill)) if any(pads) else x


@rule("max_pool", exact=True)
def max_pool(o: Call) -> Result:
    window = _Window(o)
    if window.fits:
        return o.b.op("MaxPool", o.value(), **window.attributes(padded=True))
    return o.b.op("MaxPool", _pad(o, o.value(), window, -math.inf), **window.attributes(padded=False))


def _divisors(o: Call, window: _Window, exclude: bool) -> Array:
    """How many elements each window averages over, [1, 1, *outputs]: real ones, or real and declared padding."""
    per_axis = []
    for size, k, s, b, e, x in zip(
        o.shape()[2:], window.kernel, window.strides, window.begins, window.ends, window.extra, strict=True
    ):
        counted = np.zeros(b + size + e + x)
        counted[b : b + size] = 1
        if not exclude:
            counted[: b + size + e] = 1
        starts = range(0, len(counted) - k + 1, s)
        per_axis.append(np.array([counted[i : i + k].sum() for i in starts]))
    product = np.array([math.prod(c) for c in itertools.product(*per_axis)])
    return product.reshape(1, 1, *(len(c) for c in per_axis))


@rule("avg_pool")
def avg_pool(o: Call) -> Result:
    window = _Window(o)
    exclude = o.flag("exclude_padding_from_average")
    if window.fits and not any(window.extra):
        include = 0 if exclude else 1
        return o.b.op("AveragePool", o.value(), count_include_pad=include, **window.attributes(padded=True))
    mean = o.b.op("AveragePool", _pad(o, o.value(), window, 0.0), **window.attributes(padded=False))
    correction = math.prod(window.kernel) / _divisors(o, window, exclude)
    return o.b.op("Mul", mean, o.b.constant(correction.astype(np.float32)))


@rule("l2_pool")
def l2_pool(o: Call) -> Result:
    """√(sum of squares) of each window."""
    window = _Window(o)
    if window.auto:
        raise Unsupported("the shape of 'x' must be fixed for pad_type 'same'")
    squares = _pad(o, o.b.op("Mul", o.value(), o.value()), window, 0.0)
    mean = o.b.op("AveragePool", squares, **window.attributes(padded=False))
    return o.b.op("Sqrt", o.b.op("Mul", mean, o.b.number(math.prod(window.kernel))))
