"""The part of a set of dead classes that can really go: closed under all relations, and every grid still an array."""

from __future__ import annotations

import numpy as np

from .even import cells
from .grids import FROZEN, Ids
from .solve import Flags, Solution, columns


def feasible(found: Solution, dead: Flags, score: np.ndarray | None = None) -> Flags:
    """A closed and valid subset of `dead`: the largest where no ids are tied, else what a greedy choice finds.

    Classes that hold nothing a mask could set to zero join where closure demands. What can't go is brought back, the
    highest `score` (per class) first: until slabs agree with their members, rows of ragged grids lose equally many,
    survivors of rigid ones are rows times columns, and no axis is empty. Never more than `dead` and bare classes.
    """
    scores = np.zeros(found.count) if score is None else score
    dead, joined = _joined(found, dead), columns(found)
    # Of a rigid grid whose columns are frozen, rows may go: their classes are moved one by one.
    joined = np.where(joined == joined[FROZEN], np.arange(found.count) + found.count, joined)
    while True:
        before = int(dead.sum())
        _agree(found, dead, scores)
        for grid in found.rigid:
            _square(grid, dead)
        _level(found, joined, dead, scores)
        _fill(found, dead, scores)
        if int(dead.sum()) == before:
            return dead


def _joined(found: Solution, dead: Flags) -> Flags:
    """With slabs that hold nothing themselves of which all members are dead, and such members of dead slabs."""
    dead = dead.copy()
    dead[FROZEN] = False
    sizes = np.diff(found.starts)
    bare = found.bare.copy()
    bare[FROZEN] = False
    while found.owners.size:
        before = int(dead.sum())
        whole = np.add.reduceat(dead[found.members], found.starts[:-1]) == sizes
        dead[found.owners[whole & bare[found.owners]]] = True
        could = np.add.reduceat((dead | bare)[found.members], found.starts[:-1]) == sizes
        dead[found.members[np.repeat(dead[found.owners] & could, sizes)]] = True
        if int(dead.sum()) == before:
            break
    return dead


def _agree(found: Solution, dead: Flags, score: np.ndarray) -> None:
    """A slab lives if any member does, and then one of them at least."""
    while found.owners.size:
        sizes = np.diff(found.starts)
        gone = np.add.reduceat(dead[found.members], found.starts[:-1])
        wrong = found.owners[(gone < sizes) & dead[found.owners]]
        dead[wrong] = False
        lonely = np.flatnonzero((gone == sizes) & ~dead[found.owners])
        if not wrong.size and not lonely.size:
            return
        for k in lonely:
            members = found.members[found.starts[k] : found.starts[k + 1]]
            if dead[members].all():
                dead[_best(members, score)] = False


def _best(classes: np.ndarray, score: np.ndarray) -> int:
    return int(classes[np.argmax(score[classes])])


def _square(grid: Ids, dead: Flags) -> None:
    """Of a rigid grid, only whole slices along some axis are gone."""
    gone = dead[grid]
    if not gone.any():
        return
    covered = np.zeros(grid.shape, bool)
    for d in range(grid.ndim):
        covered |= gone.all(tuple(i for i in range(grid.ndim) if i != d), keepdims=True)
    dead[grid[gone & ~covered]] = False


def _level(found: Solution, joined: np.ndarray, dead: Flags, score: np.ndarray) -> None:
    """Of ragged grids, every row that is left has lost equally many; columns of rigid grids stay together."""
    grids = [left for g in found.ragged if dead[g].any() and (left := _rows(g, dead)).size]
    counts = [dead[g].sum(1) for g in grids]
    if all((c == c[0]).all() for c in counts):
        return
    movable = np.zeros(2 * found.count, bool)
    movable[joined[dead]] = True
    movable[joined[FROZEN]] = False
    weight = np.zeros(2 * found.count)
    np.add.at(weight, joined, score)
    for part in cells([np.where(dead[g], joined[g], joined[FROZEN]) for g in grids], movable):
        for members, stay in zip(part.members, part.most(), strict=True):
            if stay < members.size:
                order = members[np.argsort(weight[members], kind="stable")]
                dead[np.isin(joined, order[stay:])] = False


def _rows(grid: Ids, dead: Flags) -> Ids:
    """The rows of a grid that are left, without indices of leading axes at which nothing is."""
    for d in range(grid.ndim - 1):
        others = tuple(i for i in range(grid.ndim) if i != d)
        grid = grid.compress(~dead[grid].all(others), d)
    return grid.reshape(-1, grid.shape[-1])


def _fill(found: Solution, dead: Flags, score: np.ndarray) -> None:
    """Bring back one class on every axis that would be empty."""
    for axis in [*found.empty(dead), *(g.reshape(-1) for g in (*found.ragged, *found.rigid))]:
        if dead[axis].all():
            dead[_best(axis, score)] = False
    for axis, least in found.scarce:
        missing = least - int((~dead[axis]).sum())
        for k in sorted(axis[dead[axis]], key=lambda c: -score[c])[: max(missing, 0)]:
            dead[k] = False
