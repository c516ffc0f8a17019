"""Choosing a table of numbers for a weight: k-means, with a scale for each channel where the target multiplies.

With scales, a channel's square error counts in units of its own mean square: outputs of small channels matter as much
as those of large ones. At first a scale is the channel's largest number; then scales and table are fitted in turns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..parallel import on_cores
from .grids import Table
from .kmeans import EXACT, Atoms, Histogram, atoms, cluster
from .points import along, nearest_points, row_blocks, spread
from .scales import Unreachable, as_float16
from .vectors import cluster_vectors

TURNS = 2
"""How often, where the importance of errors is known; without it, the outputs of networks gain nothing."""

MOST = 1e6
"""A channel counts at most so much more than one of equal elements: nothing but a single large number is in it."""

ENOUGH = 1 << 16
"""Elements for each centre: what a table found among so many loses on all is below 0.02 % of the square error."""
FAR = 2.0
"""Root mean squares from which a number is looked at anyway: a single one may cost more than thousands of others."""


def fit_table(
    array: np.ndarray,
    axis: int,
    bits: int,
    importance: np.ndarray | None,
    scaled: bool,
    group: int,
    vector: int,
    zero: bool = False,
) -> Table:
    """The table(s), float16, for a finite float32 weight; with `zero`, each of them holds 0 (not of vectors).

    Raises scales.Unreachable beyond float16.
    """
    channels = array.shape[axis]
    whole = _Part(array, axis, importance)
    scales, share = np.ones((2, channels), np.float32)
    if scaled:
        peaks, squares = whole.sizes()
        scales = as_float16(np.where(peaks == 0, 1, peaks)).astype(np.float32)
        with np.errstate(all="ignore"):
            share = np.where(squares > 0, np.minimum(scales * scales / squares, MOST), 0).astype(np.float32)
    if vector > 1:
        tables = cluster_vectors(array, axis, 1 << bits, importance, scales, share, vector, group)
    else:
        step = group or max(1, channels)
        tables = np.empty((-(-channels // step), 1 << bits, 1))
        for i in range(0, channels, step):
            own = slice(i, i + step)
            weights = None if importance is None else importance[along(axis, own)]
            part = _Part(array[along(axis, own)], axis, weights)
            tables[i // step, :, 0], scales[own] = _fit(part, 1 << bits, scales[own], share[own], scaled, zero)
    with np.errstate(over="ignore"):
        packed = tables.astype(np.float16)
    if not np.isfinite(packed).all():
        raise Unreachable("float16 does not hold its largest value, nor tables of it")
    return Table(bits, packed, axis, group if group < channels else 0, scales.astype(np.float16) if scaled else None)


def _fit(
    part: _Part, k: int, scales: np.ndarray, share: np.ndarray, scaled: bool, zero: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A table of `k` numbers and the scales of the channels."""
    table = _table(part.atoms(scales, share, k), k, zero)
    for _ in range(TURNS if scaled and part.importance is not None else 0):
        scales = part.refitted(scales, table)
        table = _table(part.atoms(scales, share, k), k, zero)
    return table, scales


def _table(numbers: Atoms, k: int, zero: bool) -> np.ndarray:
    """Centres that a float16 table holds, the last repeated where there are fewer than `k`; with `zero`, one is 0."""
    centres = cluster(numbers, k)
    if zero:
        centres[np.abs(centres).argmin()] = 0
    with np.errstate(over="ignore"):
        rounded = centres.astype(np.float16)
    return np.append(rounded, np.repeat(rounded[-1:], k - len(rounded))).astype(np.float32)


def _step(size: int, k: int) -> int:
    """Of how many elements in a row one is looked at: sharing no factor with the sizes of axes, it comes by all."""
    least = size / (ENOUGH * k)
    return next(n for n in itertools.count(math.ceil(least)) if math.gcd(n, size) == 1) if least > 1 else 1


