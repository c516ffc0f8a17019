"""Rows of a ragged grid must lose equally many: which classes make up for each other, and how many of each may go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .components import components

Flags = np.ndarray
PATIENCE = 2000
"""Nodes of one integer programme's search; the best that was found by then counts. Not seconds: results must repeat."""


@dataclass(frozen=True)
class Cells:
    """Classes that are bound to each other through grids, those that lie alike in one cell.

    Attributes:
        members: per cell, its classes.
        tilt: rows of grids x cells: how many more a class of the cell takes from that row than from the one that it
            takes fewest from.
        grid: per row of `tilt`, the grid that it is of.
    """

    members: list[np.ndarray]
    tilt: np.ndarray
    grid: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.array([m.size for m in self.members])

    @property
    def differences(self) -> np.ndarray:
        """A matrix of which the product with amounts per cell is zero if all rows of every grid lose equally many."""
        inside = self.grid[1:] == self.grid[:-1]
        return np.asarray((self.tilt[1:] - self.tilt[:-1])[inside])

    def most(self) -> np.ndarray:
        """How many of each cell may go at most: the largest number in all."""
        if self.even(self.sizes):
            return self.sizes
        found = _programme(self.differences, self.sizes, -1.0)
        return np.zeros(len(self.members), np.int64) if found is None else found

    def even(self, amounts: np.ndarray) -> bool:
        """Whether every grid loses equally many in all of its rows."""
        return not (self.differences @ amounts).any()

    def shares(self) -> Iterator[tuple[np.ndarray, int]]:
        """Amounts per cell that even out by themselves, as small as they can be, and how often to take them.

        Equal shares of all cells where that is possible in more than one; else the least combination, as often as
        there is enough for it, then the least of what is left.
        """
        sizes = self.sizes
        share = int(np.gcd.reduce(sizes))
        if share > 1 and self.even(sizes):
            yield sizes // share, share
            return
        left = sizes.copy()
        while left.any():
            least = _programme(self.differences, left, 1.0)
            if least is None:
                return
            times = int((left[least > 0] // least[least > 0]).min())
            yield least, times
            left = left - times * least


def _programme(differences: np.ndarray, sizes: np.ndarray, sign: float) -> np.ndarray | None:
    """Amounts up to `sizes`, not all zero, that even out: the fewest (`sign` 1) or most (-1); None if none exist."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    ones = np.ones(sizes.size)
    rules = [LinearConstraint(ones[None], 1, np.inf)]
    if differences.size:
        rules.append(LinearConstraint(np.unique(differences, axis=0), 0, 0))
    solved = milp(
        sign * ones, constraints=rules, integrality=ones, bounds=Bounds(0, sizes), options={"node_limit": PATIENCE}
    )
    if solved.x is None:
        return None
    amounts = np.round(solved.x).astype(np.int64)
    return None if (differences @ amounts).any() or not amounts.any() else amounts


def cells(grids: Sequence[np.ndarray], movable: Flags) -> Iterator[Cells]:
    """The classes that tilt some grid (rows x columns of classes), by component and cell. Only movable ones count.

    A class that takes equally many of all rows tilts nothing and is in no cell.
    """
    cls, grid, row, extra = _tilts(grids, movable)
    if not cls.size:
        return
    size = movable.size + len(grids)
    component = components(cls, movable.size + grid, size)[cls]
    order = np.argsort(component, kind="stable")
    cuts = np.flatnonzero(np.diff(component[order]) != 0) + 1
    firsts = np.cumsum([0, *(len(g) for g in grids)])
    for part in np.split(order, cuts):
        yield _cells(cls[part], grid[part], firsts[grid[part]] + row[part], extra[part], firsts)


def _cells(cls: np.ndarray, grid: np.ndarray, row: np.ndarray, extra: np.ndarray, firsts: np.ndarray) -> Cells:
    """One component: a row of numbers per class, and the classes with equal ones together."""
    rows = np.concatenate([np.arange(firsts[g], firsts[g + 1]) for g in np.unique(grid)])
    keys, at = np.unique(cls, return_inverse=True)
    table = np.zeros((keys.size, rows.size), np.int64)
    table[at, np.searchsorted(rows, row)] = extra
    # A random number per row tells rows of the table apart in a fraction of the time that comparing them takes.
    mix = table.astype(np.uint64) @ np.random.default_rng(0).integers(1, 1 << 63, size=rows.size, dtype=np.uint64)
    _, first, kind = np.unique(mix, return_index=True, return_inverse=True)
    members = np.split(keys[np.argsort(kind, kind="stable")], np.cumsum(np.bincount(kind))[:-1])
    return Cells(members, table[first].T, np.searchsorted(firsts, rows, "right") - 1)


def _tilts(grids: Sequence[np.ndarray], movable: Flags) -> tuple[np.ndarray, ...]:
    """Class, grid, row of it, and how many more of the class lie there than in the row that has the fewest."""
    parts: list[np.ndarray] = [np.zeros((4, 0), np.int64)]
    for k, rows in enumerate(grids):
        count = rows.shape[0]
        pairs, times = np.unique((rows * count + np.arange(count)[:, None])[movable[rows]], return_counts=True)
        if not pairs.size:
            continue
        cls, row = np.divmod(pairs, count)
        starts = np.flatnonzero(np.diff(cls, prepend=-1))
        spread = np.diff([*starts, cls.size])
        least = np.where(spread == count, np.minimum.reduceat(times, starts), 0)
        extra = times - np.repeat(least, spread)
        more = extra > 0
        parts.append(np.stack([cls[more], np.full(more.sum(), k), row[more], extra[more]]))
    return tuple(np.concatenate(parts, 1))
