"""Convolutions and Gemm: what is contracted is tied to the weight that reads it; outputs get new ids."""

from __future__ import annotations

from ...graph import attr, is_const
from ..flow import Step, rule
from ..grids import FROZEN, Grid, Ids


@rule("Conv")
def _conv(s: Step) -> None:
    """Input channels against the filters' channels, per group; output channels are the filters."""
    weight, bias = s.const(1), s.const(2)
    if weight is None:
        return _computed(s, 1, 0, s.ids_at(0, 1), s.carry(0, {0: 0}))
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
    return None


def _computed(s: Step, read: int, made: int, into: Ids | None, rest: list[Grid]) -> None:
    """With a weight that is computed, from integers say: its axis `read` meets the input, `made` gives the output."""
    groups, dims = attr(s.node, "group", 1), s.dims(1)
    a, b = s.at(1, read), s.at(1, made)
    own = groups == 1 and into is not None and a is not None and a.zero
    each = groups == dims[0] and dims[1] == 1
    bias = s.const(2)
    if s.value(2) is not None and (bias is None or len(s.dims(2)) != 1 or s.dims(2)[0] != dims[made]):
        raise LookupError("its weight and its bias are computed")
    if not (groups == 1 or each) or b is None or not b.zero:
        raise LookupError("its weight is computed")
    ids = s.ids_at(1, made)
    assert ids is not None
    if each:
        s.atoms.tie(ids, FROZEN if into is None else into)
    elif own:
        s.atoms.tie(into, s.ids_at(1, read))  # type: ignore[arg-type]
    else:
        s.veto(0, 1)
        s.veto(1, read)
    if bias is not None:
        s.coupling.hold(bias, ids, [0])
    s.emit([*rest, Grid(ids, (1,), True)])


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
    weight = s.const(1)
    if is_const(s.node.inputs[0]):
        return None
    if weight is None:
        into, rest = s.ids_at(0, 0 if flip_a else 1), s.carry(0, {1 if flip_a else 0: 0}, zero=False)
        return _computed(s, 1 if flip_b else 0, 0 if flip_b else 1, into, rest)
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
        return None
    return s.emit([*rows, Grid(ids, (1,), zero)])
