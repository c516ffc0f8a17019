"""Which units go: the least important of each family, so many that the model comes closest to a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..guard.parts import Unit
from .coupling import Coupling
from .feasible import feasible
from .solve import Flags, Solution, Units, units

CLOSE = 0.002
"""How close to a ratio is close enough."""
FAR = 0.01
"""From how far away another attempt is worth its time."""
LEAPS = 4
"""Attempts."""
STEPS = 12
"""How often the common share is halved at most."""


@dataclass(frozen=True)
class Family:
    """Units with their slices on the same axes, the least important first.

    What is kept is a multiple of `step`, so that lengths stay multiples, and at least `floor`. Where importance is
    compared between families, `at[k]` is the setting of the knob from which unit k goes.

    Attributes:
        order: the units.
        members, ends: the classes of the first k units are members[:ends[k]].
        worth: per unit, its importance relative to the family's mean.
    """

    order: np.ndarray
    members: np.ndarray
    ends: np.ndarray
    worth: np.ndarray
    step: int
    floor: int
    at: np.ndarray | None = None

    def count(self, knob: float) -> int:
        """How many go."""
        n = self.order.size
        wanted = n * knob if self.at is None else float((self.at < knob).sum())
        kept = max(self.floor, self.step * round((n - wanted) / self.step), min(self.step, n))
        return max(0, n - kept)


def families(
    coupling: Coupling, found: Solution, every: Units, scores: np.ndarray, usable: Flags, align: int, most: float,
    across: bool,
) -> list[Family]:  # fmt: skip
    """The families of the usable units. With `across`, importance counts between families, too."""
    totals = every.total(scores)
    length = _Lengths(coupling, found)
    chosen = np.flatnonzero(usable)
    chosen = chosen[np.lexsort((totals[chosen], every.family[chosen]))]
    cuts = np.flatnonzero(np.diff(every.family[chosen])) + 1
    orders = [o for o in np.split(chosen, cuts) if o.size]
    worths = [totals[o] / max(float(totals[o].mean()), 1e-30) for o in orders]
    ranks: Sequence[np.ndarray | None] = _ranks(worths) if across else [None] * len(orders)
    made = []
    for order, worth, at in zip(orders, worths, ranks, strict=True):
        step = align // math.gcd(align, length.of(every.classes(order[:1])))
        sizes = every.starts[order + 1] - every.starts[order]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        floor = max(1, math.ceil(order.size * (1 - most)))
        made.append(Family(order, every.classes(order), ends, worth, min(step, order.size), floor, at))
    return made


def _ranks(worths: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each unit's rank among all, 0 to 1."""
    if not worths:
        return []
    joined = np.concatenate(worths)
    ranks = np.empty(joined.size)
    ranks[np.argsort(joined, kind="stable")] = np.arange(joined.size) / joined.size
    return np.split(ranks, np.cumsum([w.size for w in worths])[:-1])


class _Lengths:
    """How much shorter an axis of some weight becomes when a unit goes."""

    def __init__(self, coupling: Coupling, found: Solution) -> None:
        self._found = found
        self._grids = [h.grid.ids for holds in coupling.holds.values() for h in holds]
        self._where = np.full(found.count, -1)
        for k, ids in enumerate(self._grids):
            self._where[found.of[ids.reshape(-1)]] = k

    def of(self, classes: np.ndarray) -> int:
        """Positions that these classes take on one axis that they lie on, a grid's axes as one; at least 1."""
        where = self._where[classes]
        if not (where >= 0).any():
            return 1
        on = self._found.of[self._grids[int(where[where >= 0][0])]]
        return max(1, int(np.isin(on, classes).sum()))


def taken(found: Solution, groups: Sequence[Family], counts: Sequence[int], scores: np.ndarray) -> Flags:
    """The classes that are dead when so many units of each family go. What can't go together with the rest stays."""
    dead = np.zeros(found.count, bool)
    for f, n in zip(groups, counts, strict=True):
        dead[f.members[: f.ends[n]]] = True
    dead = found.close(dead)
    if dead[0] or found.fault(dead) is not None:
        return feasible(found, dead, scores)
    return dead


