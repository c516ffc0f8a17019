"""Whole indices of leading axes, heads and groups, as units: what goes with each, found without looking at the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .grids import FROZEN

if TYPE_CHECKING:
    from .solve import Solution


AGAIN = 8
"""How often all classes are looked at again in what can't go as a whole: the one head of keys that all queries read
is all there is, and yet some of the queries may go."""


class Lists:
    """Many lists of numbers in two arrays."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, count: int) -> None:
        order = np.argsort(keys, kind="stable")
        self.values = values[order]
        self.sizes = np.bincount(keys, minlength=count)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def of(self, keys: np.ndarray) -> np.ndarray:
        """All lists of these keys, one after the other."""
        return np.asarray(self.values[spans(self.starts[keys], self.starts[keys + 1])])


def spans(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All numbers from each start up to its end, one range after the other."""
    if starts.size == 1:
        return np.arange(starts[0], ends[0])
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


class Closure:
    """Closes small sets of classes, in time that depends on what they pull in and not on the model."""

    def __init__(self, found: Solution) -> None:
        self.found, self.sizes = found, np.diff(found.starts)
        slabs = np.arange(found.owners.size)
        self._owned = Lists(found.owners, slabs, found.count)
        self._within = Lists(found.members, np.repeat(slabs, self.sizes), found.count)
        self._dead = np.zeros(found.count, bool)
        self._gone = np.zeros(slabs.size, np.int64)

    def of(self, start: int) -> np.ndarray:
        """The least closed set with this class in it; cut short where it holds the frozen class."""
        found, dead, gone = self.found, self._dead, self._gone
        new, every = np.array([start]), []
        touched = []
        while new.size:
            dead[new] = True
            every.append(new)
            if dead[FROZEN]:
                break
            owned = self._owned.of(new)
            members = found.members[spans(found.starts[owned], found.starts[owned + 1])]
            slabs = self._within.of(new)
            touched.append(slabs)
            np.add.at(gone, slabs, 1)
            full = found.owners[slabs[gone[slabs] == self.sizes[slabs]]]
            new = np.concatenate([members, full])
            new = np.sort(new[~dead[new]])
            new = new[np.diff(new, prepend=-1) != 0]
        classes = np.concatenate(every)
        dead[classes] = False
        for slabs in touched:
            gone[slabs] = 0
        return classes


def rows(found: Solution, leading: Sequence[int]) -> list[np.ndarray]:
    """The closure of each of these slabs, where nothing in it is frozen and every grid is still one without it."""
    if not leading:
        return []
    closure, done = Closure(found), np.zeros(found.count, bool)
    done[FROZEN] = True
    grids = [*found.ragged, *found.rigid]
    sizes = [g.size for g in grids]
    members = np.concatenate([g.reshape(-1) for g in grids])
    within = Lists(members, np.repeat(np.arange(len(grids)), sizes), found.count)
    dead, every = np.zeros(found.count, bool), []
    spent = 0
    for owner in leading:
        if done[owner]:
            continue
        classes = closure.of(owner)
        dead[classes] = True
        faulty = bool(dead[FROZEN]) or any(found.faulty(int(k), dead) for k in np.unique(within.of(classes)))
        dead[classes] = False
        spent += classes.size * faulty
        if not faulty:
            every.append(classes)
        if not faulty or spent > AGAIN * found.count:
            done[classes] = True
    return _not_empty(found, every)


def _not_empty(found: Solution, every: list[np.ndarray]) -> list[np.ndarray]:
    """Those that are not all of an axis."""
    if not found.axes.size or not every:
        return every
    of = np.full(found.count, -1)
    for k, classes in enumerate(every):
        of[classes] = k
    here = of[found.axes]
    alike = np.logical_and.reduceat(here == np.repeat(here[found.ends[:-1]], np.diff(found.ends)), found.ends[:-1])
    whole = set(here[found.ends[:-1]][alike].tolist())
    return [np.sort(classes) for k, classes in enumerate(every) if k not in whole]
