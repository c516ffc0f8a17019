"""Convolutions and matrix products: what is contracted is tied to the weight that reads it; outputs get new ids."""

from __future__ import annotations

from ...graph import attr, is_const
from ..flow import Step, rule
from ..grids import Grid, Ids


@rule("Conv")
def _conv(s: Step) -> None:
    """Input channels against the filters' channels, per group; output channels are the filters."""
    weight, bias = s.const(1), s.const(2)
    if weight is None:
        return
    groups, dims = attr(s.node, "group", 1), [int(n) for n in s.dims(1)]  # type: ignore[arg-type]
    into = s.ids_at(0, 1)
    out, inner = dims[0], dims[1]
    batch = s.carry(0, {0: 0})
    if groups == 1:
        if into is not None:
            s.coupling.hold(weight, into, [1])
        ids = s.coupling.held(weight, 0)
    elif inner == 1 and out == groups:
        ids = into if into is not None else _frozen(s, out)
        s.coupling.hold(weight, ids, [0])
    else:
        ids = _grouped(s, into, groups, out // groups, inner, [groups, out // groups, *dims[1:]], 1, 2)
    if bias is not None:
        s.coupling.hold(bias, ids.reshape(-1), [0])
    zero = bias is not None or s.value(2) is None
    s.emit([*batch, Grid(ids.reshape(-1), (1,), zero)])


@rule("ConvTranspose")
def _conv_transpose(s: Step) -> None:
    """As Conv, with a weight of input channels x filters of the group."""
    weight, bias = s.const(1), s.const(2)
    if weight is None:
        return
    groups, dims = attr(s.node, "group", 1), [int(n) for n in s.dims(1)]  # type: ignore[arg-type]
    into = s.ids_at(0, 1)
    batch = s.carry(0, {0: 0})
    inner, out = dims[0] // groups, dims[1]
    if groups == 1:
        if into is not None:
            s.coupling.hold(weight, into, [0])
        ids = s.coupling.held(weight, 1)
    elif inner == 1 and out == 1:
        ids = into if into is not None else _frozen(s, groups)
        s.coupling.hold(weight, ids, [0])
    else:
        ids = _grouped(s, into, groups, out, inner, [groups, inner, *dims[1:]], 2, 1)
    if bias is not None:
        s.coupling.hold(bias, ids.reshape(-1), [0])
    s.emit([*batch, Grid(ids.reshape(-1), (1,), bias is not None or s.value(2) is None)])


def _frozen(s: Step, count: int) -> Ids:
    """Ids of channels that come from where nothing can go."""
    ids = s.atoms.fresh(count)
    s.atoms.freeze(ids)
    return ids


def _grouped(
    s: Step, into: Ids | None, groups: int, out: int, inner: int, view: list[int], out_axis: int, in_axis: int
) -> Ids:
    """A grid of groups x filters and one of groups x channels over the same weight, whose groups go together."""
    weight = s.const(1)
    assert weight is not None
    filters = s.atoms.fresh(groups, out)
    channels = (into if into is not None else _frozen(s, groups * inner)).reshape(groups, inner)
    s.coupling.hold(weight, channels, [0, in_axis], view)
    s.coupling.hold(weight, filters, [0, out_axis], view)
    s.atoms.tie(s.atoms.slab(filters, [0]), s.atoms.slab(channels, [0]))
    return filters


@rule("Gemm")
def _gemm(s: Step) -> None:
    flip_a, flip_b = attr(s.node, "transA", 0), attr(s.node, "transB", 0)
    if is_const(s.node.inputs[0]) or s.const(1) is None:
        return
    weight = s.const(1)
    assert weight is not None
    into = s.ids_at(0, 0 if flip_a else 1)
    if into is not None:
        s.coupling.hold(weight, into, [1 if flip_b else 0])
    ids = s.coupling.held(weight, 0 if flip_b else 1)
    rows = s.carry(0, {1 if flip_a else 0: 0}, zero=False)
    zero, bias = True, s.const(2)
    if bias is not None:
        size = s.dims(2)[-1] if s.dims(2) else 1
        if size != 1:
            s.coupling.hold(bias, ids, [len(s.dims(2)) - 1])
        zero = size != 1
        if len(s.dims(2)) > 1 and s.dims(2)[0] != 1:
            for g in rows:
                s.coupling.veto(g, 0)
    elif s.value(2) is not None:
        return
    s.emit([*rows, Grid(ids, (1,), zero)])


@rule("MatMul")
def _matmul(s: Step) -> None:
    """Batch axes meet by broadcasting; the contracted axes are tied, or zero on one side if both are computed."""
    a, b = len(s.dims(0)), len(s.dims(1))
    if a < 2 or b < 2:
        return
    rank = max(a, b)
    ka, kb = a - 1, b - 2
    name = rank + 1  # the contracted axis, as an axis of a value that has batch axes, rows, columns and it
    left = {**_batch(s, 0, rank), a - 2: rank - 2, ka: name}
    right = {**_batch(s, 1, rank), b - 1: rank - 1, kb: name}
    one, two = s.const(0) is not None, s.const(1) is not None
    if one and two:
        return
    if one or two:
        _with_weight(s, 0 if two else 1, left if two else right, right if two else left, name, rank)
    else:
        _with_activation(s, left, right, name)


def _batch(s: Step, i: int, rank: int) -> dict[int, int]:
    """Batch axes of an operand that aren't stretched → axes of the output."""
    dims, out = s.dims(i), s.out_dims()
    shift = rank - len(dims)
    return {x: x + shift for x in range(len(dims) - 2) if dims[x] != 1 or out[x + shift] == 1}


def _with_weight(s: Step, i: int, own: dict[int, int], other: dict[int, int], name: int, rank: int) -> None:
    """Input i is computed, the other is a constant."""
    weight = s.const(1 - i)
    assert weight is not None
    axis_of = {to: axis for axis, to in other.items()}
    width = s.dims(1 - i)
    kept = []
    for g in s.carry(i, own):
        meets = [d for d, axis in enumerate(g.axes) if axis in axis_of and width[axis_of[axis]] != 1]
        if meets and name in g.axes:
            ids = g.ids if len(meets) == g.ids.ndim else s.atoms.slab(g.ids, meets)
            s.coupling.hold(weight, ids, [axis_of[g.axes[d]] for d in meets])
        elif meets:
            # Batch axes that the weight has, too: it loses the same matrices.
            s.coupling.hold(weight, s.atoms.slab(g.ids, meets), [axis_of[g.axes[d]] for d in meets])
        rest = [d for d, axis in enumerate(g.axes) if axis != name]
        if rest:
            ids = g.ids if len(rest) == g.ids.ndim else s.atoms.slab(g.ids, rest)
            kept.append(Grid(ids, tuple(g.axes[d] for d in rest), g.zero))
    column = rank - 1 if i == 0 else rank - 2
    if len(width) == 2:
        ids = s.coupling.held(weight, axis_of[column])
        kept.append(Grid(ids, (column,), True))
    s.emit(kept, meet=any)


def _with_activation(s: Step, left: dict[int, int], right: dict[int, int], name: int) -> None:
    """Both are computed: what is contracted may only go where it is zero on one side."""
    grids = [s.carry(0, left), s.carry(1, right)]
    out = s.out_dims()
    for i, part in enumerate(grids):
        others = {a for g in grids[1 - i] for a in g.axes}
        own_map, other_map = (left, right) if i == 0 else (right, left)
        for g in part:
            for axis in g.axes:
                # A batch axis or the contracted one that the other operand has in full, but can't lose.
                shared = axis in own_map.values() and axis in other_map.values()
                if shared and axis not in others and (axis == name or out[axis] != 1):
                    s.coupling.veto(g, axis)
    merged = s.coupling.merge([g for part in grids for g in part], any)
    kept = []
    for g in merged:
        if name in g.axes and not g.zero:
            s.coupling.veto(g, name)
        rest = [d for d, axis in enumerate(g.axes) if axis != name]
        if rest:
            ids = g.ids if len(rest) == g.ids.ndim else s.atoms.slab(g.ids, rest)
            kept.append(Grid(ids, tuple(g.axes[d] for d in rest), g.zero))
    s.emit(kept, meet=any)