def search(
    found: Solution, groups: Sequence[Family], scores: np.ndarray, ratio: float, gone: Callable[[Flags], float]
) -> Flags:
    """The dead classes with which `gone`, the share of the model that they are, comes closest to the ratio.

    First one share for all families is found by bisection, then, since each keeps whole multiples, how many families
    go on to the next one, those with the least to lose first. Where one family alone leaps over the ratio, it stays as
    it is, and the others are asked anew.
    """
    best, gap = np.zeros(found.count, bool), math.inf

    def tried(counts: Sequence[int]) -> bool:
        """Whether these are still too few."""
        nonlocal best, gap
        dead = taken(found, groups, counts, scores)
        share = gone(dead)
        if abs(share - ratio) < gap:
            best, gap = dead, abs(share - ratio)
        return share < ratio

    for _ in range(LEAPS):
        few, many = _bisected(groups, ratio, tried, lambda: gap)
        if gap < CLOSE:
            break
        leap = _one_more(groups, few, many, tried, lambda: gap)
        if leap is None or gap < FAR:
            break
        f = groups[leap]
        groups = [*groups[:leap], replace(f, floor=f.order.size - few[leap]), *groups[leap + 1 :]]
    return best


def _bisected(
    groups: Sequence[Family], ratio: float, tried: Callable[[Sequence[int]], bool], gap: Callable[[], float]
) -> tuple[list[int], list[int]]:
    """Two neighbouring settings of the knob, too few and enough."""
    low, high, knob = 0.0, 1.0, ratio
    few, many = [f.count(low) for f in groups], [f.count(high) for f in groups]
    for _ in range(STEPS):
        if few == many or gap() < CLOSE:
            break
        counts = [f.count(knob) for f in groups]
        if counts == few or (counts != many and tried(counts)):
            low, few = knob, counts
        else:
            high, many = knob, counts
        knob = (low + high) / 2
    return few, many


def _one_more(
    groups: Sequence[Family], few: list[int], many: list[int], tried: Callable[[Sequence[int]], bool],
    gap: Callable[[], float],
) -> int | None:  # fmt: skip
    """Between two settings: bisect over how many families have the larger number. Returns the one that crosses."""
    more = [k for k in range(len(groups)) if many[k] > few[k]]
    more.sort(key=lambda k: float(groups[k].worth[few[k] : many[k]].mean()))
    if tried(many):
        return None
    low, high = 0, len(more)
    while high - low > 1 and gap() >= CLOSE:
        middle = (low + high) // 2
        counts = list(few)
        for k in more[:middle]:
            counts[k] = many[k]
        low, high = (middle, high) if tried(counts) else (low, middle)
    return more[low] if more else None


def masked_families(coupling: Coupling, found: Solution, dead: Flags) -> list[tuple[Unit, Flags]]:
    """The families that lose channels: each with the name of its largest weight, and the classes that it loses."""
    every = units(coupling, found)
    gone = [k for k in range(len(every)) if dead[every.classes(np.array([k]))].all()]
    sizes: dict[int, int] = {}
    named: dict[int, tuple[int, str]] = {}
    family = np.full(found.count, -1)
    for k in gone:
        family[every.classes(np.array([k]))] = every.family[k]
    for value in coupling.holds:
        for h in coupling.zeroed(value):
            classes = found.of[h.grid.ids].reshape(-1)
            lost = classes[dead[classes] & (family[classes] >= 0)]
            each = math.prod(h.view) // max(1, classes.size)
            for f, n in zip(*np.unique(family[lost], return_counts=True), strict=True):
                sizes[int(f)] = sizes.get(int(f), 0) + int(n) * each
                named[int(f)] = max(named.get(int(f), (0, "")), (math.prod(h.view), value.name or ""))
    made, taken_names = [], set[str]()
    for f in sizes:
        name = named[f][1]
        name = name if name not in taken_names else f"{name} ({f})"
        taken_names.add(name)
        flags = np.zeros(found.count, bool)
        flags[np.flatnonzero(family == f)] = True
        made.append((Unit((name,), sizes[f]), flags & dead))
    return made
