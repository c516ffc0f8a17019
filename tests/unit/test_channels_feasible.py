"""feasible: of any set of dead classes, a part that can go, beside all subsets tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.channels.coupling import Coupling
from edgec.compiler.channels.even import cells
from edgec.compiler.channels.feasible import feasible
from edgec.compiler.channels.solve import Solution, solve


def grid(rows: int, columns: int, ties: list[tuple[int, int]], rigid: bool = False) -> tuple[Solution, np.ndarray]:
    """One grid over a value, some of its ids tied, and the classes in it. Heads may go whole, if all of one is dead."""
    coupling = Coupling()
    ids = coupling.atoms.fresh(rows, columns)
    coupling.atoms.lay(ids)
    for a, b in ties:
        coupling.atoms.tie(ids.reshape(-1)[a % ids.size], ids.reshape(-1)[b % ids.size])
    if rigid:
        coupling.atoms.align(ids)
    found = solve(coupling)
    found.bare[found.of[ids]] = False
    return found, found.of[ids]


def largest(found: Solution, dead: np.ndarray) -> int:
    """The most classes of `dead` that any closed and valid subset has, by trying all of them."""
    named = np.flatnonzero(dead)
    for count in range(named.size, 0, -1):
        for some in itertools.combinations(named, count):
            subset = np.zeros(found.count, bool)
            subset[list(some)] = True
            closed = found.close(subset)
            if not (closed & ~subset & ~found.bare).any() and not closed[0] and found.fault(closed) is None:
                return count
    return 0


GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(GRIDS, st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=3), st.integers(0, 511), st.booleans())
def test_closed_valid_and_without_ties_as_large_as_can_be(shape, ties, bits, rigid):
    """Of up to nine ids. Where some are tied, what goes whole is chosen greedily, and more might."""
    found, classes = grid(*shape, ties, rigid)
    dead = np.zeros(found.count, bool)
    dead[classes.reshape(-1)[[bits >> k & 1 == 1 for k in range(classes.size)]]] = True
    part = feasible(found, dead)
    assert not (part & ~dead & ~found.bare).any()
    assert (found.close(part) == part).all() and found.fault(part) is None
    own = int((part & ~found.bare).sum())
    assert ties or own >= largest(found, dead)


def test_what_is_brought_back_scores_highest():
    found, classes = grid(2, 4, [])
    dead = np.zeros(found.count, bool)
    dead[classes[0, :3]], dead[classes[1, 0]] = True, True
    score = np.zeros(found.count)
    score[classes[0, 1]], score[classes[0, 2]] = 3, 2
    part = feasible(found, dead, score)
    assert part[classes].astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_a_whole_row_may_go_and_the_rest_stays_even():
    found, classes = grid(3, 3, [])
    dead = np.zeros(found.count, bool)
    dead[classes[1]], dead[classes[0, :2]], dead[classes[2, 2]] = True, True, True
    part = feasible(found, dead)
    assert part[classes].sum(1).tolist() == [1, 3, 1]


@pytest.mark.parametrize("sizes", [(1, 1, 8, 8), (2, 6, 4, 8), (3, 3, 3, 3)])
def test_shares_even_out_and_use_as_much_as_can_be(sizes):
    """Four cells of which two each take from one row of two: shares take equally many of both rows."""
    first = np.cumsum([1, *sizes])
    parts = [np.arange(first[k], first[k + 1]) for k in range(4)]
    rows = [np.concatenate([parts[0], parts[1]]), np.concatenate([parts[2], parts[3]])]
    width = max(map(len, rows))
    table = np.stack([np.pad(r, (0, width - len(r))) for r in rows])
    movable = np.ones(first[-1], bool)
    movable[0] = False
    (bound,) = cells([table], movable)
    taken = np.zeros(len(bound.members), np.int64)
    for amounts, times in bound.shares():
        assert bound.even(amounts) and amounts.any()
        taken += amounts * times
    assert (taken <= bound.sizes).all() and taken.sum() == 2 * min(sum(sizes[:2]), sum(sizes[2:]))