def _sampled(
    flat: np.ndarray, mass: np.ndarray | None, step: int, far: np.float32
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Numbers and what they count: each `step`-th for so many, and all beyond `far` for themselves."""
    if step == 1:
        yield flat, mass
        return
    some = np.ascontiguousarray(flat[::step])
    count = (np.abs(some) <= far) * np.float32(step)
    yield some, count if mass is None else count * mass[::step]
    beyond = np.flatnonzero(np.abs(flat) > far)
    yield flat[beyond], None if mass is None else mass[beyond]


@dataclass(frozen=True)
class _Part:
    """The channels of a weight that share a table. Read in rows as they lie in memory, on all cores."""

    array: np.ndarray
    axis: int
    importance: np.ndarray | None

    def wide(self, each: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """What there is for each channel, shaped to broadcast against the rows."""
        return spread(each, self.axis, 0, self.array.shape, rows)

    def weights(self, rows: slice) -> np.ndarray | None:
        """The importance of the rows."""
        return None if self.importance is None else self.importance[rows]

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest magnitude and, by importance, the mean square of each channel."""
        others = tuple(a for a in range(self.array.ndim) if a != self.axis)

        def work(piece: tuple[slice, np.ndarray]) -> np.ndarray:
            rows, part = piece
            peaks = np.maximum(part.max(others, initial=0), -part.min(others, initial=0))
            weights = self.weights(rows)
            count = np.full(len(peaks), part.size / len(peaks)) if weights is None else weights.sum(others)
            return np.stack([peaks, self._summed(part, part, weights), count])

        found = on_cores(work, row_blocks(self.array))
        every = np.concatenate(found, 1)[None] if self.axis == 0 else np.stack(found)
        with np.errstate(all="ignore"):
            return every[:, 0].max(0), every[:, 1].sum(0) / every[:, 2].sum(0)

    def atoms(self, scales: np.ndarray, share: np.ndarray, k: int) -> Atoms:
        """All elements in units of the scales, as fine as `k` centres need; each channel counts its `share`."""
        alike = (share == share[0]).all()

        def weights(rows: slice) -> np.ndarray | None:
            own = self.weights(rows)
            return own if alike else self.wide(share, rows) if own is None else own * self.wide(share, rows)

        everything = slice(0, len(self.array))
        if self.array.size <= EXACT:
            return atoms(self.array / self.wide(scales), weights(everything), k)
        some = slice(0, None, max(1, self.array.size >> 20))
        sample = np.moveaxis(self.array, self.axis, -1).reshape(-1, len(scales))[some] / scales
        spacing = float(np.sqrt(np.square(sample, dtype=np.float64).mean()))
        found, step = Histogram(spacing, k), _step(self.array.size, k)

        def work(piece: tuple[slice, np.ndarray]) -> list[list[np.ndarray]]:
            rows, part = piece
            own = weights(rows)
            flat = (part / self.wide(scales, rows)).reshape(-1)
            mass = None if own is None else np.broadcast_to(own, part.shape).reshape(-1)
            return [found.count(*each) for each in _sampled(flat, mass, step, np.float32(FAR * spacing))]

        for counted in on_cores(work, row_blocks(self.array)):
            for sides in counted:
                found.add(sides)
        return found.atoms()

    def refitted(self, scales: np.ndarray, table: np.ndarray) -> np.ndarray:
        """The scales that suit best, by least squares, what each element is rounded to now."""

        def work(piece: tuple[slice, np.ndarray]) -> np.ndarray:
            rows, part = piece
            points = table.take(nearest_points(part / self.wide(scales, rows), table))
            weights = self.weights(rows)
            return np.stack([self._summed(part, points, weights), self._summed(points, points, weights)])

        found = on_cores(work, row_blocks(self.array))
        product, square = np.concatenate(found, 1) if self.axis == 0 else np.sum(found, 0)
        with np.errstate(all="ignore"):
            best = np.where(square > 0, product / square, scales)
        return as_float16(np.clip(best, scales / 2, np.minimum(scales * 2, 65504))).astype(np.float32)

    def _summed(self, a: np.ndarray, b: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """The (weighted) products summed over each channel."""
        own = "abcdefgh"[: a.ndim]
        if weights is None:
            return np.asarray(np.einsum(f"{own},{own}->{own[self.axis]}", a, b))
        return np.asarray(np.einsum(f"{own},{own},{own}->{own[self.axis]}", a, b, weights))
