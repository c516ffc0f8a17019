"""The arithmetic of ONNX's Resize: which input positions and weights each output position takes, as numpy arrays.

Source: the specification of Resize-19 and the reference implementation `onnx/reference/ops/op_resize.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """One axis of a Resize: sizes before and after, the scale as given, and the region of tf_crop_and_resize."""

    axis: int
    size: int
    out: int
    scale: float
    transform: str
    region: tuple[float, float]

    @property
    def identity(self) -> bool:
        """Whether nothing happens to this axis."""
        return self.size == self.out and self.scale == 1 and (
            self.transform != "tf_crop_and_resize" or self.region == (0.0, 1.0))


def positions(axis: Axis) -> np.ndarray:
    """Where each output element lies in the input, as real numbers."""
    x, n, scale = np.arange(axis.out, dtype=np.float64), axis.size, axis.scale
    length = n * scale
    if axis.transform == "align_corners":
        return np.zeros(axis.out) if length == 1 else x * (n - 1) / (length - 1)
    if axis.transform == "asymmetric":
        return x / scale
    if axis.transform == "tf_crop_and_resize":
        start, end = axis.region
        if length == 1:
            return np.full(axis.out, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + x * (end - start) * (n - 1) / (length - 1)
    if axis.transform == "pytorch_half_pixel" and length == 1:
        return np.full(axis.out, -0.5)
    if axis.transform == "half_pixel_symmetric":
        centre, adjusted = n / 2, axis.out / length
        return centre * (1 - adjusted) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


def nearest(axis: Axis, rounding: str) -> np.ndarray:
    """The input index of each output element; -1 where tf_crop_and_resize lies outside."""
    x = positions(axis)
    if rounding == "round_prefer_floor":
        index = np.ceil(x - 0.5)
    elif rounding == "round_prefer_ceil":
        index = np.floor(x + 0.5)
    else:
        index = np.floor(x) if rounding == "floor" else np.ceil(x)
    index = index.clip(0, axis.size - 1).astype(np.int64)
    if axis.transform == "tf_crop_and_resize":
        index[(x < 0) | (x > axis.size - 1)] = -1
    return index


def weights(
    axis: Axis, mode: str, a: float, exclude_outside: bool, antialias: bool, extrapolation: float
) -> np.ndarray | None:
    """The matrix [out, in] of a linear or cubic resampling; None where a constant lies outside the input."""
    shrink = min(1.0, axis.scale) if antialias else 1.0
    reach = (1 if mode in ("linear", "bilinear") else 2) / shrink
    matrix = np.zeros((axis.out, axis.size))
    for row, x in enumerate(positions(axis)):
        if axis.transform == "tf_crop_and_resize" and not 0 <= x <= axis.size - 1:
            if extrapolation != 0:
                return None
            continue
        taps = np.arange(int(np.floor(x - reach)), int(np.ceil(x + reach)) + 1)
        values = _kernel((taps - x) * shrink, mode, a)
        inside = (taps >= 0) & (taps < axis.size)
        if exclude_outside:
            values = np.where(inside, values, 0)
        if exclude_outside or antialias:
            values = values / values.sum()
        np.add.at(matrix[row], taps.clip(0, axis.size - 1), values)
    return matrix


def _kernel(distance: np.ndarray, mode: str, a: float) -> np.ndarray:
    d: np.ndarray = np.abs(distance)
    if mode in ("linear", "bilinear"):
        triangle: np.ndarray = np.maximum(0, 1 - d)
        return triangle
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
