"""Set the least important channels, heads and hidden units to zero; `remove-channels` takes them out."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.channels.flow import Coupling, couple
from ..compiler.channels.price import Price, element_scores
from ..compiler.channels.shrink import mask
from ..compiler.channels.solve import Solution, Units, solve, units
from ..compiler.passbase import Context, Pass

OF = ("channels", "parameters", "bytes", "macs")
BY = ("l1", "l2")
GRAINS = ("auto", "channels", "heads", "dims")


@dataclass(frozen=True)
class MaskChannels(Pass):
    """Mask whole groups of slices that can be removed together, the least important first.

    Before:  `y = Conv(Relu(Conv(x, w)), v)`
    After:   the same operators; some filters of `w`, and the slices of `v` that read them, are zero

    Only numbers change. Which slices belong together is worked out for the whole graph (docs/pruning.md).

    Options:
        ratio: how much shall go, 0 to 1, of what `of` says.
        of: macs, parameters, bytes, or channels (so many of every group).
        by: how importance is measured: l2 or l1 norm over all slices of a group, each relative to its layer's mean.
        spread: `local` takes the same share everywhere; `global` what is least important anywhere.
        grain: what may go: `channels`, `heads` (whole heads, groups), `dims` (dimensions within heads), or `auto`:
            heads where there are some, channels elsewhere.
        align: lengths that axes are kept multiples of; odd lengths are slower than those left whole.
        most: the share of any axis that may go at most.
        keep: names of weights, separated by `;`, with * and ?: their channels stay.
    """

    name: ClassVar[str] = "mask-channels"
    lossy: ClassVar[bool] = True
    ratio: float = 0.5
    of: str = "macs"
    by: str = "l2"
    spread: str = "local"
    grain: str = "auto"
    align: int = 8
    most: float = 0.9
    keep: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of what there is, 0 to less than 1")
        for option, choices in (("of", OF), ("by", BY), ("spread", ("local", "global")), ("grain", GRAINS)):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}={getattr(self, option)}: choose one of {', '.join(choices)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights were changed."""
        coupling = couple(model)
        found = solve(coupling)
        scores = element_scores(coupling, found.of, found.count, self.by)
        every = units(coupling, found, scores)
        families = _families(self, coupling, found, every, scores)
        if not families:
            ctx.note("no channels that could be removed were found")
            return 0
        price = Price(model, coupling)
        dead = self._search(families, every, found, price)
        left = price.left(dead[found.of])
        reached = 1 - left[self.of] if self.of != "channels" else self.ratio
        parts = ", ".join(f"{1 - left[k]:.1%} of {k}" for k in ("macs", "parameters"))
        ctx.note(f"{int(dead.sum())} of {found.count - 1} groups of slices are masked: {parts}")
        if reached < self.ratio - 0.03:
            ctx.note(f"asked for {self.ratio:.0%} of {self.of}; `most` and `align` allow {reached:.1%}")
        return mask(model, coupling, found, dead, ctx.scratch)

    def _search(self, families: list[_Family], every: Units, found: Solution, price: Price) -> np.ndarray:
        """The share to take of every family so that the model comes closest to the ratio; bisection."""
        if self.of == "channels":
            return _taken(families, every, found, self.ratio)
        low, high, best, gap = 0.0, 1.0, np.zeros(found.count, bool), math.inf
        for _ in range(14):
            middle = (low + high) / 2
            dead = _taken(families, every, found, middle)
            reached = 1 - price.left(dead[found.of])[self.of]
            if abs(reached - self.ratio) < gap:
                best, gap = dead, abs(reached - self.ratio)
            low, high = (middle, high) if reached < self.ratio else (low, middle)
        return best


@dataclass(frozen=True)
class _Family:
    """Units with their slices on the same axes, the least important first.

    What is kept is a multiple of `step`, so that lengths stay multiples, and at least `floor`. Where importance is
    compared between families, `at[k]` is the setting of the knob from which unit k goes.
    """

    order: np.ndarray
    step: int
    floor: int
    at: np.ndarray | None

    def count(self, knob: float) -> int:
        """How many go."""
        n = self.order.size
        wanted = n * knob if self.at is None else float((self.at < knob).sum())
        kept = max(self.floor, self.step * round((n - wanted) / self.step), min(self.step, n))
        return max(0, n - kept)


def _taken(families: list[_Family], every: Units, found: Solution, knob: float) -> np.ndarray:
    """The classes that are dead at this knob. What can't go together with the rest stays."""
    dead = np.zeros(found.count, bool)
    for f in families:
        dead[every.classes(f.order[: f.count(knob)])] = True
    dead = found.close(dead)
    if dead[0] or found.fault(dead) is not None:
        return _one_by_one(families, every, found, knob)
    return dead


def _one_by_one(families: list[_Family], every: Units, found: Solution, knob: float) -> np.ndarray:
    dead = np.zeros(found.count, bool)
    for f in families:
        more = dead.copy()
        more[every.classes(f.order[: f.count(knob)])] = True
        more = found.close(more)
        if not more[0] and found.fault(more) is None:
            dead = more
    return dead


def _families(
    p: MaskChannels, coupling: Coupling, found: Solution, every: Units, scores: np.ndarray
) -> list[_Family]:
    """The families that may lose something."""
    usable = _allowed(p, coupling, found, every)
    totals = every.total(scores)
    length = _Lengths(coupling, found)
    made: list[tuple[np.ndarray, int]] = []
    for family in np.unique(every.family[usable]) if usable.any() else ():
        members = np.flatnonzero((every.family == family) & usable)
        order = members[np.argsort(totals[members], kind="stable")]
        made.append((order, p.align // math.gcd(p.align, length.of(every.classes(order[:1])))))
    ranks = _ranks([totals[order] for order, _ in made]) if p.spread == "global" else [None] * len(made)
    return [
        _Family(order, min(step, order.size), max(1, math.ceil(order.size * (1 - p.most))), at)
        for (order, step), at in zip(made, ranks, strict=True)
    ]


def _ranks(totals: list[np.ndarray]) -> list[np.ndarray]:
    """Each unit's rank among all, 0 to 1, by importance relative to its family's mean."""
    relative = [t / max(float(t.mean()), 1e-30) for t in totals]
    joined = np.concatenate(relative)
    ranks = np.empty(joined.size)
    ranks[np.argsort(joined, kind="stable")] = np.arange(joined.size) / joined.size
    return np.split(ranks, np.cumsum([t.size for t in totals])[:-1])


def _allowed(p: MaskChannels, coupling: Coupling, found: Solution, every: Units) -> np.ndarray:
    """Per unit, whether the options let it go."""
    in_rows = np.zeros(found.count, bool)
    in_rows[every.classes(np.flatnonzero(every.rows))] = True
    first = every.members[every.starts[:-1]]
    dims = ~every.rows & in_rows[first]
    allowed = {
        "auto": ~dims, "channels": ~every.rows & ~dims, "heads": every.rows, "dims": dims,
    }[p.grain]  # fmt: skip
    kept = np.zeros(found.count, bool)
    for pattern in filter(None, p.keep.split(";")):
        names = [v for v in coupling.holds if fnmatch.fnmatch(v.name or "", pattern)]
        for value in names:
            for h in coupling.holds[value]:
                kept[found.of[h.grid.ids]] = True
    if kept.any():
        hit = np.add.reduceat(kept[every.members].astype(np.int64), every.starts[:-1]) > 0
        allowed = allowed & ~hit
    return np.asarray(allowed)


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
