"""Operators that choose by position: the k largest, one-hot rows, elements gathered and scattered."""

from __future__ import annotations

from collections.abc import Sequence

from ...dims import Dim
from ...graph import attr, const, is_const
from ..flow import Step, rule
from ..gates import gate, placed
from ..grids import FROZEN, Grid


@rule("TopK")
def _topk(s: Step) -> None:
    """Of gates, what doesn't count is never among the k largest while k are left. Positions are counted anew."""
    axis = attr(s.node, "axis", -1) % len(s.dims(0))
    given = s.ints(1)
    s.const(1)
    g = gate(s, 0, axis) if given is not None and attr(s.node, "largest", 1) else None
    if g is None or given is None:
        s.veto(0, axis)
    else:
        s.coupling.gates.setdefault(s.node.outputs[0], g.ids)
        s.coupling.scarce.append((g.ids, given[0]))
        s.coupling.positions[s.node.outputs[1]] = g.ids
    for k in range(len(s.node.outputs)):
        s.emit(s.keep(but=[axis], zero=False), k)


@rule("OneHot")
def _one_hot(s: Step) -> None:
    """The axis of all positions loses those that never occur; its other values are what a row has elsewhere."""
    rank = len(s.dims(0))
    axis = attr(s.node, "axis", -1) % (rank + 1)
    ids, depth, values = placed(s, 0), s.ints(1), const(s.value(2))
    for i in (1, 2):
        s.const(i)
    grids = s.carry(0, {a: a if a < axis else a + 1 for a in range(rank)}, zero=False)
    if ids is not None:
        if depth == [len(ids)] and values is not None:
            grids.append(Grid(ids, (axis,), values.reshape(-1)[0] == 0))
        else:
            s.placed.clear()
    s.emit(grids)


@rule("GatherElements")
def _gather_elements(s: Step) -> None:
    """Along the other axes, positions are read where they stand: data and positions lose the same."""
    rank = len(s.dims(0))
    axis = attr(s.node, "axis", 0) % rank
    chosen, g = placed(s, 1), s.at(0, axis)
    if chosen is not None:
        s.atoms.tie(chosen, FROZEN if g is None else s.atoms.slab(g.ids, [g.at(axis)]))
    elif g is not None:
        s.coupling.veto(g, axis)
    grids = []
    across = [a for a in range(rank) if a != axis]
    if not any(is_const(v) for v in s.node.inputs):
        parts = [s.keep(i, but=[axis] if i == 0 else [], zero=False) for i in (0, 1)]
        grids = _alike(s, parts, across, [s.dims(0), s.dims(1)])
        grids += [g for g in parts[1] if g.axes == (axis,)]
    s.emit(grids)


@rule("GatherND")
def _gather_nd(s: Step) -> None:
    """Rows of a constant by one position each: it loses those that never occur, and its other axes have ids."""
    table, last = s.value(0), s.dims(1)[-1]
    if table is None or not is_const(table) or attr(s.node, "batch_dims", 0) or last != 1:
        return
    chosen, many = placed(s, 1), len(s.dims(1)) - 1
    s.const(0)
    if chosen is not None:
        s.coupling.hold(table, chosen, [0])
    elif s.const(1) is not None:
        return
    grids = [Grid(s.coupling.held(table, a), (many + a - 1,), True) for a, n in enumerate(s.dims(0)) if a and n != 1]
    s.emit([*grids, *s.carry(1, {a: a for a in range(many)}, zero=False)])


@rule("ScatterElements")
def _scatter_elements(s: Step) -> None:
    """As above; what is scattered to positions that never occur is what was there before."""
    rank = len(s.dims(0))
    axis = attr(s.node, "axis", 0) % rank
    chosen, g = placed(s, 1), s.at(0, axis)
    made = []
    if chosen is not None:
        if g is not None and g.ids.ndim == 1:
            s.atoms.tie(chosen, g.ids)
            made = [Grid(g.ids, (axis,), g.zero)]
        elif (table := s.const(0)) is not None and s.dims(0)[axis] == len(chosen):
            s.coupling.hold(table, chosen, [axis])
            made = [Grid(chosen, (axis,), True)]
        else:
            s.atoms.freeze(chosen)
            if g is not None:
                s.coupling.veto(g, axis)
    elif g is not None:
        s.coupling.veto(g, axis)
    grids = []
    if not any(is_const(v) for v in s.node.inputs):
        parts = [s.keep(i, but=[axis], zero=False) for i in range(3)]
        grids = _alike(s, parts, [a for a in range(rank) if a != axis], [s.dims(i) for i in range(3)])
    s.emit([*grids, *made])


def _alike(s: Step, parts: list[list[Grid]], across: list[int], dims: Sequence[Sequence[Dim]]) -> list[Grid]:
    """Grids over axes that all inputs have, as long in each; an axis that not all label keeps everything."""
    labelled = [{a for g in part for a in g.axes} for part in parts]
    found = []
    for part in parts:
        for g in part:
            for a in g.axes:
                if a in across and not all(a in own for own in labelled):
                    s.coupling.veto(g, a)
            if set(g.axes) <= set(across):
                found.append(g)
            elif len(g.axes) > 1:
                s.atoms.freeze(g.ids)
    if any(len({str(d[a]) for d in dims}) > 1 for a in across):
        for g in found:
            s.atoms.freeze(g.ids)
    return list(s.coupling.merge(found, all))
