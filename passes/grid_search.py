"""Finds the grid that a weight lies on in its numbers alone: of a model from a file, nobody says what rounded it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..compiler.quantization.grids import Affine, Grid, NumberFormat, Sparse, Table
from ..compiler.quantization.points import along, row_blocks
from ..compiler.targets import Storage

MOST = 256
"""The longest table."""

BLOCKS = (128, 64, 32, 16)
"""Lengths of blocks that are looked for."""

_PREFIX = 4096
"""Elements that are looked at first: nearly all weights are on no grid, and fail here."""

MANY = 3 / 8
"""Share of zeros from which they are left out, unless a rounding pass says so: 8-bit weights have a tenth anyway."""


def search(array: np.ndarray, axes: Sequence[int], storage: Storage) -> Iterator[Grid | Sparse]:
    """Grids that the float32 `array` may lie on, for targets that store `storage`; the caller checks which do.

    Args:
        array: the weight; read several times, in pieces.
        axes: the axes that may have a scale or table for each slice.
        storage: what isn't stored isn't looked for.
    """
    found = list(_dense(array, axes, storage))
    yield from found
    if not storage.sparse or zero_share(array) < MANY:
        return
    yield Sparse()
    if storage.joint:
        yield from (Sparse(grid) for grid in found if isinstance(grid, (Affine, Table)))
        points = distinct(array, skip_zero=True)
        if points is not None and points.size:
            yield Sparse(table(points))


def _dense(array: np.ndarray, axes: Sequence[int], storage: Storage) -> Iterator[Grid]:
    points = distinct(array) if storage.tables else None
    if points is not None:
        yield table(points)
    if storage.integers:
        affine = per_tensor(array) if points is not None else None
        if affine is not None:
            yield affine
        for axis in axes:
            own = per_channel(array, axis)
            if own is not None:
                yield own
                return
        else:
            if storage.blocks:
                yield from _first(in_blocks(array, a, n) for a in range(array.ndim) for n in BLOCKS)
    if storage.groups and points is None:
        yield from _first(grouped(array, axis) for axis in axes)
    yield from _formats(array, storage)


def _first(found: Iterator[Grid | None]) -> Iterator[Grid]:
    yield from (grid for grid in [next((f for f in found if f is not None), None)] if grid is not None)


# --- tables -----------------------------------------------------------------------------------------------------------


def distinct(array: np.ndarray, most: int = MOST, *, skip_zero: bool = False) -> np.ndarray | None:
    """The distinct numbers of an array, ascending, or None when there are more than `most` or one is none."""
    points = np.empty(0, np.float32)
    first = array.reshape(-1)[:_PREFIX] if array.flags.c_contiguous else array[:1].reshape(-1)[:_PREFIX]
    for part in (first, *(p for _, p in row_blocks(array))):
        flat = part.reshape(-1)
        if points.size:
            at = np.minimum(np.searchsorted(points, flat), points.size - 1)
            flat = flat[points[at] != flat]
        if not flat.size:
            continue
        new = np.unique(flat)
        points = np.union1d(points, new[new != 0] if skip_zero else new)
        if points.size > most or not np.isfinite(points).all():
            return None
    return points


def table(points: np.ndarray, axis: int = 0) -> Table:
    """One table of these numbers."""
    bits = max(1, int(points.size - 1).bit_length())
    return Table(bits, _filled([points], bits), axis)


def _filled(tables: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """Tables of one length: the last number of each is repeated."""
    found = np.stack([np.concatenate([t, np.repeat(t[-1:], (1 << bits) - t.size)]) for t in tables])[:, :, None]
    with np.errstate(over="ignore"):
        half = found.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), found) else found


def grouped(array: np.ndarray, axis: int) -> Table | None:
    """A table for each group of as many channels as share one without a longer index; None if that doesn't pay."""
    length = array.shape[axis]
    most = min(MOST, array.size // length // 4)
    first = distinct(array[along(axis, slice(0, 1))], most) if most > 1 else None
    if first is None:
        return None
    bits = max(1, int(first.size - 1).bit_length())
    size = 1
    while 2 * size < length and distinct(array[along(axis, slice(0, 2 * size))], 1 << bits) is not None:
        size *= 2
    tables = [distinct(array[along(axis, slice(i, i + size))]) for i in range(0, length, size)]
    if any(t is None for t in tables):
        return None
    known = [t for t in tables if t is not None]
    bits = max(max(1, int(t.size - 1).bit_length()) for t in known)
    return Table(bits, _filled(known, bits), axis, size)


# --- integers with a scale --------------------------------------------------------------------------------------------


def per_tensor(array: np.ndarray) -> Affine | None:
    """One scale, and perhaps a zero point, for all."""
    found = _lattice(array.reshape(1, -1))
    if found is None:
        return None
    scale, low, high = (f.reshape(()) for f in found)
    return _affine(scale, low, high, None)


def per_channel(array: np.ndarray, axis: int) -> Affine | None:
    """A scale for each slice of `axis`."""
    found = _lattice(np.moveaxis(array, axis, 0))
    return None if found is None else _affine(*found, axis)


def in_blocks(array: np.ndarray, axis: int, block: int) -> Affine | None:
    """A scale for each `block` neighbours along `axis`, which it divides."""
    n = array.shape[axis]
    if n % block or n <= block:
        return None
    moved = np.moveaxis(array, axis, -1)
    if not _plausible(moved[(0,) * (moved.ndim - 1)][:block]):
        return None
    shape = (*moved.shape[:-1], n // block)
    found = _lattice(np.ascontiguousarray(moved).reshape(-1, block))
    if found is None:
        return None
    scale, low, high = (np.moveaxis(f.reshape(shape), -1, axis) for f in found)
    return _affine(scale, low, high, axis, block)


def _affine(scale: np.ndarray, low: np.ndarray, high: np.ndarray, axis: int | None, block: int = 0) -> Affine:
    """The grid with these scales that reaches from `low` to `high` steps; symmetric where that takes no more bits."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if np.array_equal(half.astype(np.float32), scale):
        scale = half
    reach = int(np.maximum(-low, high + 1).max())
    symmetric = max(1, (reach - 1).bit_length() + 1)
    bits = max(1, int((high - low).max()).bit_length())
    if symmetric <= bits:
        return Affine(symmetric, scale, axis, block)
    return Affine(bits, scale, axis, block, (-low).astype(np.uint8), signed=False)


def _lattice(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Per row the coarsest step whose multiples hold all its numbers, and the least and largest multiple.

    At most 255 steps lie between the ends, which count as beyond 0. None if a row has no such step.
    """
    if not rows.size:
        return None
    some = np.unique(np.linspace(0, len(rows) - 1, 4).astype(int))
    if not all(_plausible(rows[i].reshape(-1)) for i in some):
        return None
    step = max(1, (1 << 20) // max(1, rows[0].size))
    parts = []
    for i in range(0, len(rows), step):
        found = _steps(np.ascontiguousarray(rows[i : i + step]).reshape(min(step, len(rows) - i), -1))
        if found is None:
            return None
        parts.append(found)
    scale, low, high = (np.concatenate(p) for p in zip(*parts, strict=True))
    return scale, low, high


def _plausible(row: np.ndarray) -> bool:
    """Whether the ends and the first numbers of a row are multiples of any step: hardly ever of a row on no grid."""
    low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
    if low == high or not np.isfinite([low, high]).all():
        return bool(low == high)
    few = np.concatenate([[low, high], row[:16]]).astype(np.float32)
    span = np.float64(high) - low
    with np.errstate(all="ignore"):
        for tried in _tries(span, np.float32(max(-low, high)), np.arange(1, 256)):
            step = tried.reshape(-1, 1)
            if (np.rint(few / step) * step == few).all(1).any():
                return True
    return False


def _steps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`_lattice` of a few rows [rows, elements]."""
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        return None
    scale = np.where(low == high, np.float32(1), np.float32(0))
    peak = np.where(-low > high, -low, high)
    span = high.astype(np.float64) - low
    for n in range(1, 256):
        open_ = np.flatnonzero(scale == 0)
        if not open_.size:
            break
        for tried in _tries(span[open_], peak[open_], n):
            with np.errstate(all="ignore"):
                ends = [np.rint(e[open_] / tried) * tried == e[open_] for e in (low, high)]
            good = np.flatnonzero((tried > 0) & np.isfinite(tried) & ends[0] & ends[1] & (scale[open_] == 0))
            if good.size and rows.shape[1] > _PREFIX:
                good = good[_on(rows[open_[good], :_PREFIX], tried[good])]
            good = good[_on(rows[open_[good]], tried[good])]
            scale[open_[good]] = tried[good]
    if (scale == 0).any():
        return None
    return scale, np.rint(low / scale).astype(np.int16), np.rint(high / scale).astype(np.int16)


def _tries(span: Any, peak: Any, n: Any) -> Iterator[np.ndarray]:
    """Steps of which `n` make the span: in float16, and in float32 such that a multiple is the peak."""
    with np.errstate(all="ignore"):
        yield (span / n).astype(np.float16).astype(np.float32)
        whole = np.maximum(np.rint(peak / (span / n)), 1).astype(np.float32)
        yield peak / whole


def _on(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Which rows hold only multiples of their step."""
    s = scale.reshape(-1, 1)
    with np.errstate(all="ignore"):
        return np.asarray((np.rint(rows / s) * s == rows).all(1))


# --- short floats, zeros ----------------------------------------------------------------------------------------------


def _formats(array: np.ndarray, storage: Storage) -> Iterator[Grid]:
    """The shortest number format that holds everything."""
    for name in ("float8e4m3", "float8e5m2", "bfloat16", "float16"):
        grid = NumberFormat(name)
        if name in storage.formats and grid.indices(array.reshape(-1)[:_PREFIX].reshape(1, -1)) is not None:
            yield grid


def zero_share(array: np.ndarray) -> float:
    """How many of the elements are zero, 0 … 1."""
    if not array.size:
        return 0.0
    return sum(int(np.count_nonzero(p == 0)) for _, p in row_blocks(array)) / array.size
