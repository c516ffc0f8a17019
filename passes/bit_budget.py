"""Which width each weight gets: what a limit of bytes, or of noise, does best with.

Noise that the rounding of different weights makes at the outputs is nearly independent, so it adds up. From each
weight's widths those are kept that no mixture of others beats (the lower convex hull of noise over bytes). All weights
start at their cheapest; the steps to wider ones are taken in the order of noise saved per byte, over all weights.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PARTS = 4096
"""Of a limit of bytes, as which weights are weighed against each other."""
RUNS = 12
"""Plans that are measured at most to find the cheapest within an error."""


@dataclass(frozen=True)
class Width:
    """A weight at one width.

    Attributes:
        bits: of an element.
        nbytes: as stored, with scales and tables.
        noise: noise power over signal power at the outputs when only this weight is rounded; 0: it is not.
    """

    bits: int
    nbytes: int
    noise: float


Curve = Sequence[Width]
"""All widths of a weight; the last is the weight as it is."""
Plan = tuple[Width, ...]
"""One width for each weight."""


def size(plan: Plan) -> int:
    """Bytes of all weights."""
    return sum(w.nbytes for w in plan)


def noise(plan: Plan) -> float:
    """Noise power over signal power that is to be expected at the outputs."""
    return math.fsum(w.noise for w in plan)


def hull(curve: Curve) -> list[Width]:
    """The widths on the lower convex hull, the cheapest first. What breaks the outputs is not among them."""
    found: list[Width] = []
    for w in sorted(curve, key=lambda w: (w.nbytes, w.noise)):
        if not math.isfinite(w.noise) or (found and w.noise >= found[-1].noise):
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-1], w):
            found.pop()
        found.append(w)
    return found


def _gain(a: Width, b: Width) -> float:
    """Noise that a byte more saves."""
    return (a.noise - b.noise) / (b.nbytes - a.nbytes)


class Path:
    """From the cheapest plan to the most accurate one, a step at a time, the best step first."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self._curves = curves
        hulls = [hull(c) for c in curves]
        self.start: Plan = tuple(h[0] for h in hulls)
        steps = [(-_gain(a, b), i, b) for i, h in enumerate(hulls) for a, b in pairwise(h)]
        # Within a hull gains fall, so that a stable sort keeps the order of its steps.
        self.steps = [(i, w) for _, i, w in sorted(steps, key=lambda s: s[:2])]
        self.noises = [noise(self.start)]
        self.sizes = [size(self.start)]
        now = list(self.start)
        for i, w in self.steps:
            self.noises.append(max(0.0, self.noises[-1] - now[i].noise + w.noise))
            self.sizes.append(self.sizes[-1] - now[i].nbytes + w.nbytes)
            now[i] = w

    def plan(self, k: int) -> Plan:
        """The plan after `k` steps."""
        now = list(self.start)
        for i, w in self.steps[:k]:
            now[i] = w
        return tuple(now)

    def first(self, limit: float) -> int:
        """After how many steps the expected noise is within `limit`; all of them if it never is."""
        return min(len(self.steps), bisect.bisect_left(self.noises, -limit, key=lambda n: -n))

    def of_size(self, limit: float) -> Plan | None:
        """The plan of at most so many bytes with the least expected noise; None if the cheapest is larger.

        Steps that don't fit any more leave bytes over where weights are few and large: then whole plans are weighed.
        """
        first = self._stepwise(limit)
        if first is None:
            return None
        same = uniform(self._curves, limit)
        others = [p for p in (same, weighed(self._curves, limit)) if p is not None]
        every = [first, *(self._filled(list(p), limit - size(p)) for p in others)]
        return min(every, key=lambda p: (noise(p), size(p)))

    def _stepwise(self, limit: float) -> Plan | None:
        now, left = list(self.start), limit - size(self.start)
        if left < 0:
            return None
        closed: set[int] = set()
        for i, w in self.steps:
            more = w.nbytes - now[i].nbytes
            if i in closed or more > left:
                closed.add(i)
                continue
            now[i], left = w, left - more
        return self._filled(now, left)

    def _filled(self, now: list[Width], left: float) -> Plan:
        """What the bytes that are left are good for: widths off the hull, too."""
        for _ in now:
            better = [
                (i, w)
                for i, curve in enumerate(self._curves)
                for w in curve
                if w.noise < now[i].noise and w.nbytes - now[i].nbytes <= left
            ]
            if not better:
                break
            i, w = max(better, key=lambda b: (now[b[0]].noise - b[1].noise, -b[0]))
            left -= w.nbytes - now[i].nbytes
            now[i] = w
        return tuple(now)

    def of_error(self, excess: Callable[[Plan], float], guess: float) -> Plan:
        """The first plan on the path whose measured `excess` over what is allowed is at most 1.

        `guess` is what the excess may be per expected noise.
        """
        low, high, ratio = -1, len(self.steps), guess
        for _ in range(RUNS):
            if high - low <= 1:
                break
            usable = 0 < ratio < math.inf
            k = min(max(self.first(1 / ratio), low + 1), high - 1) if usable else (low + high) // 2
            found = excess(self.plan(k))
            low, high = (low, k) if found <= 1 else (k, high)
            ratio = found / self.noises[k] if self.noises[k] > 0 else 0.0
        return self.plan(high)


