"""The part of a set of dead classes that can really go: closed under all relations, and every grid still an array."""

from __future__ import annotations

import numpy as np

from .grids import FROZEN, Ids
from .solve import Flags, Solution


def feasible(found: Solution, dead: Flags, score: np.ndarray | None = None) -> Flags:
    """A closed and valid subset of `dead`, as large as can be found class by class.

    Classes that hold nothing a mask could set to zero join where closure demands. What can't go is brought back, the
    highest `score` (per class) first: until slabs agree with their members, rows of ragged grids lose equally many,
    survivors of rigid ones are rows times columns, and no axis is empty. Never more than `dead` and bare classes.
    """
    scores = np.zeros(found.count) if score is None else score
    dead = _joined(found, dead)
    while True:
        before = int(dead.sum())
        _agree(found, dead, scores)
        for grid in found.rigid:
            _square(grid, dead)
        for grid in found.ragged:
            _level(grid, dead, scores)
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


def _level(grid: Ids, dead: Flags, score: np.ndarray) -> None:
    """Of a ragged grid, every row that is left has lost equally many."""
    gone = dead[grid]
    if not gone.any():
        return
    kept = grid
    for d in range(grid.ndim - 1):
        others = tuple(i for i in range(grid.ndim) if i != d)
        alive = ~dead[kept].all(others)
        kept = kept.compress(alive, d)
    if not kept.size:
        dead[_best(grid.reshape(-1), score)] = False
        return _level(grid, dead, score)
    rows = kept.reshape(-1, kept.shape[-1])
    gone = dead[rows]
    excess = gone.sum(1) - gone.sum(1).min()
    if excess.any():
        _bring_back(rows, gone, excess, dead, score)
    return None


def _bring_back(rows: Ids, gone: Flags, excess: np.ndarray, dead: Flags, score: np.ndarray) -> None:
    """Bring classes back that lie in rows that have lost too many, as long as they overshoot in none."""
    row, column = np.nonzero(gone)
    order = np.argsort(rows[row, column], kind="stable")
    classes, row = rows[row, column][order], row[order]
    firsts = np.flatnonzero(np.diff(classes, prepend=-1))
    spans = np.append(firsts, classes.size)
    ranked = sorted(range(firsts.size), key=lambda k: -score[classes[firsts[k]]])
    left = excess.copy()
    for k in ranked:
        at, times = np.unique(row[spans[k] : spans[k + 1]], return_counts=True)
        if (left[at] >= times).all():
            left[at] -= times
            dead[classes[firsts[k]]] = False
            if not left.any():
                return
    if (left == excess).all():
        # Each overshoots somewhere: that one which lies in the rows concerned most; then the others follow.
        worst = [k for k in ranked if excess[row[spans[k] : spans[k + 1]]].any()]
        dead[classes[firsts[worst[0]]]] = False


def _fill(found: Solution, dead: Flags, score: np.ndarray) -> None:
    """Bring back one class on every axis that would be empty."""
    for axis in found.empty(dead):
        if dead[axis].all():
            dead[_best(axis, score)] = False
