"""From ties to what may really go: closed sets of classes, and the smallest of them (units)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .flow import Coupling
from .grids import FROZEN, Ids

Flags = np.ndarray
"""bool, one per class or per id."""


@dataclass(frozen=True)
class Unit:
    """What can be removed by itself.

    Attributes:
        classes: the classes that go together.
        kind: `rows` (whole heads, groups: an index of a leading axis of a grid) or `channels`.
        family: units of one family have their slices on the same axes of the same weights.
    """

    classes: np.ndarray
    kind: str
    family: int


@dataclass
class Solution:
    """The classes of a coupling, and the rules for removing them.

    Attributes:
        of: id → class.
        count: how many classes there are; class 0 is frozen.
        owners, starts, members: slab k is the class owners[k], standing for members[starts[k]:starts[k + 1]].
        ragged, rigid: grids, as classes, of which rows must keep equally many, or survivors be rows times columns.
    """

    of: Ids
    count: int
    owners: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    ragged: list[Ids] = field(default_factory=list)
    rigid: list[Ids] = field(default_factory=list)

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

    def fault(self, dead: Flags) -> Ids | None:
        """A grid whose survivors would not be a proper array; None if all would be."""
        for grid in self.ragged:
            alive = survivors(grid, dead)
            counts = alive.sum(-1)
            if counts.size and (counts.min() != counts.max() or counts.min() == 0):
                return grid
        for grid in self.rigid:
            alive = survivors(grid, dead)
            if alive.size == 0 or not alive[..., alive.reshape(-1, alive.shape[-1]).any(0)].all():
                return grid
        return None


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
    return found


def _content(ids: Ids) -> bytes:
    return repr(ids.shape).encode() + np.ascontiguousarray(ids).tobytes()


def units(coupling: Coupling, found: Solution, score: np.ndarray | None = None) -> list[Unit]:
    """Everything that can be removed by itself, rows first. `score` (per class) orders what is matched across rows.

    Rows of a ragged grid must lose equally many: a unit then takes one of each row, the lowest scores with each other.
    """
    marks = _marks(coupling, found)
    made = [*_rows(found, marks), *_channels(found, marks, np.zeros(found.count) if score is None else score)]
    keys: dict[tuple[str, int], int] = {}
    return [Unit(c, kind, keys.setdefault((kind, mark), len(keys))) for c, kind, mark in made]


def _marks(coupling: Coupling, found: Solution) -> np.ndarray:
    """A number per class that tells on which axes of which weights it lies: equal for equal places."""
    rng = np.random.default_rng(0)
    marks = np.zeros(found.count, np.uint64)
    for holds in coupling.holds.values():
        for h in holds:
            flat = found.of[h.grid.ids.reshape(-1)]
            np.add.at(marks, flat, rng.integers(1, 1 << 63, dtype=np.uint64))
    return marks


Made = tuple[np.ndarray, str, int]


def _rows(found: Solution, marks: np.ndarray) -> Iterable[Made]:
    """The closure of each slab over a leading axis."""
    leading: set[int] = set()
    for grid in [*found.ragged, *found.rigid]:
        leading.update(_leading(found, grid))
    done: set[int] = set()
    for owner in sorted(leading - {FROZEN}):
        if owner in done:
            continue
        start = np.zeros(found.count, bool)
        start[owner] = True
        dead = found.close(start)
        classes = np.flatnonzero(dead)
        done.update(int(c) for c in classes)
        if not dead[FROZEN]:
            yield classes, "rows", int(marks[classes].sum())


def _leading(found: Solution, grid: Ids) -> Iterable[int]:
    """The owners of slabs over leading axes of a grid."""
    if not found.owners.size:
        return []
    index = _slab_index(found)
    owners = []
    for d in range(grid.ndim - 1):
        for i in range(grid.shape[d]):
            owner = index.get(np.sort(grid.take(i, d).reshape(-1)).tobytes())
            if owner is not None:
                owners.append(owner)
    return owners


def _slab_index(found: Solution) -> dict[bytes, int]:
    if not hasattr(found, "_index"):
        parts = np.split(found.members, found.starts[1:-1])
        index = {np.sort(m).tobytes(): int(o) for m, o in zip(parts, found.owners, strict=True)}
        object.__setattr__(found, "_index", index)
    return found._index  # type: ignore[attr-defined, no-any-return]


def _channels(found: Solution, marks: np.ndarray, score: np.ndarray) -> Iterable[Made]:
    """Classes by themselves, or one from each row of a ragged grid."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = found.count
    a = [np.broadcast_to(g[(0,) * (g.ndim - 1)], g.shape).reshape(-1) for g in found.rigid]
    b = [g.reshape(-1) for g in found.rigid]
    if a:
        left, right = np.concatenate(a), np.concatenate(b)
        _, joined = connected_components(coo_array((np.ones(left.size, np.int8), (left, right)), shape=(n, n)), False)
    else:
        joined = np.arange(n)
    owners = np.zeros(n, bool)
    owners[found.owners] = True
    frozen = np.zeros(n, bool)
    frozen[joined[FROZEN]] = True
    groups: dict[int, list[int]] = {}
    for c in np.flatnonzero(~frozen[joined] & ~owners):
        groups.setdefault(int(joined[c]), []).append(int(c))
    tilt = _tilts(found, joined)
    cells: dict[int, dict[tuple[tuple[int, int, int], ...], list[int]]] = {}
    link = _links(tilt)
    for key, classes in groups.items():
        t = tilt.get(key)
        if not t:
            members = np.array(classes)
            yield members, "channels", int(marks[members].sum())
        else:
            cells.setdefault(link[t[0][0]], {}).setdefault(tuple(t), []).append(key)
    for component in cells.values():
        yield from _matched(found, component, groups, marks, score)


