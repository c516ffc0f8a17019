"""How often which numbers occur in inner values of a model, streamed: what ranges of activations are chosen by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .batching import ACTIVATIONS, batches, one_sample, portions, samples
from .streaming import Fetcher, Runs

HALF = 4096
"""Bins on each side of the one at zero: of a range that is half as wide as they reach, 8 for each of 256 levels."""
CHUNK = 1 << 20
"""Numbers that are counted at once."""


@dataclass
class Histogram:
    """Numbers counted in bins centred at the multiples of `reach / HALF`. Bins grow where larger numbers come.

    Attributes:
        low, high: the least and the largest number, and 0 if they are on one side of it.
        reach: centre of the last bin, a power of two; 0 as long as all numbers were.
        finite: whether there was neither a NaN nor an infinity; what holds any is not counted.
        counts: numbers in each bin. Not whole: where bins are merged, half of every second one goes to either side.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    finite: bool = True
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * HALF + 1))

    def add(self, array: np.ndarray) -> None:
        """Count the numbers of an array."""
        flat = array.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-self.low, self.high))
        scale = np.float32(HALF / self.reach) if self.reach else np.float32(0)
        for i in range(0, flat.size, CHUNK):
            bins = np.rint(flat[i : i + CHUNK] * scale).astype(np.int32)
            self.counts += np.bincount(bins + HALF, minlength=len(self.counts))

    def _widen(self, peak: float) -> None:
        if not self.reach and peak:
            self.reach = max(2.0 ** math.ceil(math.log2(peak)), float(np.finfo(np.float32).tiny) * HALF)
        while self.reach < peak:
            even, odd = self.counts[::2].copy(), self.counts[1::2] / 2
            even[:-1] += odd
            even[1:] += odd
            self.counts[:] = 0
            self.counts[HALF // 2 : HALF // 2 + HALF + 1] = even
            self.reach *= 2

    def filled(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres and counts of the bins that are not empty, ascending."""
        at = np.flatnonzero(self.counts)
        return (at - HALF) * (self.reach / HALF), self.counts[at]

    def quantile(self, share: float) -> float:
        """The number that this share of all (0 … 1) does not exceed, to half a bin; within `low` and `high`."""
        centres, counts = self.filled()
        if not len(centres):
            return 0.0
        below = np.cumsum(counts)
        at = int(np.searchsorted(below, share * below[-1] * (1 - 1e-12)))
        return float(np.clip(centres[min(at, len(centres) - 1)], self.low, self.high))


def histograms(model: ir.Model, values: Sequence[ir.Value], runs: Runs) -> dict[ir.Value, Histogram]:
    """What each of these float32 values of the main graph holds over all runs."""
    found = {v: Histogram() for v in values}
    for value, array in streamed(model, values, runs):
        found[value].add(array)
    return found


def streamed(model: ir.Model, values: Sequence[ir.Value], runs: Runs) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Values of the main graph in all runs, a part of the samples at a time.

    Not more than `ACTIVATIONS` bytes of them are held at once, if one sample needs no more: the runs are cut into
    batches of samples where the model allows it, and where one value after another has to be fetched, it runs again.
    """
    if not values or not runs:
        return
    sizes = one_sample(model, list(values), runs)
    cut = [feeds for feeds, _ in batches(model, runs, 0.0, {values[0]: sum(sizes.values())} if sizes else {})]
    largest = max(cut, key=samples)
    if sizes:
        sizes = {v: n * samples(largest) for v, n in sizes.items()}
    else:
        sizes = {v: a.nbytes for v, a in Fetcher(model, list(values)).run(largest).items()}
    for part in portions(sizes.items(), ACTIVATIONS):
        fetcher = Fetcher(model, part)
        for feeds in cut:
            yield from fetcher.run(feeds).items()
