"""Gather, scatter, one-hot. Negative indices are made positive: from iOS 17 on Core ML leaves them undefined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .build import BOOL, I32, Slot, Var
from .call import Call
from .ops_elementwise import spread
from .ops_shape import gather, take
from .registry import lowers


def indices(c: Call, i: int, size: int) -> Var:
    """Integer input `i`, counted from the front of an axis of that size."""
    if c.is_const(i):
        array = c.array(i).astype(np.int64)
        if array.size and (array.min() < -size or array.max() >= size):
            c.missing(f"an index is outside an axis of {size} elements")
        return c.tensor(np.where(array < 0, array + size, array))
    x = c.x(i)
    if _never_negative(c.value(i)):
        return x
    return c.op("select", cond=c.op("less", x=x, y=np.int32(0)), a=c.op("add", x=x, y=np.int32(size)), b=x)


def _never_negative(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    unsigned = value is not None and value.dtype in (ir.DataType.UINT8, ir.DataType.UINT16)
    return unsigned or (node is not None and node.op_type in ("ArgMax", "ArgMin", "TopK", "Shape"))


@lowers("Gather", exact=True, floats=(0,))
def _gather(c: Call) -> Any:
    """A table of 8-bit integers stays packed; its elements travel as whole floats."""
    axis = c.axis(0)
    if c.is_const(1) and c.rank(1) == 0 and c.slot(0).affine is None:
        slices = [slice(None)] * c.rank()
        k = int(c.array(1)) % c.shape()[axis]
        slices[axis] = slice(k, k + 1)
        return c.reshape(take(c, c.x(), slices), c.out_shape())
    where = indices(c, 1, c.shape()[axis])
    table = c.bytes_as_float(0)
    if table is not None:
        return Slot(full=gather(c, table, where, axis))
    return gather(c, c.x(), where, axis)


def _as_int(c: Call, i: int) -> tuple[Var, bool]:
    x = c.x(i)
    is_bool = c.builder.dtype(x) == BOOL
    return (c.cast(x, I32) if is_bool else x), is_bool


@lowers("GatherElements", exact=True, floats=(0,))
def _gather_elements(c: Call) -> Var:
    """MIL wants the other axes to be equal, ONNX allows the indices to be shorter there: what is beyond is cut."""
    axis = c.axis(0)
    x, was_bool = _as_int(c, 0)
    x = take(c, x, [slice(None) if i == axis else slice(0, n) for i, n in enumerate(c.shape(1))])
    y = c.op("gather_along_axis", x=x, indices=indices(c, 1, c.shape()[axis]), axis=axis)
    return c.cast(y, BOOL) if was_bool else y


def _tuples(c: Call, i: int, shape: Sequence[int]) -> Var:
    """Index tuples (last axis) into an array of that shape, counted from the front."""
    if c.is_const(i):
        array = c.array(i).astype(np.int64)
        return c.tensor(np.where(array < 0, array + np.array(shape), array))
    x = c.x(i)
    sizes = c.tensor(np.array(shape, np.int32))
    return c.op("select", cond=c.op("less", x=x, y=np.int32(0)), a=c.op("add", x=x, y=sizes), b=x)


@lowers("GatherND", exact=True, floats=(0,))
def _gather_nd(c: Call) -> Var:
    batch = int(c.attr("batch_dims", 0))
    x, was_bool = _as_int(c, 0)
    depth = c.shape(1)[-1]
    where = _tuples(c, 1, c.shape()[batch : batch + depth])
    if batch and c.version < 16:
        c.missing("batch_dims needs iOS 16")
    options = {"batch_dims": batch} if batch else {}
    y = c.op("gather_nd", x=x, indices=where, **options)
    return c.cast(y, BOOL) if was_bool else y


_MODES = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}


@lowers("ScatterND", floats=(0, 2))
def _scatter_nd(c: Call) -> Var:
    x, was_bool = _as_int(c, 0)
    updates, _ = _as_int(c, 2)
    where = _tuples(c, 1, c.shape()[: c.shape(1)[-1]])
    y = c.op("scatter_nd", data=x, indices=where, updates=updates, mode=_MODES[c.attr("reduction", "none")])
    return c.cast(y, BOOL) if was_bool else y


@lowers("ScatterElements", floats=(0, 2))
def _scatter_elements(c: Call) -> Var:
    axis, mode = c.axis(0), _MODES[c.attr("reduction", "none")]
    x, was_bool = _as_int(c, 0)
    updates, _ = _as_int(c, 2)
    where, shape, part = indices(c, 1, c.shape()[axis]), c.shape(), c.shape(1)
    if all(i == axis or n == p for i, (n, p) in enumerate(zip(shape, part, strict=True))):
        y = c.op("scatter_along_axis", data=x, indices=where, updates=updates, axis=axis, mode=mode)
    else:
        # The updates cover a corner of the other axes only: every element gets its full coordinates.
        count = int(np.prod(part))
        grids = np.indices(part).reshape(len(part), count)
        flat = c.reshape(where, (count, 1))
        columns = [flat if i == axis else c.tensor(g.reshape(count, 1)) for i, g in enumerate(grids)]
        tuples = c.op("concat", values=columns, axis=1) if len(columns) > 1 else flat
        y = c.op("scatter_nd", data=x, indices=tuples, updates=c.reshape(updates, (count,)), mode=mode)
    return c.cast(y, BOOL) if was_bool else y


@lowers("OneHot", exact=True, floats=(2,))
def _one_hot(c: Call) -> Var:
    """`on` where the index names the position, negative ones counted from the end; nothing is on outside the range."""
    depth, axis = int(c.number(1)), c.attr("axis", -1)
    out = c.out_shape()
    axis = axis + len(out) if axis < 0 else axis
    x = c.native(0)
    x = c.cast(x, I32)
    x = c.op("select", cond=c.op("less", x=x, y=np.int32(0)), a=c.op("add", x=x, y=np.int32(depth)), b=x)
    x = c.reshape(x, tuple(1 if i == axis else n for i, n in enumerate(out)))
    at = c.tensor(np.arange(depth, dtype=np.int32).reshape([-1 if i == axis else 1 for i in range(len(out))]))
    hit = c.op("equal", x=x, y=at)
    if c.is_const(2) and c.array(2).reshape(-1).tolist() == [0, 1]:
        return c.cast(hit, c.builder.dtype(c.x(2)))
    off, on = (spread(c, take(c, c.x(2), [slice(k, k + 1)]), out) for k in (0, 1))
    return c.op("select", cond=hit, a=on, b=off)


@lowers("Compress", exact=True, floats=(0,))
def _compress(c: Call) -> Var:
    """With a constant condition a gather; else the result's size would depend on the data."""
    axis = c.attr("axis")
    where = np.nonzero(c.array(1).reshape(-1))[0]
    x = c.x() if axis is not None else c.reshape(c.x(), (int(np.prod(c.shape())),))
    return gather(c, x, c.tensor(where), 0 if axis is None else c.axis())


