"""Choosing a table of numbers for a weight: k-means, with a scale for each channel where the target multiplies.

With scales, a channel's square error counts in units of its own mean square: outputs of small channels matter as much
as those of large ones. At first a scale is the channel's largest number; then scales and table are fitted in turns.
"""

from __future__ import annotations

import numpy as np

from .cells import Cells, weighted_pieces
from .grids import Table
from .kmeans import EXACT, Atoms, Histogram, atoms, cluster
from .points import along, nearest_points, on_cores
from .scales import Unreachable, as_float16
from .vectors import cluster_vectors

TURNS = 2
"""How often, where the importance of errors is known; without it, the outputs of networks gain nothing."""

MOST = 1e6
"""A channel counts at most so much more than one of equal elements: nothing but a single large number is in it."""


def fit_table(
    array: np.ndarray, axis: int, bits: int, importance: np.ndarray | None, scaled: bool, group: int, vector: int
) -> Table:
    """The table(s), float16, for a finite float32 weight. Raises scales.Unreachable beyond float16."""
    channels = array.shape[axis]
    step = group or max(1, channels)
    tables, scales = [], []
    for i in range(0, channels, step):
        own = along(axis, slice(i, i + step))
        weights = None if importance is None else importance[own]
        table, scale = _fit(array[own], axis, 1 << bits, weights, scaled, vector)
        tables.append(table)
        scales.append(scale)
    with np.errstate(over="ignore"):
        packed = np.stack(tables).astype(np.float16)
    if not np.isfinite(packed).all():
        raise Unreachable("float16 does not hold its largest value, nor tables of it")
    return Table(bits, packed, axis, group if group < channels else 0, np.concatenate(scales) if scaled else None)


def _fit(
    array: np.ndarray, axis: int, k: int, importance: np.ndarray | None, scaled: bool, vector: int
) -> tuple[np.ndarray, np.ndarray]:
    """A table [k, vector] and the scales of the channels."""
    cells = Cells(array.shape, axis)
    scales, share = np.ones((2, array.shape[axis]), np.float32)
    if scaled:
        found = on_cores(_sizes, weighted_pieces(array, cells, importance))
        peaks, squares = (np.concatenate(part) for part in zip(*found, strict=True))
        scales = as_float16(np.where(peaks == 0, 1, peaks)).astype(np.float32)
        with np.errstate(all="ignore"):
            share = np.where(squares > 0, np.minimum(scales * scales / squares, MOST), 0).astype(np.float32)
    if vector > 1:
        each = np.broadcast_to(share.reshape([-1 if a == axis else 1 for a in range(array.ndim)]), array.shape)
        weights = each if importance is None else importance * each
        return cluster_vectors(array, axis, k, weights, scales, vector), scales.astype(np.float16)
    table = _padded(cluster(_gathered(array, cells, scales, share, importance), k), k)
    for _ in range(TURNS if scaled and importance is not None else 0):
        scales = _refitted(array, cells, scales, table, importance)
        table = _padded(cluster(_gathered(array, cells, scales, share, importance), k), k)
    return table[:, None], scales.astype(np.float16)


def _sizes(piece: tuple[slice, np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """The largest magnitude and the mean square of each channel."""
    _, part, weights = piece
    peaks = np.maximum(part.max((1, 2), initial=0), -part.min((1, 2), initial=0))
    if weights is None:
        return peaks, np.einsum("cke,cke->c", part, part) / part[0].size
    with np.errstate(all="ignore"):
        return peaks, np.einsum("cke,cke,cke->c", part, part, weights) / weights.sum((1, 2))


def _padded(centres: np.ndarray, k: int) -> np.ndarray:
    """Centres that a float16 table holds, the last repeated where there are fewer than `k`."""
    with np.errstate(over="ignore"):
        rounded = centres.astype(np.float16)
    return np.append(rounded, np.repeat(rounded[-1:], k - len(rounded))).astype(np.float32)


def _gathered(
    array: np.ndarray, cells: Cells, scales: np.ndarray, share: np.ndarray, importance: np.ndarray | None
) -> Atoms:
    """All elements in units of the scales; each channel counts its `share`."""
    alike = importance is None and (share == share[0]).all()
    if array.size <= EXACT:
        shape = [-1 if a == cells.axis else 1 for a in range(array.ndim)]
        weights = share.reshape(shape) if importance is None else importance * share.reshape(shape)
        return atoms(array / scales.reshape(shape), None if alike else weights)
    found = Histogram(_deviation(array, cells, scales))

    def work(piece: tuple[slice, np.ndarray, np.ndarray | None]) -> list[np.ndarray]:
        own, part, weights = piece
        s = share[own, None, None]
        return found.count(part / scales[own, None, None], None if alike else s if weights is None else weights * s)

    for sides in on_cores(work, weighted_pieces(array, cells, importance)):
        found.add(sides)
    return found.atoms()


def _deviation(array: np.ndarray, cells: Cells, scales: np.ndarray) -> float:
    """Root mean square of the elements in units of the scales; of every so many, where there are many."""
    sample = np.moveaxis(array, cells.axis, -1)
    sample = sample.reshape(-1, array.shape[cells.axis])[:: max(1, array.size >> 20)] / scales
    return float(np.sqrt(np.square(sample, dtype=np.float64).mean()))


def _refitted(
    array: np.ndarray, cells: Cells, scales: np.ndarray, table: np.ndarray, importance: np.ndarray | None
) -> np.ndarray:
    """The scales that suit best, by least squares, what each element is rounded to now."""

    def work(piece: tuple[slice, np.ndarray, np.ndarray | None]) -> np.ndarray:
        own, part, weights = piece
        points = table.take(nearest_points(part / scales[own, None, None], table))
        weighted = points if weights is None else points * weights
        square = np.einsum("cke,cke->c", weighted, points)
        with np.errstate(all="ignore"):
            found = np.einsum("cke,cke->c", part, weighted) / square
        return np.clip(np.where(square > 0, found, scales[own]), scales[own] / 2, np.minimum(scales[own] * 2, 65504))

    return as_float16(np.concatenate(on_cores(work, weighted_pieces(array, cells, importance)))).astype(np.float32)
