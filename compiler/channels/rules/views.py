"""Operators that move and join elements: the ids move with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...dims import Dim, exact_div
from ...graph import attr, is_const
from ..flow import Step, rule
from ..grids import FROZEN, Grid, Ids
from ..reshaping import grouped, refold


@rule("Transpose")
def _transpose(s: Step) -> None:
    rank = len(s.dims(0))
    order = attr(s.node, "perm", None) or list(reversed(range(rank)))
    table = s.const(0)
    if table is None:
        return s.emit(s.carry(0, {a: k for k, a in enumerate(order)}))
    return s.emit(Grid(s.coupling.held(table, a), (k,), True) for k, a in enumerate(order) if s.dims(0)[a] != 1)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(s: Step) -> None:
    """Axes are split and merged; ids with them. Merged with an axis of unknown extent, they are frozen.

    `[length, batch, 12 * 64]` to `[length, batch * 12, 64]` merges only the part of an axis: 12 heads of each batch.
    """
    if is_const(s.node.inputs[0]):
        return
    s.const(1)
    (dims, axis_of), (out, out_axis_of) = _parts(s.dims(0)), _parts(s.out_dims())
    last = {a: k for k, a in enumerate(axis_of)}
    found = [Grid(g.ids, tuple(last[a] for a in g.axes), g.zero) for g in _without_ones(s, s.keep())]
    for here, there in grouped(dims, out):
        touched = [g for g in found if set(g.axes) & set(here)]
        if not touched:
            continue
        found = [g for g in found if g not in touched]
        wide_here, wide_there = [a for a in here if dims[a] != 1], [a for a in there if out[a] != 1]
        sizes = [n for n in (*(dims[a] for a in here), *(out[a] for a in there)) if isinstance(n, int)]
        if len(wide_here) == len(wide_there) == 1 and len(touched) == 1:
            g = touched[0]
            found.append(Grid(g.ids, tuple(-1 - wide_there[0] if a in here else a for a in g.axes), g.zero))
        elif len(touched) > 1 or len(sizes) < len(here) + len(there) or not there:
            for g in touched:
                for a in set(g.axes) & set(here):
                    s.coupling.veto(g, a)
                rest = [d for d, a in enumerate(g.axes) if a not in here]
                if rest:
                    found.append(Grid(s.atoms.slab(g.ids, rest), tuple(g.axes[d] for d in rest), g.zero))
        else:
            made = refold(s.coupling, touched[0], here, sizes[: len(here)], [-1 - a for a in there], sizes[len(here) :])
            found.append(made)
    # Axes of the output are marked by -1 - axis until all are moved; those in no group with labels keep their number.
    s.emit(_whole(s, g, out_axis_of) for g in _moved(found))


def _parts(dims: Sequence[Dim]) -> tuple[list[Dim], list[int]]:
    """Extents with free ones cut into what is free and a number, `12 * batch` into both; and the axis of each."""
    parts: list[Dim] = []
    axes = []
    for a, n in enumerate(dims):
        factor = 1 if isinstance(n, int) else math.gcd(*(c for _, c in n.terms))
        free = exact_div(n, factor) if factor > 1 else None
        parts += [n] if free is None else [free, factor]
        axes += [a] if free is None else [a, a]
    return parts, axes


def _whole(s: Step, grid: Grid, axis_of: Sequence[int]) -> Grid:
    """A grid over parts of axes as one over axes: over one part of each, the last."""
    at = [-1 - a if a < 0 else a for a in grid.axes]
    axes = tuple(axis_of[k] for k in at)
    if len(set(axes)) < len(axes) or any(k + 1 < len(axis_of) and axis_of[k + 1] == axis_of[k] for k in at):
        s.atoms.freeze(grid.ids)
        return Grid(grid.ids, (), False)
    return Grid(grid.ids, axes, grid.zero)


def _without_ones(s: Step, grids: list[Grid]) -> list[Grid]:
    """Grids without dimensions of one position, which stays and need not be followed."""
    found = []
    for g in grids:
        wide = [d for d, n in enumerate(g.ids.shape) if n > 1]
        if not wide:
            s.atoms.freeze(g.ids)
        else:
            ids = g.ids.reshape([g.ids.shape[d] for d in wide])
            found.append(Grid(ids, tuple(g.axes[d] for d in wide), g.zero))
    return found


def _moved(grids: list[Grid]) -> list[Grid]:
    assert all(a < 0 for g in grids for a in g.axes), "every labelled axis is in some group"
    return grids


@rule("Concat")
def _concat(s: Step) -> None:
    """Along the axis, ids are lined up; across, they are tied. Constants get ids of their own along the axis."""
    rank = len(s.out_dims())
    axis = attr(s.node, "axis") % rank
    sizes = [s.dims(i)[axis] for i in range(len(s.node.inputs))]
    along = [s.at(i, axis) for i in range(len(sizes))]
    others = {a: a for a in range(rank) if a != axis}
    across = [g for i in range(len(sizes)) for g in s.carry(i, others, but=along[i])]
    if not all(isinstance(n, int) for n in sizes):
        for i in range(len(sizes)):
            s.veto(i, axis)
        s.emit(_shared(s, across, axis))
        return
    parts, axes = _lined_up(s, along, [int(n) for n in sizes], axis)
    grids = _shared(s, across, axis)
    if parts is not None:
        zero = all(g is not None and g.zero for g in along) or all(
            (g is not None and g.zero) or s.const(i) is not None for i, g in enumerate(along)
        )
        grids.append(Grid(parts, axes, zero))
    s.emit(grids)


def _shared(s: Step, grids: list[Grid], axis: int) -> list[Grid]:
    """What lies across the axis must be over all inputs alike."""
    rank = len(s.out_dims())
    merged = list(s.coupling.merge(grids, all))
    for i, value in enumerate(s.node.inputs):
        own = {a for g in s.label(i) for a in g.axes}
        for g in merged:
            if is_const(value) and value is not None:
                meets = [d for d, a in enumerate(g.axes) if a != axis]
                ids = g.ids if len(meets) == g.ids.ndim else s.atoms.slab(g.ids, meets)
                s.coupling.hold(s.const(i) or value, ids, [g.axes[d] for d in meets])
                continue
            for a in g.axes:
                if a not in own and a < rank:
                    s.coupling.veto(g, a)
    return merged


def _lined_up(s: Step, along: list[Grid | None], sizes: list[int], axis: int) -> tuple[Ids | None, tuple[int, ...]]:
    """The ids of all inputs one after the other. Grids over more axes set the form; the others are spread out."""
    widest = max((g for g in along if g is not None), key=lambda g: g.ids.ndim, default=None)
    constants = {i for i in range(len(sizes)) if s.const(i) is not None}
    if widest is None:
        return None, ()
    axes, at = widest.axes, widest.at(axis)
    parts = []
    for i, (g, size) in enumerate(zip(along, sizes, strict=True)):
        shape = [n if d != at else size for d, n in enumerate(widest.ids.shape)]
        if g is None and i in constants:
            ids = s.atoms.fresh(size)
            s.coupling.hold(s.node.inputs[i], ids, [axis])  # type: ignore[arg-type]
            ids = ids.reshape([size if d == at else 1 for d in range(len(axes))])
        elif g is None:
            ids = np.full([1] * len(axes), FROZEN)
        elif set(g.axes) <= set(axes):
            order = sorted(range(g.ids.ndim), key=lambda d: axes.index(g.axes[d]))
            ids = g.ids.transpose(order)
            if order != sorted(order):
                s.atoms.align(g.ids)
            ids = ids.reshape([g.ids.shape[g.at(a)] if a in g.axes else 1 for a in axes])
        else:
            s.atoms.freeze(g.ids)
            ids = np.full([1] * len(axes), FROZEN)
        if any(n not in (1, m) for n, m in zip(ids.shape, shape, strict=True)):
            s.atoms.freeze(ids)
            ids = np.full([1] * len(axes), FROZEN)
        parts.append(np.broadcast_to(ids, shape))
    return np.concatenate(parts, at), axes
