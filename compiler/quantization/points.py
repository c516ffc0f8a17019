"""Finding the nearest of a few points for millions of numbers, in pieces that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

BLOCK = 1 << 18
"""Elements that are worked on at a time: they fit a cache, and a big weight needs no second copy."""

BINS = 1 << 13
"""Bins in which `nearest_points` looks numbers up."""

COMPARED = 24
"""Bounds up to which a number is compared with each: 0.15 ns a bound; a table of bins takes 4."""

PIECE = 1 << 15
"""Vectors that are compared with a point at a time."""

MANY = 64
"""Points from which one matrix product is faster than comparing with each."""

FEW = 1 << 10
"""Elements up to which a table of bins is not worth the making."""

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
    """What separates neighbours of ascending float32 points: at a midpoint and above, the upper one is taken.

    A midpoint that float32 lacks is rounded up: of two adjacent numbers it is the upper one, and never the lower.
    """
    exact = (points[1:].astype(np.float64) + points[:-1]) / 2
    found = exact.astype(np.float32)
    return np.asarray(np.where(found < exact, np.nextafter(found, np.float32(np.inf)), found))


def nearest_points(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index, uint8, of the nearest of at most 256 `points` (any order) for each element; the upper one half-way."""
    points, first = np.unique(points, return_index=True)
    bounds, flat = midpoints(points), array.ravel()
    found = None
    if len(bounds) <= COMPARED:
        found = _counted(flat, bounds)
    elif array.size > FEW:
        found = _by_bins(flat, bounds)
    if found is None:
        found = np.searchsorted(bounds, flat, side="right").astype(np.uint8)
    if (np.diff(first) != 1).any() or first[0]:
        found = first.astype(np.uint8).take(found)
    return found.reshape(array.shape)


def _counted(flat: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many of a few bounds a number reaches."""
    found = np.zeros(flat.shape, np.uint8)
    reached = np.empty(flat.shape, bool)
    for bound in bounds:
        np.greater_equal(flat, bound, out=reached)
        found += reached.view(np.uint8)
    return found


def _by_bins(flat: np.ndarray, bounds: np.ndarray) -> np.ndarray | None:
    """What searchsorted gives, several times faster; None where two bounds are in a bin.

    The number of a bin never falls as numbers grow, float32 rounding included; so bins below that of a bound are below
    the bound, and in its own bin one comparison decides.
    """
    low, width = bounds[0], bounds[-1] - bounds[0]
    with np.errstate(all="ignore"):
        factor = np.float32((BINS - 3) / width) if width > 0 else np.float32(1)
    if not 0 < factor < np.inf:
        return None

    def bins(x: np.ndarray) -> np.ndarray:
        y = x - low
        y *= factor
        y += 1
        return np.asarray(np.clip(y, 0, BINS - 1, out=y).astype(np.intp))

    with np.errstate(all="ignore"):
        own, place = bins(bounds), bins(flat)
    if (np.diff(own) == 0).any():
        return None
    below = np.searchsorted(own, np.arange(BINS)).astype(np.uint8)  # Bounds in lower bins.
    found = below.take(place, mode="clip")
    # The bound in a number's bin, if there is one: nothing reaches what isn't a number.
    inside = np.full(BINS, np.nan, np.float32)
    inside[own] = bounds
    found += (flat >= inside.take(place, mode="clip")).view(np.uint8)
    return found


def nearest_vectors(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index, uint8, of the nearest of at most 256 `points` [k, d] for each vector of an array [..., d]."""
    flat = array.reshape(-1, array.shape[-1])
    return nearest_of(flat.T[:, None], points[None]).reshape(array.shape[:-1])


def nearest_of(lanes: np.ndarray, points: np.ndarray, *, exact: bool = True) -> np.ndarray:
    """The index of the nearest of `points` [groups, k, d] for vectors, d x groups x n: groups x n.

    A vector that is one of the points gets that, or an equal one. Unless `exact`, nearly the nearest, twice as fast.
    """
    _, groups, n = lanes.shape
    found = np.zeros((groups, n), np.uint8)
    if points.shape[1] >= MANY:
        for g in range(groups):
            # In double precision neighbours in float16 are told apart.
            found[g] = _by_products(lanes[:, g], points[g].astype(np.float64 if exact else np.float32))
        return found
    step = max(1, PIECE // groups)
    for i in range(0, n, step):
        some = slice(i, i + step)
        _one_by_one(lanes[..., some], points.astype(np.float32), found[:, some])
    return found


def _by_products(lanes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The largest c x - c c / 2, for many points c."""
    d, n = lanes.shape
    factors = np.concatenate([points, -(points**2).sum(1, keepdims=True) / 2], 1)
    numbers = np.arange(len(points), dtype=np.uint8)[:, None]
    step = max(1, 8 * PIECE // len(points))
    ones = np.ones((d + 1, step), points.dtype)
    found = np.empty(n, np.uint8)
    for i in range(0, n, step):
        some = lanes[:, i : i + step]
        ones[:d, : some.shape[1]] = some
        products = factors @ ones[:, : some.shape[1]]
        # Several times as fast as argmax, which goes by single columns here.
        found[i : i + step] = ((products == products.max(0)).view(np.uint8) * numbers).max(0)
    return found


def _one_by_one(lanes: np.ndarray, points: np.ndarray, found: np.ndarray) -> None:
    """Fill `found`, comparing with one point after the other."""
    wide = points[..., None]
    own = np.ascontiguousarray(lanes)
    distance, part = np.empty(own.shape[1:], np.float32), np.empty(own.shape[1:], np.float32)
    best, place = np.full_like(distance, np.inf), np.zeros(distance.shape, np.uint8)
    less = np.empty(distance.shape, bool)
    number = np.empty(distance.shape, np.uint8)
    for i in range(points.shape[1]):
        np.subtract(own[0], wide[:, i, 0], out=distance)
        np.multiply(distance, distance, out=distance)
        for j in range(1, len(own)):
            np.subtract(own[j], wide[:, i, j], out=part)
            np.multiply(part, part, out=part)
            distance += part
        np.less(distance, best, out=less)
        np.multiply(less.view(np.uint8), np.uint8(i), out=number)
        np.maximum(place, number, out=place)  # Later points have larger numbers.
        np.minimum(best, distance, out=best)
    found[...] = place


def along(axis: int, part: slice) -> tuple[slice, ...]:
    """The index that takes a part of one axis."""
    return (*(slice(None),) * axis, part)
