"""Operators that take some of the elements along an axis: the ids go with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graph import attr, const, is_const
from ..flow import Step, rule
from ..gates import placed
from ..grids import FROZEN, Grid


@rule("Split")
def _split(s: Step) -> None:
    axis = attr(s.node, "axis", 0) % len(s.dims(0))
    s.const(1)
    start = 0
    for k in range(len(s.node.outputs)):
        size = s.out_dims(k)[axis]
        if not isinstance(size, int):
            return s.veto(0, axis)
        s.emit((_taken(g, axis, np.arange(start, start + size)) for g in s.keep()), k)
        start += size
    return None


def _taken(grid: Grid, axis: int, positions: np.ndarray) -> Grid:
    """The grid of what is at these positions of an axis."""
    if axis not in grid.axes:
        return grid
    return Grid(grid.ids.take(positions, grid.at(axis)), grid.axes, grid.zero)


@rule("Slice")
def _slice(s: Step) -> None:
    given = [s.ints(i) for i in range(1, 5)]
    for i in range(1, 5):
        s.const(i)
    starts, ends, axes, steps = given
    if s.const(0) is not None:
        return _cut_table(s, axes)
    if (
        starts is None
        or ends is None
        or any(v is not None and g is None for v, g in zip(s.node.inputs[1:], given, strict=False))
    ):
        # Where it cuts is not known: only axes that keep their size may pass.
        out, dims = s.out_dims(), s.dims(0)
        return s.emit(s.keep(but=[a for a in range(len(dims)) if dims[a] != out[a] or not isinstance(dims[a], int)]))
    dims = s.dims(0)
    grids = s.keep()
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        axis %= len(dims)
        size = dims[axis]
        if not isinstance(size, int):
            s.veto(0, axis)
            grids = [g for g in grids if axis not in g.axes]
        else:
            positions = np.arange(size)[slice(start, _end(end, size, step), step)]
            for g in grids:
                _same_in_rows(s, g, axis, positions)
            grids = [_taken(g, axis, positions) for g in grids]
    return s.emit(grids)


def _cut_table(s: Step, axes: Sequence[int] | None) -> None:
    """Of a constant, angles of as many positions as there are, say: the axes that aren't cut have ids of their own."""
    table, dims = s.node.inputs[0], s.dims(0)
    if table is None or axes is None:
        return
    cut = {a % len(dims) for a in axes}
    s.emit(Grid(s.coupling.held(table, a), (a,), True) for a, n in enumerate(dims) if n != 1 and a not in cut)


def _same_in_rows(s: Step, grid: Grid, axis: int, positions: np.ndarray) -> None:
    """Positions on the last axis of a ragged grid are counted alike in all rows: of a range, what lies before it."""
    if axis not in grid.axes or grid.ids.ndim == 1 or grid.at(axis) != grid.ids.ndim - 1:
        return
    if positions.size and (np.diff(positions) == 1).all():
        if positions[0]:
            s.atoms.lay(grid.ids[..., : positions[0]])
    else:
        s.atoms.align(grid.ids)


def _end(end: int, size: int, step: int) -> int | None:
    """An end far below 0 means "to the start" for a negative step."""
    return None if step < 0 and end < -size else end


@rule("Gather")
def _gather(s: Step) -> None:
    """A constant index takes ids along the axis; a computed one leaves the axis as it is, and finds it whole."""
    rank = len(s.dims(0))
    axis = attr(s.node, "axis", 0) % rank
    index, data = s.node.inputs[1], s.node.inputs[0]
    many = len(s.dims(1))
    to = {a: a if a < axis else a + many - 1 for a in range(rank) if a != axis}
    chosen = placed(s, 1)
    if data is not None and is_const(data):
        if chosen is not None:
            s.coupling.hold(data, chosen, [axis])
        return _embedding(s, axis, to, many)
    positions = const(index) if index is not None and is_const(index) else None
    g = s.at(0, axis)
    s.const(1)
    if chosen is not None:
        # What the k largest are looked up in loses what they are of.
        s.atoms.tie(chosen, FROZEN if g is None else s.atoms.slab(g.ids, [g.at(axis)]))
        return s.emit([*s.carry(0, to), *_of_index(s, axis)])
    if g is None or positions is None or not isinstance(s.dims(0)[axis], int):
        s.veto(0, axis)
        return s.emit([*s.carry(0, to), *_of_index(s, axis)])
    grids = s.carry(0, to, but=g)
    at = g.at(axis)
    _same_in_rows(s, g, axis, positions.reshape(-1) % g.ids.shape[at])
    ids = g.ids.take(positions.reshape(-1) % g.ids.shape[at], at)
    # Axes of one position say nothing.
    wide = [k for k, n in enumerate(positions.shape) if n != 1] or list(range(many))[:1]
    ids = ids.reshape([*g.ids.shape[:at], *(positions.shape[k] for k in wide), *g.ids.shape[at + 1 :]])
    new = (*(to[a] for a in g.axes[:at]), *(axis + k for k in wide), *(to[a] for a in g.axes[at + 1 :]))
    if not new:
        s.atoms.freeze(ids)  # one element that is picked must be there
    s.emit([*grids, Grid(ids, new, g.zero)])
    return None


def _of_index(s: Step, axis: int) -> list[Grid]:
    return s.carry(1, {a: a + axis for a in range(len(s.dims(1)))}, zero=False)


def _embedding(s: Step, axis: int, to: dict[int, int], many: int) -> None:
    """A table of constants: its other axes get ids."""
    table = s.const(0)
    assert table is not None
    positions = s.const(1)
    grids = []
    for a, there in to.items():
        if s.dims(0)[a] != 1:
            grids.append(Grid(s.coupling.held(table, a), (there,), True))
    if positions is None:
        grids += _of_index(s, axis)
    s.emit(grids)
