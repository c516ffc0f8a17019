"""Operators that repeat, fill, pad and resize, and those that only tell sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import attr, const, is_const, scalar, sole_user
from ..flow import Step, rule
from ..grids import FROZEN, Grid
from ..reshaping import grouped


@rule("Expand")
def _expand(s: Step) -> None:
    """Axes that are stretched hold copies, of which any may go; but where some axes have channels, copies of heads."""
    s.const(1)
    dims, out = s.dims(0), s.out_dims()
    if is_const(s.node.inputs[0]):
        return _made(s, s.const(0))
    shift = len(out) - len(dims)
    grids = s.carry(0, {a: a + shift for a, n in enumerate(dims) if n == out[a + shift]})
    if grids:
        return s.emit(_copied(s, g) for g in grids)
    stretched = [a for a, n in enumerate(out) if (a < shift or dims[a - shift] == 1) and n != 1]
    return s.emit(Grid(s.atoms.fresh(n), (a,), False) for a in stretched if isinstance(n := out[a], int))


def _copied(s: Step, g: Grid) -> Grid:
    """A grid of heads that are repeated, as keys and values are for several queries: copies have ids of their own.

    That is so where the new axis is merged with the heads, and with nothing else, afterwards.
    """
    dims, out = s.dims(0), s.out_dims()
    first, shift = g.axes[0], len(out) - len(dims)
    times = out[first + 1] if first + 1 < len(out) else 1
    stretched = 0 <= first + 1 - shift < len(dims) and dims[first + 1 - shift] == 1 and times != 1
    user = sole_user(s.node.outputs[0], "Reshape")
    if g.ids.ndim != 2 or user is None or not stretched or not isinstance(times, int):
        return g
    merged = grouped(out, s.flow.dims(user.outputs[0]))
    if not any([a for a in here if out[a] != 1] == [first, first + 1] and len(there) == 1 for here, there in merged):
        return g
    return Grid(s.atoms.repeated(g.ids, 1, times), (first, first + 1, *g.axes[1:]), g.zero)


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
