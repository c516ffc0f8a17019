"""Operators that move, cut and join elements: the ids move with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...dims import Dim
from ...graph import attr, const, ints, is_const
from ..flow import Step, grouped, refold, rule
from ..grids import FROZEN, Grid, Ids


@rule("Transpose")
def _transpose(s: Step) -> None:
    rank = len(s.dims(0))
    order = attr(s.node, "perm", None) or list(reversed(range(rank)))
    s.const(0)
    s.emit(s.carry(0, {a: k for k, a in enumerate(order)}))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(s: Step) -> None:
    """Axes are split and merged; ids with them. Merged with an axis of unknown extent, they are frozen."""
    if is_const(s.node.inputs[0]):
        return
    s.const(1)
    dims, out = s.dims(0), s.out_dims()
    found: list[Grid] = list(s.keep())
    for here, there in grouped(dims, out):
        touched = [g for g in found if set(g.axes) & set(here)]
        if not touched:
            continue
        found = [g for g in found if g not in touched]
        wide_here, wide_there = [a for a in here if dims[a] != 1], [a for a in there if out[a] != 1]
        sizes = [n for n in (*(dims[a] for a in here), *(out[a] for a in there)) if isinstance(n, int)]
        if len(wide_here) == len(wide_there) == 1 and len(touched) == 1 and not _single(touched[0], here, dims):
            g = touched[0]
            found.append(Grid(g.ids, tuple(-1 - wide_there[0] if a in here else a for a in g.axes), g.zero))
        elif len(touched) > 1 or len(sizes) < len(here) + len(there) or not there:
            for g in touched:
                for a in set(g.axes) & set(here):
                    s.coupling.veto(g, a)
        else:
            made = refold(s.coupling, touched[0], here, sizes[: len(here)], [-1 - a for a in there], sizes[len(here) :])
            found.append(made)
    # Axes of the output are marked by -1 - axis until all are moved; those in no group with labels keep their number.
    s.emit(Grid(g.ids, tuple(-1 - a if a < 0 else a for a in g.axes), g.zero) for g in _moved(found))


def _single(grid: Grid, here: list[int], dims: Sequence[Dim]) -> bool:
    """Whether the grid lies over an axis of one element in the group."""
    return any(dims[a] == 1 for a in grid.axes if a in here)


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
    given = [ints(v) if v is not None else None for v in s.node.inputs[1:5]] + [None] * (5 - len(s.node.inputs))
    for i in range(1, 5):
        s.const(i)
    starts, ends, axes, steps = given
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
        if isinstance(size, int):
            positions = np.arange(size)[slice(start, _end(end, size, step), step)]
            for g in grids:
                _same_in_rows(s, g, axis, positions)
            grids = [_taken(g, axis, positions) for g in grids]
    return s.emit(grids)


def _same_in_rows(s: Step, grid: Grid, axis: int, positions: np.ndarray) -> None:
    """Positions on the last axis of a ragged grid are counted alike in all rows: of a range, what lies before it."""
    if axis not in grid.axes or grid.ids.ndim == 1 or grid.at(axis) != grid.ids.ndim - 1:
        return
    if positions.size and (np.diff(positions) == 1).all():
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
    if g is None or positions is None:
        s.veto(0, axis)
        return s.emit([*s.carry(0, to), *_of_index(s, axis)])
    grids = s.carry(0, to, but=g)
    at = g.at(axis)
    _same_in_rows(s, g, axis, positions.reshape(-1) % g.ids.shape[at])
    ids = g.ids.take(positions.reshape(-1) % g.ids.shape[at], at)
    ids = ids.reshape([*g.ids.shape[:at], *positions.shape, *g.ids.shape[at + 1 :]])
    new = (*(to[a] for a in g.axes[:at]), *range(axis, axis + many), *(to[a] for a in g.axes[at + 1 :]))
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
    if is_const(s.node.inputs[0]):
        s.const(0)
        return
    dims, out = s.dims(0), s.out_dims()
    shift = len(out) - len(dims)
    s.emit(s.carry(0, {a: a + shift for a, n in enumerate(dims) if n == out[a + shift]}))


@rule("Tile")
def _tile(s: Step) -> None:
    """Repeated ids along a tiled axis."""
    times = ints(s.node.inputs[1]) if s.node.inputs[1] is not None else None
    s.const(1)
    if times is None:
        return
    s.emit(Grid(np.tile(g.ids, [times[a] for a in g.axes]), g.axes, g.zero) for g in s.keep())


@rule("Pad")
def _pad(s: Step) -> None:
    """Axes that are not padded pass; what pads them is zero only by default."""
    pads, axes = (
        ints(s.node.inputs[1]) if s.node.inputs[1] is not None else None,
        ints(s.value(3)) if s.value(3) else None,
    )
    for i in (1, 2, 3):
        s.const(i)
    rank = len(s.dims(0))
    if pads is None or (s.value(3) is not None and axes is None):
        return
    axes = [a % rank for a in axes] if axes is not None else list(range(rank))
    half = len(axes)
    padded = {a for k, a in enumerate(axes) if pads[k] or pads[k + half]}
    fill = const(s.value(2)) if s.value(2) is not None else None
    zero = s.value(2) is None or (fill is not None and not fill.any())
    keeps = zero or attr(s.node, "mode", "constant") != "constant"
    s.emit(s.keep(but=padded, zero=None if keeps else False))


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


@rule("Shape", "Size", "ConstantOfShape", "Range", "EyeLike", "NonZero")
def _sizes(s: Step) -> None:
    """Numbers that only depend on sizes. Those of an axis that shrinks change, so it may not where they are used."""
    for i in range(len(s.node.inputs)):
        if s.const(i) is None and s.node.op_type in ("Shape", "Size"):
            dims = s.dims(i)
            start, end = attr(s.node, "start", 0), attr(s.node, "end", len(dims))
            seen = range(len(dims))[slice(start, end)] if s.node.op_type == "Shape" else range(len(dims))
            if any(out.uses() for out in s.node.outputs):
                for a in seen:
                    s.veto(i, a)
            s.keep(i)
    s.emit([])
