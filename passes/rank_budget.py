"""Which rank each weight gets: the same, what keeps its energy, or what a budget for the whole model does best with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..compiler.calibration.linear_layers import Layer
from ..compiler.calibration.sums import Sums
from .low_rank import Candidate, Split


@dataclass(frozen=True, eq=False)
class Way:
    """One split of a weight.

    Attributes:
        tails: per rank, from 0 on, the share of the energy that is lost.
        factor: how many times more the outputs lose.
        path: where the basis lies.
    """

    split: Split
    tails: np.ndarray
    factor: float
    path: Path

    def lost(self, rank: int) -> float:
        """The share of the outputs' energy that is lost at this rank."""
        return float(self.tails[min(rank, len(self.tails) - 1)]) * self.factor


@dataclass(eq=False)
class Curve:
    """A weight and what it loses, split by split; the layer that it is in and the mean of its inputs, if known."""

    candidate: Candidate
    seen: tuple[Layer, Sums] | None = None
    ways: list[Way] = field(default_factory=list)

    def choices(self, align: int) -> Iterator[Choice]:
        """Every split at every rank that is worth it: multiples of `align`, or the largest, where that is less."""
        for way in self.ways:
            most = self.candidate.most(way.split)
            for rank in range(align, most + 1, align) if most >= align else (most,):
                yield Choice(self, way, rank)


@dataclass(frozen=True, eq=False)
class Choice:
    """A weight, how it is split and at which rank."""

    curve: Curve
    way: Way
    rank: int

    @property
    def loss(self) -> float:
        """The share of the outputs' energy that is lost."""
        return self.way.lost(self.rank)

    def saved(self, of: str) -> float:
        """Macs, parameters or bytes that two layers take less."""
        c = self.curve.candidate
        if of == "macs":
            return c.macs - self.rank * self.way.split.macs
        return (c.parameters - self.rank * sum(self.way.split.shape)) * (4 if of == "bytes" else 1)


def fixed(curves: Sequence[Curve], rank: int) -> list[Choice]:
    """This rank for all, split so that least is lost."""
    found = []
    for c in curves:
        fits = [Choice(c, w, rank) for w in c.ways if rank <= c.candidate.most(w.split)]
        found += [min(fits, key=lambda x: (x.loss, -x.saved("macs")))] if fits else []
    return found


def of_energy(curves: Sequence[Curve], energy: float, align: int) -> list[Choice]:
    """For each weight the cheapest choice that keeps this share of the energy, if there is one."""
    found = []
    for c in curves:
        fits = [x for x in c.choices(align) if 1 - x.loss >= energy]
        found += [max(fits, key=lambda x: (x.saved("macs"), -x.loss))] if fits else []
    return found


def of_budget(curves: Sequence[Curve], wanted: float, of: str, align: int) -> list[Choice]:
    """Choices that save `wanted` in sum, at the least sum of losses.

    From each weight's choices those are kept that no mixture of others beats (the lower convex hull of loss over what
    is saved); then the steps between them are taken in the order of loss per unit saved, over all weights. The last
    step goes only as far as needed.
    """
    every = {c: sorted(c.choices(align), key=lambda x: (x.saved(of), -x.loss)) for c in curves}
    steps: list[tuple[float, int, Curve, Choice]] = []
    for c, choices in every.items():
        saved, loss = 0.0, 0.0
        for choice in _hull(choices, of):
            slope = (choice.loss - loss) / (choice.saved(of) - saved)
            steps.append((slope, len(steps), c, choice))
            saved, loss = choice.saved(of), choice.loss
    taken: dict[Curve, Choice] = {}
    total = 0.0
    for _, _, c, choice in sorted(steps, key=lambda s: s[:2]):
        if total >= wanted:
            break
        before = taken[c].saved(of) if c in taken else 0.0
        least = min(choice.saved(of), before + wanted - total)
        enough = [x for x in every[c] if least <= x.saved(of) <= choice.saved(of)]
        taken[c] = min(enough, key=lambda x: (x.loss, x.saved(of)))
        total += taken[c].saved(of) - before
    return list(taken.values())


def _hull(choices: Sequence[Choice], of: str) -> list[Choice]:
    """The lower convex hull of these, in the order of what they save, and of the point (0, 0)."""
    points: list[tuple[float, float, Choice | None]] = [(0.0, 0.0, None)]
    for choice in choices:
        x, y = choice.saved(of), choice.loss
        if x <= 0:
            continue
        while points[-1][0] >= x or (len(points) > 1 and _above(points[-2], points[-1], (x, y, choice))):
            if points[-1][0] >= x and points[-1][1] <= y:
                break
            points.pop()
        if points[-1][0] < x:
            points.append((x, y, choice))
    return [p[2] for p in points if p[2] is not None]


def _above(
    a: tuple[float, float, Choice | None], b: tuple[float, float, Choice | None], c: tuple[float, float, Choice | None]
) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
