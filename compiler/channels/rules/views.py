"""Operators that move, cut and join elements: the ids move with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...dims import Dim, exact_div
from ...graph import attr, const, is_const, scalar
from ..flow import Step, grouped, refold, rule
from ..grids import FROZEN, Grid, Ids


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
    if data is not None and is_const(data):
        return _embedding(s, axis, to, many)
    positions = const(index) if index is not None and is_const(index) else None
    g = s.at(0, axis)
    s.const(1)
    if g is None or positions is None or not isinstance(s.dims(0)[axis], int):
        s.veto(0, axis)
        return s.emit([*s.carry(0, to), *_of_index(s, axis)])
    grids = s.carry(0, to, but=g)
    at = g.at(axis)
    _same_in_rows(s, g, axis, positions.reshape(-1) % g.ids.shape[at])
    ids = g.ids.take(positions.reshape(-1) % g.ids.shape[at], at)
    ids = ids.reshape([*g.ids.shape[:at], *positions.shape, *g.ids.shape[at + 1 :]])
    new = (*(to[a] for a in g.axes[:at]), *range(axis, axis + many), *(to[a] for a in g.axes[at + 1 :]))
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


@rule("Expand")
def _expand(s: Step) -> None:
    """Axes that are stretched are new, and can't go by themselves."""
    s.const(1)
    dims, out = s.dims(0), s.out_dims()
    if is_const(s.node.inputs[0]):
        return _made(s, s.const(0))
    shift = len(out) - len(dims)
    return s.emit(s.carry(0, {a: a + shift for a, n in enumerate(dims) if n == out[a + shift]}))


@rule("ConstantOfShape")
def _filled(s: Step) -> None:
    s.const(0)
    _made(s, None)


def _made(s: Step, value: ir.Value | None) -> None:
    """A value made of one number, or of a constant that is repeated, may be of any size: ids of its own.

    Free sizes have none.
    """
    out, grids = s.out_dims(), []
    shift = len(out) - (len(s.dims(0)) if value is not None else len(out))
    zero = scalar(value) == 0 if value is not None else _fill(s) == 0
    for a, n in enumerate(out):
        if not isinstance(n, int) or n == 1:
            continue
        if value is not None and a >= shift and s.dims(0)[a - shift] != 1:
            grids.append(Grid(s.coupling.held(value, a - shift), (a,), True))
        else:
            grids.append(Grid(s.atoms.fresh(n), (a,), zero))
    s.emit(grids)


def _fill(s: Step) -> float:
    value = attr(s.node, "value", None)
    return 0.0 if value is None else float(value.numpy().reshape(-1)[0])


@rule("Tile")
def _tile(s: Step) -> None:
    """Repeated ids along a tiled axis."""
    times = s.ints(1)
    s.const(1)
    if times is None:
        return
    s.emit(Grid(np.tile(g.ids, [times[a] for a in g.axes]), g.axes, g.zero) for g in s.keep())


@rule("Pad")
def _pad(s: Step) -> None:
    """A padded axis gets frozen elements around its own; what pads other axes is zero only by default."""
    pads, axes = s.ints(1), s.ints(3)
    for i in (1, 2, 3):
        s.const(i)
    rank = len(s.dims(0))
    if pads is None or (s.value(3) is not None and axes is None):
        return
    axes = [a % rank for a in axes] if axes is not None else list(range(rank))
    around = {a: (pads[k], pads[k + len(axes)]) for k, a in enumerate(axes) if pads[k] or pads[k + len(axes)]}
    plain = attr(s.node, "mode", "constant") == "constant"
    fill = const(s.value(2)) if s.value(2) is not None else None
    zero = s.value(2) is None or (fill is not None and not fill.any())
    but = {a for a, (n, m) in around.items() if not plain or min(n, m) < 0 or not isinstance(s.dims(0)[a], int)}
    grids = s.keep(but=but, zero=None if zero or not plain else False)
    for a, (n, m) in around.items():
        grids = [_padded(g, a, n, m) if a in g.axes else g for g in grids]
    s.emit(grids)


def _padded(grid: Grid, axis: int, before: int, after: int) -> Grid:
    d = grid.at(axis)
    widths = [(before, after) if k == d else (0, 0) for k in range(grid.ids.ndim)]
    return Grid(np.pad(grid.ids, widths, constant_values=FROZEN), grid.axes, grid.zero)


@rule("Resize", "Upsample")
def _resize(s: Step) -> None:
    """Batch, channels and whatever else keeps its size pass; interpolating zeros gives zeros."""
    for i in (1, 2, 3):
        s.const(i)
    dims, out = s.dims(0), s.out_dims()
    crops = attr(s.node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    s.emit(s.carry(0, {a: a for a in range(len(dims)) if dims[a] == out[a]}, zero=False if crops else None))


@rule("DepthToSpace", "SpaceToDepth")
def _blocks(s: Step) -> None:
    """Blocks are moved as a reshape, a transpose and a reshape would: channels go where they stay whole blocks."""
    dims, out = s.dims(0), s.out_dims()
    b = attr(s.node, "blocksize")
    g = s.at(0, 1)
    batch = s.carry(0, {0: 0})
    if g is None:
        return s.emit(batch)
    ids = s.ids_at(0, 1)
    assert ids is not None
    if s.node.op_type == "SpaceToDepth":
        return s.emit([*batch, Grid(np.tile(ids, b * b), (1,), g.zero)])
    channels = int(out[1])  # type: ignore[arg-type]
    first = attr(s.node, "mode", "DCR") == "DCR"
    blocks = ids.reshape(b * b, channels) if first else ids.reshape(channels, b * b).T
    s.atoms.tie(blocks, blocks[:1])
    assert dims
    return s.emit([*batch, Grid(blocks[0], (1,), g.zero)])


@rule("Shape")
def _shape(s: Step) -> None:
    """Sizes as they were before go on being used; removal sees to that."""
    s.keep()


@rule("Size", "Range", "EyeLike", "NonZero")
def _sizes(s: Step) -> None:
    """Numbers that depend on sizes: where they are used, these may not change."""
    for i in range(len(s.node.inputs)):
        s.const(i)
    if not any(out.uses() or out.is_graph_output() for out in s.node.outputs):
        s.keep()