def weighed(curves: Sequence[Curve], limit: float) -> Plan | None:
    """The plan of least noise in so many bytes, counted in `PARTS` of the limit and rounded up (dynamic programming).

    None where there is no limit, or nothing that fits.
    """
    if not 0 < limit < math.inf:
        return None
    unit = limit / PARTS
    best = np.zeros(PARTS + 1)
    ways: list[np.ndarray] = []
    for curve in curves:
        found = np.full(PARTS + 1, np.inf)
        way = np.zeros(PARTS + 1, np.int8)
        for k, w in enumerate(curve):
            parts = math.ceil(w.nbytes / unit)
            if parts > PARTS or not math.isfinite(w.noise):
                continue
            noises = best[: PARTS + 1 - parts] + w.noise
            better = noises < found[parts:]
            found[parts:][better] = noises[better]
            way[parts:][better] = k
        best = found
        ways.append(way)
    if not math.isfinite(best[-1]):
        return None
    left, plan = PARTS, []
    for curve, way in zip(reversed(curves), reversed(ways), strict=True):
        plan.append(curve[way[left]])
        left -= math.ceil(plan[-1].nbytes / unit)
    return tuple(reversed(plan))


def uniforms(curves: Sequence[Curve]) -> dict[int, Plan]:
    """By bits, the fewest first: these for all weights that have them, the others as they are."""
    every = sorted({w.bits for c in curves for w in c[:-1]})
    return {b: tuple(next((w for w in c if w.bits == b), c[-1]) for c in curves) for b in every}


def uniform(curves: Sequence[Curve], limit: float) -> Plan | None:
    """The same bits for all weights that have them, the most that fit into so many bytes; None if none do."""
    return next((p for p in reversed(uniforms(curves).values()) if size(p) <= limit), None)


def size_of_bits(curves: Sequence[Curve], bits: float) -> float:
    """Bytes of all weights at so many bits each; between two widths that there are, of a mixture."""
    sizes: dict[int, int] = {}
    for b in sorted({w.bits for c in curves for w in c}):
        sizes[b] = sum(min((w for w in c if w.bits >= b), key=lambda w: w.bits, default=c[-1]).nbytes for c in curves)
    below = max((b for b in sizes if b <= bits), default=None)
    above = min((b for b in sizes if b >= bits), default=None)
    if below is None:
        return 0.0
    if above is None or above == below:
        return float(sizes[below])
    share = (bits - below) / (above - below)
    return (1 - share) * sizes[below] + share * sizes[above]
