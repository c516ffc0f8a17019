"""One-dimensional k-means: the k numbers that many numbers can be rounded to at the least (weighted) square error.

Clusters of numbers on a line are intervals, so that k - 1 places in the sorted numbers are looked for. Dynamic
programming over all places is exact and slow (Wang and Song, Ckmeans.1d.dp, R Journal 2011). Here it looks only at a
window of places around each of the present ones, all of which may move at once; windows narrow from several clusters
to single places. Places to start from: where the density of the numbers, cube root taken, is divided evenly (Panter and
Dite, Proc. IRE 1951). The tests hold it within 0.01 % of exact dynamic programming where clusters have many members.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXACT = 1 << 16
"""Numbers up to which each distinct one counts on its own; more are counted in bins."""

PRECISION, FEW = (13, 11), 32
"""Bins are 2^-13 of their distance from 0 wide; near 0, of a quarter of the standard deviation. For up to so `FEW`
centres, whose clusters are wide, 2^-11: four times as many bins fit a cache."""

WINDOW = 8
"""Places that are tried on either side of the present one."""

WIDEST, NARROWING = 2.0, 4.0
"""Steps between the places that are tried, in clusters: the first, and how much less each time."""

COARSE, FINE = 1e-4, 1e-5
"""Gain in distortion from which a window is tried again: while it narrows, and at the end."""

ROUNDS = 30


class Atoms(NamedTuple):
    """Ascending distinct numbers, and the weight of each; both float64."""

    x: np.ndarray
    mass: np.ndarray


class Histogram:
    """Counts (or sums of weights) of numbers in bins, filled piece by piece.

    `spacing` is their deviation from 0, `k` how many centres will be looked for.
    """

    def __init__(self, spacing: float, k: int) -> None:
        precision = PRECISION[k <= FEW]
        self._offset = np.float32(max(spacing / 4, np.finfo(np.float32).tiny * 2**precision))
        self._shift = np.int32(23 - precision)
        self._first = np.int32(self._bits(np.zeros(1, np.float32))[0])
        self._sides = [np.zeros(0), np.zeros(0)]

    def _bits(self, part: np.ndarray) -> np.ndarray:
        moved = np.abs(part)
        moved += self._offset
        bits = moved.view(np.int32)
        bits >>= self._shift
        return np.asarray(bits)

    def count(self, part: np.ndarray, weights: np.ndarray | None = None) -> list[np.ndarray]:
        """What `add` takes: the bins of a contiguous float32 array, those above 0 first."""
        place = self._bits(part)
        place -= self._first
        size = int(place.max(initial=0)) + 1
        below = part.view(np.int32) >> np.int32(31)  # All bits where the sign is set.
        below &= np.int32(size)
        place += below
        flat = None if weights is None else np.broadcast_to(weights, part.shape).ravel()
        found = np.bincount(place.ravel(), flat, 2 * size)
        return [found[:size], found[size:]]

    def add(self, sides: list[np.ndarray]) -> None:
        """Count these, too."""
        for i, found in enumerate(sides):
            old = self._sides[i]
            if found.size > old.size:
                self._sides[i] = found.astype(np.float64)
                self._sides[i][: old.size] += old
            else:
                old[: found.size] += found

    def atoms(self) -> Atoms:
        """The middles of the bins that are not empty, with what is in them."""
        parts = []
        for sign, mass in zip((1, -1), self._sides, strict=True):
            bits = (np.flatnonzero(mass) + int(self._first)).astype(np.int64) << int(self._shift)
            edges = [
                (bits + add).astype(np.int32).view(np.float32).astype(np.float64) for add in (0, 1 << int(self._shift))
            ]
            middle = np.maximum((edges[0] + edges[1]) / 2 - float(self._offset), 0)
            parts.append(Atoms(sign * middle, mass[mass != 0]))
        return _sorted(np.concatenate([parts[1].x, parts[0].x]), np.concatenate([parts[1].mass, parts[0].mass]))


def atoms(array: np.ndarray, weights: np.ndarray | None = None, k: int = 256) -> Atoms:
    """The distinct numbers of a float32 array, in bins when there are many; `weights` broadcast against it.

    Bins are as fine as `k` centres need.
    """
    if array.size <= EXACT:
        mass = np.ones(array.size) if weights is None else np.broadcast_to(weights, array.shape).ravel()
        return _sorted(array.ravel().astype(np.float64), mass.astype(np.float64))
    found = Histogram(float(np.sqrt(np.square(array, dtype=np.float64).mean())), k)
    found.add(found.count(np.ascontiguousarray(array), weights))
    return found.atoms()


def _sorted(x: np.ndarray, mass: np.ndarray) -> Atoms:
    x, place = np.unique(x, return_inverse=True)
    mass = np.bincount(place.ravel(), mass, len(x))
    return Atoms(x[mass > 0], mass[mass > 0]) if (mass > 0).any() else Atoms(x, np.ones(len(x)))


def cluster(numbers: Atoms, k: int) -> np.ndarray:
    """The at most `k` centres, ascending, float64: all numbers themselves when there are no more."""
    x, mass = numbers
    if len(x) <= k or k < 2:
        return x if len(x) <= k else np.array([np.average(x, weights=mass)])
    centred = x - np.average(x, weights=mass)
    moments = np.stack([np.append(0, np.cumsum(mass)), np.append(0, np.cumsum(mass * centred))])
    total = float((mass * centred**2).sum())
    places, step, last = _start(x, mass, k), WIDEST, 0.0
    while True:
        fine = step * len(x) <= k
        for _ in range(ROUNDS):
            places, gain = _improved(moments, places, None if fine else step)
            if gain <= last + (FINE if fine else COARSE) * (total - last):
                break
            last = gain
        if fine:
            return _centres(numbers, places)
        step /= NARROWING


def distortion(numbers: Atoms, centres: np.ndarray) -> float:
    """Sum of the weighted square distances of the numbers from the nearest of these ascending centres."""
    place = np.searchsorted((centres[1:] + centres[:-1]) / 2, numbers.x)
    return float((numbers.mass * (numbers.x - centres[place]) ** 2).sum())


def _start(x: np.ndarray, mass: np.ndarray, k: int) -> np.ndarray:
    """k - 1 places that divide the cube root of the density evenly."""
    gap = np.diff(x, append=x[-1])
    rise = np.append(0, np.cumsum(np.cbrt(mass * gap * gap)))
    return np.searchsorted(rise, np.linspace(0, rise[-1], k + 1)[1:-1]).astype(np.int64)


def _improved(moments: np.ndarray, places: np.ndarray, step: float | None) -> tuple[np.ndarray, float]:
    """The best places in windows around these, and the sum over clusters of mass · mean², which is largest for them.

    `step` is in clusters, None: one place.
    """
    n, count = moments.shape[1] - 1, 2 * WINDOW + 1
    offsets = np.arange(-WINDOW, WINDOW + 1)
    if step is None:
        tried = np.clip(places[:, None] + offsets, 1, n - 1)
    else:
        edges = np.concatenate([[0], places, [n]])
        tried = np.interp(np.arange(1, len(edges) - 1)[:, None] + offsets * step, np.arange(len(edges)), edges)
        tried = np.clip(tried.astype(np.int64), 1, n - 1)  # The last number may be one far out, and worth a cluster.
        tried[:, WINDOW] = places
    at = moments[:, tried]
    between = _gain(at[:, 1:, :, None] - at[:, :-1, None, :])
    best = _gain(at[:, 0])
    came: np.ndarray = np.zeros(tried.shape, np.int64)
    rows = np.arange(count) * count
    for i, gain in enumerate(between, 1):
        gain += best
        came[i] = gain.argmax(1)
        best = gain.ravel()[rows + came[i]]
    best = best + _gain(moments[:, n:] - at[:, -1])
    found, last = np.empty(len(places), np.int64), int(best.argmax())
    whole = float(best[last])
    for i, back in reversed(list(enumerate(came.tolist()))):
        found[i], last = last, back[last]
    return tried[np.arange(len(places)), found], whole


def _gain(cell: np.ndarray) -> np.ndarray:
    """Mass · mean² of cells of this mass and moment; 0 for empty ones, -inf for those that end before they start."""
    mass, moment = cell
    gain = moment * moment
    gain /= mass + (mass == 0)
    gain[mass < 0] = -np.inf
    return np.asarray(gain)


def _centres(numbers: Atoms, places: np.ndarray) -> np.ndarray:
    starts = np.unique(np.concatenate([[0], places]))
    starts = starts[starts < len(numbers.x)]
    mass = np.add.reduceat(numbers.mass, starts)
    return np.asarray(np.add.reduceat(numbers.mass * numbers.x, starts) / mass)