def _tilts(found: Solution, joined: np.ndarray) -> dict[int, list[tuple[int, int, int]]]:
    """Class → how many more of it than in the emptiest row lie in each row of each ragged grid: (grid, row, more)."""
    tilts: dict[int, list[tuple[int, int, int]]] = {}
    for k, grid in enumerate(found.ragged):
        rows = joined[grid.reshape(-1, grid.shape[-1])]
        flat = rows.reshape(-1)
        where = np.repeat(np.arange(rows.shape[0]), rows.shape[1])
        pairs, counts = np.unique(np.stack([flat, where]), axis=1, return_counts=True)
        classes, first = np.unique(pairs[0], return_index=True)
        for c, lo, hi in zip(classes, first, [*first[1:], pairs.shape[1]], strict=True):
            least = counts[lo:hi].min() if hi - lo == rows.shape[0] else 0
            more = [
                (k, int(r), int(m - least)) for r, m in zip(pairs[1, lo:hi], counts[lo:hi], strict=True) if m > least
            ]
            if more:
                tilts.setdefault(int(c), []).extend(more)
    return tilts


def _links(tilts: dict[int, list[tuple[int, int, int]]]) -> dict[int, int]:
    """Ragged grid → a number for all grids that are bound to each other by a class that tilts both."""
    parent: dict[int, int] = {}

    def root(k: int) -> int:
        parent.setdefault(k, k)
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for t in tilts.values():
        for k, _, _ in t[1:]:
            parent[root(k)] = root(t[0][0])
        root(t[0][0])
    return {k: root(k) for k in parent}


def _matched(
    found: Solution,
    cells: dict[tuple[tuple[int, int, int], ...], list[int]],
    groups: dict[int, list[int]],
    marks: np.ndarray,
    score: np.ndarray,
) -> Iterable[Made]:
    """Units that take equal shares of all cells, where that evens out every row."""
    share = int(np.gcd.reduce([len(keys) for keys in cells.values()]))
    balance: dict[tuple[int, int], int] = {}
    for tilt, keys in cells.items():
        for k, row, more in tilt:
            balance[k, row] = balance.get((k, row), 0) + more * (len(keys) // share)
    for k in {k for k, _ in balance}:
        rows = found.ragged[k].reshape(-1, found.ragged[k].shape[-1]).shape[0]
        amounts = [balance.get((k, r), 0) for r in range(rows)]
        if min(amounts) != max(amounts):
            return
    ordered = [sorted(keys, key=lambda key: float(sum(score[c] for c in groups[key]))) for keys in cells.values()]
    for j in range(share):
        keys = [key for cell in ordered for key in cell[j * (len(cell) // share) : (j + 1) * (len(cell) // share)]]
        classes = np.array([c for key in keys for c in groups[key]])
        yield classes, "channels", int(marks[classes].sum())
