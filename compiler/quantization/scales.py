"""The scale (and zero point) with which few numbers come nearest to the elements of a cell, in the square.

All functions work on the last axis of an array of cells; weights, if any, have its shape. Scales that let the largest
element be reached are shortened step by step: clipping a few large elements may pay for finer steps. The best is then
fitted by least squares to the steps that it led to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Snap = Callable[[np.ndarray], np.ndarray]
"""The nearest points, in units of the scale. May overwrite its argument."""

LEAST = {1: 0.2, 2: 0.25, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.65}
"""By bits, the shortest scale that is tried, of the one that reaches all; 0.7 for more."""

TRIES = {3: 10, 4: 8, 5: 6, 6: 6, 7: 5, 8: 5}
"""By bits, how many scales are tried; 12 for fewer, where more depends on it. Half of that for each of two ends."""
REFITS = 2

FINE = 1 << 12
"""Entries of a table that tells near numbers."""


class Unreachable(ValueError):
    """No float16 scale reaches the numbers."""


def as_float16(scales: np.ndarray, *, up: bool = False) -> np.ndarray:
    """Scales in float16, at least the smallest one; `up`: never less than they are. Raises Unreachable beyond 65504."""
    with np.errstate(over="ignore"):
        found = scales.astype(np.float16)
    if up:
        short = found.astype(scales.dtype) < scales
        found = np.where(short, np.nextafter(found, np.float16(np.inf)), found)
    if not np.isfinite(found).all():
        raise Unreachable("no float16 scale reaches its largest value")
    return np.maximum(found, np.finfo(np.float16).smallest_subnormal)


def integers(low: int, high: int) -> Snap:
    """Whole numbers of a range."""

    def snap(units: np.ndarray) -> np.ndarray:
        np.rint(units, out=units)
        return np.asarray(np.clip(units, low, high, out=units))

    return snap


def near(points: np.ndarray) -> Snap:
    """Few numbers, looked up: nearly the nearest ones, good enough to compare scales by."""
    points = np.unique(points.astype(np.float32))
    end = np.float32(np.abs(points).max())
    middles = ((np.arange(FINE) + 0.5) * (2 / FINE) - 1) * end
    table = points[np.abs(middles[:, None] - points).argmin(1)]

    def snap(units: np.ndarray) -> np.ndarray:
        units += end
        units *= np.float32(FINE / 2) / end
        np.clip(units, 0, FINE - 1, out=units)
        return np.asarray(table.take(units.astype(np.intp)).astype(units.dtype, copy=False))

    return snap


def reaching(cells: np.ndarray, below: float, above: float) -> np.ndarray:
    """The least scales with which points from -below to above enclose all elements; 0 for zero cells."""
    return np.asarray(np.maximum(cells.max(-1, initial=0) / above, -cells.min(-1, initial=0) / below))


def symmetric(
    cells: np.ndarray, snap: Snap, ends: tuple[float, float], bits: int, weights: np.ndarray | None, search: bool
) -> np.ndarray:
    """Scales of the cells, float16; 1 for zero cells. `ends`: how far the points reach below and above 0."""
    whole = reaching(cells, *ends)
    empty = whole == 0
    whole = np.where(empty, 1, whole).astype(cells.dtype)
    if not search:
        return np.where(empty, np.float16(1), as_float16(whole, up=True))
    best, least = whole, _error(cells, snap(cells / whole[..., None]), whole, weights)
    shares, step = np.linspace(1, LEAST.get(bits, 0.7), TRIES.get(bits, 12), retstep=True)
    for share in shares[1:]:
        scale = whole * cells.dtype.type(share)
        best, least = _better(best, least, scale, _error(cells, snap(cells / scale[..., None]), scale, weights))
    middle = best
    for share in (step / 3, -step / 3):
        scale = middle + whole * cells.dtype.type(share)
        best, least = _better(best, least, scale, _error(cells, snap(cells / scale[..., None]), scale, weights))
    for _ in range(REFITS):
        steps = snap(cells / best[..., None])
        scale = _fitted(cells, steps, weights, best)
        best, least = _better(best, least, scale, _error(cells, snap(cells / scale[..., None]), scale, weights))
    return np.where(empty, np.float16(1), as_float16(best))


def asymmetric(cells: np.ndarray, bits: int, weights: np.ndarray | None, search: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales, float16, and zero points, uint8, of the cells. 0 is always a point of the grid."""
    top = (1 << bits) - 1
    low, high = cells.min(-1, initial=0), cells.max(-1, initial=0)
    empty = low == high
    high = np.where(empty, 1, high).astype(cells.dtype)
    one = cells.dtype.type(1)
    shares = (
        [one]
        if not search
        else list(np.linspace(1, LEAST.get(bits, 0.7), TRIES.get(bits, 12) // 2).astype(cells.dtype))
    )
    tries = [(a, b) for s in shares for a, b in ((s, s), (s, one), (one, s))] if search else [(one, one)]
    best: tuple[np.ndarray, np.ndarray] | None = None
    least = np.empty(0)
    for a, b in dict.fromkeys(tries):
        scale = (high * b - low * a) / top
        zero = np.clip(np.rint(-low * a / scale), 0, top)
        error = _error(cells, _shifted(cells, scale, zero, top), scale, weights)
        if best is None:
            best, least = (scale, zero), error
        else:
            zero = np.where(error < least, zero, best[1])
            scale, least = _better(best[0], least, scale, error)
            best = scale, zero
    assert best is not None
    scale, zero = best
    for _ in range(REFITS if search else 0):
        fitted = _fitted(cells, _shifted(cells, scale, zero, top), weights, scale)
        error = _error(cells, _shifted(cells, fitted, zero, top), fitted, weights)
        scale, least = _better(scale, least, fitted, error)
    scales = np.where(empty, np.float16(1), as_float16(scale, up=not search))
    return scales, np.where(empty, 0, zero).astype(np.uint8)


def _shifted(cells: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    q = np.rint(cells / scale[..., None])
    return np.asarray(np.clip(q, -zero[..., None], top - zero[..., None], out=q))


def _error(cells: np.ndarray, steps: np.ndarray, scale: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    steps *= scale[..., None]
    steps -= cells
    if weights is None:
        return np.asarray(np.einsum("...e,...e->...", steps, steps))
    return np.asarray(np.einsum("...e,...e,...e->...", steps, steps, weights))


def _better(old: np.ndarray, least: np.ndarray, new: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wins = error < least
    return np.where(wins, new, old), np.where(wins, error, least)


def _fitted(cells: np.ndarray, steps: np.ndarray, weights: np.ndarray | None, old: np.ndarray) -> np.ndarray:
    """The scales that suit these steps best, by least squares."""
    both = (cells, steps) if weights is None else (cells * weights, steps)
    square = np.einsum("...e,...e->...", steps if weights is None else steps * weights, steps)
    with np.errstate(all="ignore"):
        found = np.einsum("...e,...e->...", *both) / square
    return np.where((square > 0) & (found > 0), found, old).astype(cells.dtype)
