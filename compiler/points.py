"""Finding the nearest of a few points for millions of numbers, in pieces that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

BLOCK = 1 << 18
"""Elements that are worked on at a time: they fit a cache, and a big weight needs no second copy."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat: quantiles of the normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E)."""

FORMATS: dict[str, tuple[int, Any]] = {
    "float16": (16, np.float16),
    "bfloat16": (16, ml_dtypes.bfloat16),
    "float8e4m3": (8, ml_dtypes.float8_e4m3fn),
    "float8e5m2": (8, ml_dtypes.float8_e5m2),
    "float4": (4, ml_dtypes.float4_e2m1fn),
    "nf4": (4, None),
}
"""Bits and element type of each number format. ONNX's names: FLOAT8E4M3FN, FLOAT8E5M2, FLOAT4E2M1."""


def row_blocks(array: np.ndarray, multiple: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
    """Consecutive pieces of `array` along its first axis, about `BLOCK` elements each, whole `multiple`s of rows."""
    step = max(1, BLOCK // max(1, array[0].size)) if len(array) else 1
    step = -(-step // max(1, multiple)) * max(1, multiple)
    for i in range(0, len(array), step):
        yield slice(i, min(i + step, len(array))), array[i : i + step]


def spread(factors: np.ndarray, axis: int | None, block: int, shape: tuple[int, ...], rows: slice) -> np.ndarray:
    """Scales (or zero points) as float32, shaped to broadcast against the `rows` of a weight of this shape.

    `factors` has rank 0 (per tensor), rank 1 (a number for each slice of `axis`), or with a `block` the weight's rank:
    along `axis` one for each `block` elements, the last maybe for fewer; along the others one for each, or one for all.
    """
    f = factors.astype(np.float32)
    if axis is None:
        return f.reshape(())
    if not block:
        f = f.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return f[rows] if axis == 0 else f
    if axis == 0:
        return np.asarray(f[np.arange(rows.start, rows.stop) // block])
    f = f[rows] if f.shape[0] > 1 else f
    return np.asarray(np.repeat(f, block, axis)[along(axis, slice(0, shape[axis]))])


def lanes(array: np.ndarray, axis: int, vector: int) -> np.ndarray:
    """Neighbours along `axis` put side by side in a last axis of length `vector`."""
    shape = (*array.shape[:axis], array.shape[axis] // vector, vector, *array.shape[axis + 1 :])
    return np.moveaxis(array.reshape(shape), axis + 1, -1)


def midpoints(points: np.ndarray) -> np.ndarray:
    """What separates neighbours of ascending float32 points: at a midpoint and above, the upper one is taken."""
    return np.asarray(((points[1:].astype(np.float64) + points[:-1]) / 2).astype(np.float32))


def nearest_points(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index of the nearest of the `points` (any order) for each element; the upper one half-way."""
    order = np.argsort(points, kind="stable")
    found = np.searchsorted(midpoints(points[order]), array.ravel(), side="right")
    return np.asarray(order.astype(np.uint8)[found].reshape(array.shape))


def nearest_vectors(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index of the nearest of the `points` [k, d] for each vector of an array [..., d]."""
    flat, wide = array.reshape(-1, array.shape[-1]), points.astype(np.float64)
    half = (wide**2).sum(1) / 2
    found = np.empty(len(flat), np.uint8)
    for i in range(0, len(flat), 1 << 14):
        found[i : i + (1 << 14)] = (flat[i : i + (1 << 14)].astype(np.float64) @ wide.T - half).argmax(1)
    return found.reshape(array.shape[:-1])


def along(axis: int, part: slice) -> tuple[slice, ...]:
    """The index that takes a part of one axis."""
    return (*(slice(None),) * axis, part)
