"""From ties to what may really go: closed sets of classes, and the smallest of them (units)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .components import components
from .coupling import Coupling
from .even import cells
from .grids import FROZEN, Atoms, Ids
from .rows import Lists, spans
from .rows import rows as leading_rows

Flags = np.ndarray
"""bool, one per class or per id."""


@dataclass(frozen=True)
class Units:
    """Everything that can be removed by itself, as arrays.

    Attributes:
        members, starts: the classes that go with unit k are members[starts[k]:starts[k + 1]].
        rows: per unit, whether it is an index of a leading axis of a grid (a head, a group) and not a channel.
        family: per unit, a number; units of one family have their slices on the same axes of the same weights.
    """

    members: np.ndarray
    starts: np.ndarray
    rows: Flags
    family: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def classes(self, chosen: np.ndarray) -> np.ndarray:
        """The classes of these units (indices)."""
        chosen = np.asarray(chosen)
        return np.asarray(self.members[spans(self.starts[chosen], self.starts[chosen + 1])])

    def total(self, amounts: np.ndarray) -> np.ndarray:
        """Per unit, the sum of an amount that is given per class."""
        return np.add.reduceat(amounts[self.members], self.starts[:-1]) if len(self) else np.zeros(0)


@dataclass
class Solution:
    """The classes of a coupling, and the rules for removing them.

    Attributes:
        of: id → class.
        count: how many classes there are; class 0 is frozen.
        owners, starts, members: slab k is the class owners[k], standing for members[starts[k]:starts[k + 1]].
        ragged, rigid: grids, as classes, of which rows must keep equally many, or survivors be rows times columns.
        axes, ends: classes over single axes, one after the other; no axis may lose all. Those with a frozen class are
            left out. Axis k is axes[ends[k]:ends[k + 1]].
        bare: per class, whether there is nothing of it in any constant that a mask may set to zero.
        scarce: classes over an axis of which so many must stay.
    """

    of: Ids
    count: int
    owners: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    ragged: list[Ids] = field(default_factory=list)
    rigid: list[Ids] = field(default_factory=list)
    axes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    bare: Flags = field(default_factory=lambda: np.zeros(0, bool))
    scarce: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def empty(self, dead: Flags) -> list[np.ndarray]:
        """The classes of every single axis that would lose all of them."""
        if not self.axes.size:
            return []
        gone = np.logical_and.reduceat(dead[self.axes], self.ends[:-1])
        return [self.axes[self.ends[k] : self.ends[k + 1]] for k in np.flatnonzero(gone)]

    def close(self, dead: Flags) -> Flags:
        """The least closed set that holds these classes: a slab goes with all its members, and they with it."""
        dead = dead.copy()
        if not self.owners.size:
            return dead
        sizes = np.diff(self.starts)
        while True:
            gone = np.add.reduceat(dead[self.members], self.starts[:-1]) == sizes
            spread = self.members[np.repeat(dead[self.owners], sizes)]
            if dead[self.owners[gone]].all() and dead[spread].all():
                return dead
            dead[self.owners[gone]] = True
            dead[spread] = True

    def faulty(self, k: int, dead: Flags) -> bool:
        """Whether the survivors of grid k, the ragged ones first, would not be a proper array."""
        if k < len(self.ragged):
            counts = survivors(self.ragged[k], dead).sum(-1)
            return not counts.size or bool(counts.min() != counts.max()) or bool(counts.min() == 0)
        alive = survivors(self.rigid[k - len(self.ragged)], dead)
        return alive.size == 0 or not alive[..., alive.reshape(-1, alive.shape[-1]).any(0)].all()

    def fault(self, dead: Flags) -> Ids | None:
        """A grid whose survivors would not be a proper array; None if all would be."""
        for k, grid in enumerate([*self.ragged, *self.rigid]):
            if dead[grid].any() and self.faulty(k, dead):
                return grid
        few = (classes for classes, least in self.scarce if (~dead[classes]).sum() < least)
        return next(iter([*self.empty(dead), *few]), None)


def survivors(grid: Ids, dead: Flags) -> Flags:
    """What is left of a grid of classes, without the indices of leading axes at which nothing is."""
    alive = ~dead[grid]
    for d in range(grid.ndim - 1):
        others = tuple(i for i in range(grid.ndim) if i != d)
        alive = alive.compress(alive.any(others), d)
    return np.asarray(alive)


def solve(coupling: Coupling) -> Solution:
    """Classes and constraints of a coupling. Linear in ids, but for the connected components."""
    atoms = coupling.atoms
    for ids in list(atoms.grids.values()):
        for d in range(ids.ndim - 1):
            atoms.slab(ids, [d])
    of = atoms.classes()
    slabs = [(of[s.atoms], of[s.members]) for s in atoms.slabs]
    owners = np.concatenate([o for o, _ in slabs]) if slabs else np.zeros(0, np.int64)
    members = np.concatenate([m.reshape(-1) for _, m in slabs]) if slabs else np.zeros(0, np.int64)
    sizes = np.concatenate([np.full(len(o), m.shape[1]) for o, m in slabs]) if slabs else np.zeros(0, np.int64)
    found = Solution(of, int(of.max()) + 1, owners, np.concatenate([[0], np.cumsum(sizes)]), members)
    rigid = {_content(ids) for ids in atoms.aligned}
    seen: set[bytes] = set()
    for ids in [*atoms.grids.values(), *atoms.aligned]:
        key = _content(ids)
        if ids.ndim > 1 and key not in seen:
            seen.add(key)
            (found.rigid if key in rigid else found.ragged).append(of[ids])
    found.scarce = [(of[ids], least) for ids, least in coupling.scarce]
    _note_axes(found, atoms)
    found.bare = np.ones(found.count, bool)
    for holds in coupling.holds.values():
        for h in holds:
            if h.masked:
                found.bare[of[h.grid.ids]] = False
    return found


def _note_axes(found: Solution, atoms: Atoms) -> None:
    """Single axes that could lose everything, each once."""
    every = {found.of[ids].tobytes(): found.of[ids] for ids in atoms.axes.values()}
    free = [a for a in every.values() if a.size and (a != FROZEN).all()]
    if free:
        found.axes = np.concatenate(free)
        found.ends = np.concatenate([[0], np.cumsum([a.size for a in free])])


def _content(ids: Ids) -> bytes:
    return repr(ids.shape).encode() + np.ascontiguousarray(ids).tobytes()


def units(coupling: Coupling, found: Solution, score: np.ndarray | None = None) -> Units:
    """Everything that can be removed by itself, rows first. `score` (per class) orders what is matched across rows.

    Rows of a ragged grid must lose equally many: a unit then takes one of each row, the lowest scores with each other.
    """
    scores = np.zeros(found.count) if score is None else score
    rows = leading_rows(found, _leading(found))
    members, starts = _channels(found, scores)
    joined = np.concatenate([*rows, members]) if rows else members
    ends = np.cumsum([0, *(len(r) for r in rows)])
    starts = np.concatenate([ends, ends[-1] + starts[1:]])
    marks = _marks(coupling, found)
    is_row = np.arange(len(starts) - 1) < len(rows)
    if is_row.size:
        # A fill that may be of any size holds nothing to remove.
        some, sizes = ~np.logical_and.reduceat(found.bare[joined], starts[:-1]), np.diff(starts)
        joined, is_row = joined[np.repeat(some, sizes)], is_row[some]
        starts = np.concatenate([[0], np.cumsum(sizes[some])])
    places = np.add.reduceat(marks[joined], starts[:-1]) if len(starts) > 1 else np.zeros(0, np.uint64)
    _, family = np.unique(places + is_row.astype(np.uint64), return_inverse=True)
    return Units(joined, starts, is_row, family)


def _marks(coupling: Coupling, found: Solution) -> np.ndarray:
    """A number per class that tells on which axes of which weights it lies: equal for equal places."""
    rng = np.random.default_rng(0)
    marks = np.zeros(found.count, np.uint64)
    for holds in coupling.holds.values():
        for h in holds:
            np.add.at(marks, found.of[h.grid.ids.reshape(-1)], rng.integers(1, 1 << 63, dtype=np.uint64))
    return marks


def _leading(found: Solution) -> list[int]:
    """The owners of slabs over leading axes of grids."""
    parts = np.split(found.members, found.starts[1:-1]) if found.owners.size else []
    index = {np.sort(m).tobytes(): int(o) for m, o in zip(parts, found.owners, strict=True)}
    keys = [
        np.sort(grid.take(i, d).reshape(-1)).tobytes()
        for grid in [*found.ragged, *found.rigid] for d in range(grid.ndim - 1) for i in range(grid.shape[d])
    ]  # fmt: skip
    return sorted({index[k] for k in keys if k in index})


def _channels(found: Solution, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes by themselves, columns of rigid grids together, or one from each row of a ragged one: members, starts."""
    joined = columns(found)
    usable = joined != joined[FROZEN]
    usable[found.owners] = False
    movable = np.zeros(found.count, bool)
    movable[joined[usable]] = True
    bound = list(cells([joined[g.reshape(-1, g.shape[-1])] for g in found.ragged], movable))
    tilted = np.zeros(found.count, bool)
    for c in bound:
        tilted[np.concatenate(c.members)] = True
    plain = np.flatnonzero(usable & ~tilted[joined])
    plain = plain[np.argsort(joined[plain], kind="stable")]
    cut = np.flatnonzero(np.diff(joined[plain], prepend=-1))
    bent = np.flatnonzero(usable & tilted[joined])
    groups, totals = Lists(joined[bent], bent, found.count), np.bincount(joined[bent], score[bent], found.count)
    parts, sizes = [plain], [np.diff([*cut, plain.size])]
    for c in bound:
        # Of each cell, the lowest scores go with each other.
        ordered = [m[np.argsort(totals[m], kind="stable")] for m in c.members]
        at = [0] * len(ordered)
        for amounts, times in c.shares():
            taken = [m[a : a + n * times].reshape(times, n) for m, a, n in zip(ordered, at, amounts, strict=True)]
            at = [a + int(n) * times for a, n in zip(at, amounts, strict=True)]
            keys = np.concatenate(taken, 1)
            parts.append(groups.of(keys.reshape(-1)))
            sizes.append(groups.sizes[keys].sum(1))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


def columns(found: Solution) -> np.ndarray:
    """Classes, with those in one column of a rigid grid as one, and with a slab that stands for nothing but these."""
    if not found.rigid:
        return np.arange(found.count)
    left = np.concatenate([np.broadcast_to(g[(0,) * (g.ndim - 1)], g.shape).reshape(-1) for g in found.rigid])
    right = np.concatenate([g.reshape(-1) for g in found.rigid])
    joined = _linked(found.count, left, right)
    if not found.owners.size:
        return joined
    # A table of angles that all layers read joins their columns; one that may not change freezes them.
    members = joined[found.members]
    low = np.minimum.reduceat(members, found.starts[:-1])
    whole = low == np.maximum.reduceat(members, found.starts[:-1])
    own = joined[found.owners[whole]]
    return joined if (own == low[whole]).all() else _linked(found.count, own, low[whole])[joined]


def _linked(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return components(left, right, count)
